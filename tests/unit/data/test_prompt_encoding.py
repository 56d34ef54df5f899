"""Prompts and completions: a completion keeps its first character, special tokens follow one rule there and back."""

import copy

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from llama_dyt.data.tokenizing.prompt_encoding import PromptEncoder, recognises_special_tokens, set_special_tokens
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from tests.sentencepiece_models import write_model

CHAT = "<|im_start|>user\nhow are you<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tokenizer that puts a space before a text, with ChatML's tokens."""
    tokenizer = load_tokenizer(write_model(tmp_path_factory.mktemp("llama") / "tokenizer.model"))
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


@pytest.fixture(scope="module")
def first_only(llama):
    """HuggingFace's other form of it: no space where one is there."""
    other = copy.deepcopy(llama)
    other.backend_tokenizer.normalizer = None
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return other


class Slow:
    """As a tokenizer whose parts cannot be seen: only its calls."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.bos_token_id, self.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.decode = tokenizer.decode

    def __call__(self, texts, **arguments):
        return self._tokenizer(texts, **arguments)


texts = st.text(st.sampled_from("ab \n(\u00e9\u6f22"), max_size=8)


@pytest.mark.parametrize("kind", ["llama", "first_only", "slow", "without_prefix"])
@settings(max_examples=60)
@given(prompt=texts, completion=texts)
@example("The sky is", " blue")
@example("The sky is", "blue")
@example("def f():", "\n        return 1")
@example("", "  two spaces first")
@example("a\n", "\nb")
def test_a_completion_comes_back_to_the_letter(request, llama, first_only, tokenizer, kind, prompt, completion):
    chosen = {"llama": llama, "first_only": first_only, "slow": Slow(llama), "without_prefix": tokenizer}[kind]
    encoder = PromptEncoder(chosen)
    (ids,) = encoder.prompts([prompt])
    (answer,) = encoder.completions([completion], [ids])
    assert answer[-1] == chosen.eos_token_id
    if kind == "first_only" and not prompt:
        return  # this form itself loses one of the spaces at a text's start
    assert encoder.decode(ids.tolist(), answer.tolist()) == completion


def test_no_space_is_put_before_a_completion(llama):
    encoder = PromptEncoder(llama)
    prompts = encoder.prompts(["The sky is ", "The sky is ", ""])
    glued, spaced, alone = encoder.completions(["blue", " blue", "blue"], prompts)
    assert not llama.convert_ids_to_tokens(glued.tolist())[0].startswith("\u2581")
    assert llama.convert_ids_to_tokens(spaced.tolist())[0].startswith("\u2581")
    assert spaced.tolist() == alone.tolist()  # behind no prompt it begins a text, as documents do


def test_a_byte_level_tokenizer_that_puts_a_space_puts_none_before_a_completion():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<end>"])
    backend.train_from_iterator(["a few words"], trainer)
    chosen = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")
    encoder = PromptEncoder(chosen)
    (prompt,) = encoder.prompts(["a"])
    assert chosen.convert_ids_to_tokens(prompt.tolist())[0].startswith("\u0120")
    assert encoder.decode(prompt.tolist(), encoder.completions(["few"], [prompt])[0].tolist()) == "few"


def test_special_tokens_are_text_unless_the_tokenizer_says_otherwise(llama, tmp_path):
    special = llama.convert_tokens_to_ids("<|im_end|>")
    assert not recognises_special_tokens(llama)
    assert special not in PromptEncoder(llama).prompts([CHAT])[0]
    for recognised in (True, False):
        chosen = copy.deepcopy(llama)
        set_special_tokens(chosen, recognised)
        chosen.save_pretrained(tmp_path)
        loaded = load_tokenizer(tmp_path)
        assert recognises_special_tokens(loaded) == recognised
        (prompt,) = PromptEncoder(loaded).prompts([CHAT])
        assert (special in prompt) == recognised
        # Whoever takes the saved tokenizer without this package has the same rule.
        assert prompt.tolist() == loaded(CHAT)["input_ids"]


def test_a_bos_or_eos_that_is_written_and_recognised_is_not_doubled(llama):
    chosen = copy.deepcopy(llama)
    set_special_tokens(chosen, True)
    encoder = PromptEncoder(chosen)
    (prompt,) = encoder.prompts(["<s>a"])
    (completion,) = encoder.completions(["b</s>"], [prompt])
    assert prompt.tolist().count(chosen.bos_token_id) == completion.tolist().count(chosen.eos_token_id) == 1
    assert encoder.decode(prompt.tolist(), completion.tolist()) == "b"


def test_special_tokens_in_a_completion_come_back(llama):
    chosen = copy.deepcopy(llama)
    set_special_tokens(chosen, True)
    encoder = PromptEncoder(chosen)
    (prompt,) = encoder.prompts([CHAT])
    (completion,) = encoder.completions(["fine<|im_end|>"], [prompt])
    assert encoder.decode(prompt.tolist(), np.append(completion, 7)) == "fine<|im_end|>"
