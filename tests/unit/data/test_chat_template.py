"""Conversations by chat template: what is learned, that generation begins with the same tokens, and what is refused."""

import copy

import numpy as np
import pytest
from tokenizers import AddedToken

from llama_dyt.core.errors import DataError
from llama_dyt.data.tokenizing.chat_template import ChatTemplate
from llama_dyt.data.tokenizing.chat_templates import CHATML
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.data.tokenizing.unusable import Unusable
from tests.sentencepiece_models import write_model

UNMARKED_CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' ' + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
PLAIN = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ 'Q: ' + m['content'] + '\nA:' }}"
    "{% else %}{{ ' ' + m['content'] + '\n' }}{% endif %}{% endfor %}"
)
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
TALK = [
    {"role": "user", "content": "add one to 4"},
    {"role": "assistant", "content": "it is 5"},
    {"role": "user", "content": "and  to\nthat"},
    {"role": "assistant", "content": "6"},
]
ENDS = {
    "chatml": (CHATML, "<|im_end|>", "<|im_end|>"),
    "unmarked": (UNMARKED_CHATML, "<|im_end|>", "<|im_end|>\n"),
    "llama_2": (LLAMA_2, "</s>", " </s>"),
    "llama_3": (LLAMA_3, "<|eot_id|>", "<|eot_id|>"),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """LLaMA's kind, which puts a space before a text."""
    tokenizer = load_tokenizer(write_model(tmp_path_factory.mktemp("llama") / "tokenizer.model"))
    return with_tokens(tokenizer)


def with_tokens(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokens = [AddedToken(token, special=True, normalized=False) for token in SPECIAL]
    tokenizer.add_tokens(tokens, special_tokens=True)
    return tokenizer


def template(tokenizer, text):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer)


def runs(tokens):
    """(first, last + 1) of every stretch that is learned."""
    edges = np.flatnonzero(np.diff([0, *tokens.learned.astype(int), 0]))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("kind", ["llama", "sentencepiece"])
def test_the_assistants_turns_alone_are_learned(request, tokenizer, kind, name):
    text, _, end = ENDS[name]
    tokenizer = request.getfixturevalue("llama") if kind == "llama" else with_tokens(tokenizer)
    chat = template(tokenizer, text)
    tokens = chat.encode(TALK)
    stretches = runs(tokens)
    learned = [tokenizer.decode(tokens.tokens[first:last], skip_special_tokens=False) for first, last in stretches]
    assert [part.replace(" ", "") for part in learned] == [f"itis5{end.strip(' ')}", f"6{end.strip(' ')}"]
    for (first, _), asked in zip(stretches, (TALK[:1], TALK[:3]), strict=True):
        assert tokens.tokens[:first].tolist() == chat.prompt(asked).tolist()


@pytest.mark.parametrize("name", ENDS)
def test_tokens_are_those_of_transformers(llama, name):
    tokenizer = copy.deepcopy(llama)
    tokenizer.chat_template = ENDS[name][0]
    theirs = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True)["input_ids"]
    assert ChatTemplate(tokenizer).encode(TALK).tokens.tolist() == theirs


def test_marks_in_the_template_say_what_transformers_takes_from_them(llama):
    tokenizer = copy.deepcopy(llama)
    tokenizer.chat_template = CHATML
    theirs = tokenizer.apply_chat_template(TALK, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    assert ChatTemplate(tokenizer).encode(TALK).learned.tolist() == [bool(mask) for mask in theirs["assistant_masks"]]


@pytest.mark.parametrize("name", ENDS)
def test_an_answer_ends_with_the_templates_token(llama, name):
    text, token, _ = ENDS[name]
    assert template(llama, text).ends() == ([llama.convert_tokens_to_ids(token)], "")


def test_without_such_a_token_an_answer_ends_with_the_templates_text(llama):
    assert template(llama, PLAIN).ends() == ([], "\n")


def test_a_role_that_the_template_does_not_know_is_refused_in_its_words(llama):
    with pytest.raises(
        Unusable, match=r"the chat template refuses it \(Only user and assistant roles are supported!\)"
    ):
        template(llama, LLAMA_2).encode([{"role": "system", "content": "x"}, *TALK])


def test_a_template_that_writes_an_answer_otherwise_once_it_is_history_is_refused(llama):
    text = UNMARKED_CHATML.replace("m['content']", "(m['content'] if loop.last else m['content'] | upper)")
    with pytest.raises(Unusable, match="writes message 2 in another way when it is not the last"):
        template(llama, text).encode(TALK)
    assert runs(template(llama, text).encode(TALK[1:2]))  # with nothing behind it there is nothing to differ


def test_a_template_that_leaves_answers_out_is_refused(llama):
    text = "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(Unusable, match="leaves message 2, the assistant's, out"):
        template(llama, text).encode(TALK)


def test_a_template_whose_cut_lies_within_a_token_is_refused(tokenizer):
    """Here nothing stands between question and answer, and together they are one token."""
    word = next(piece for piece in sorted(tokenizer.get_vocab()) if piece.isalpha() and len(piece) > 2)
    talk = [{"role": "user", "content": word[:1]}, {"role": "assistant", "content": word[1:]}]
    text = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(Unusable, match=f"a token of this tokenizer reaches over the place in '{word}' where it begins"):
        template(tokenizer, text).encode(talk)


def test_no_template_and_a_broken_one_are_told(llama):
    with pytest.raises(DataError, match="has no chat template.*--chat_template FILE"):
        ChatTemplate(llama)
    with pytest.raises(DataError, match=r"is no valid jinja \(line 1: .*--chat_template"):
        template(llama, "{% for m in messages %}")


def test_a_template_cannot_reach_out_of_its_sandbox(llama):
    with pytest.raises(Unusable, match="the chat template refuses it"):
        template(llama, "{{ ''.__class__.__mro__[1].__subclasses__() }}").encode(TALK)
