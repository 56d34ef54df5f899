"""A SentencePiece model encodes here as SentencePiece itself does, by whatever route it comes; or it is refused."""

import base64
import json
import shutil

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, LlamaTokenizer

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.tokenizing.encode import encode_batch
from llama_dyt.data.tokenizing.sentencepiece_model import SentencePieceModel
from llama_dyt.data.tokenizing.tokenizer import check_vocabulary, load_tokenizer
from tests.sentencepiece_models import CODE, sample_text, write_model

TEXTS = (CODE, sample_text(), "  leading", "x" + " " * 21 + "y", "e\u0301\u6f22\U0001f600\x00\t<s>", "")
EMPTY_NAMES = {"bos_token": "", "eos_token": "", "unk_token": "", "tokenizer_class": "LLaMATokenizer"}
PAD_ADDED = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "[PAD]", "tokenizer_class": "LlamaTokenizer"}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("llama") / "tokenizer.model")


@pytest.fixture(scope="module")
def processor(llama):
    return sentencepiece.SentencePieceProcessor(model_file=str(llama))


def test_runs_of_spaces_have_low_ids_and_merge_last(llama, processor):
    """What these tests stand on: the trap of LLaMA's own file is in the model made for them."""
    tokens = LlamaTokenizer.from_pretrained(str(llama.parent))(CODE, add_special_tokens=False)["input_ids"]
    assert tokens != processor.encode(CODE)


@pytest.mark.parametrize(
    "config",
    [None, {}, {"model_max_length": 2048}, EMPTY_NAMES, PAD_ADDED],
    ids=["no config", "empty", "no class", "empty names", "pad token added"],
)
def test_a_folder_without_tokenizer_json_encodes_as_sentencepiece(llama, processor, tmp_path, config):
    shutil.copy(llama, tmp_path / "tokenizer.model")
    if config is not None:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert [ids.tolist() for ids in encode_batch(tokenizer, TEXTS)] == processor.encode(list(TEXTS))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (1, 2, 0)
    assert len(tokenizer) == 600 + (config is PAD_ADDED)
    check_vocabulary(tokenizer, 600)  # a pad token behind the model's vocabulary never comes up in data
    with pytest.raises(ConfigurationError, match="the model's vocabulary is 599"):
        check_vocabulary(tokenizer, 599)


def test_a_file_of_any_name_encodes_as_sentencepiece(llama, processor, tmp_path):
    shutil.copy(llama, tmp_path / "consolidated.model.v3")
    tokenizer = load_tokenizer(tmp_path / "consolidated.model.v3")
    assert [ids.tolist() for ids in encode_batch(tokenizer, TEXTS)] == processor.encode(list(TEXTS))
    assert [tokenizer.decode(ids) for ids in processor.encode(list(TEXTS[:4]))] == list(TEXTS[:4])


def test_what_is_saved_encodes_the_same_for_everybody(llama, processor, tmp_path):
    load_tokenizer(llama).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS[:4]:
        assert theirs(text)["input_ids"] == [1, *processor.encode(text)]


@settings(max_examples=100)
@given(st.text(st.sampled_from("ab \n\tdef():\u2581\u00e9\u6f22")))
def test_text_of_spaces_and_code_encodes_as_sentencepiece(llama_tokenizer, processor, text):
    assert encode_batch(llama_tokenizer, [text])[0].tolist() == processor.encode(text)


@pytest.fixture(scope="module")
def llama_tokenizer(llama):
    return load_tokenizer(llama)


@pytest.mark.parametrize(
    "kind",
    [
        {"user_defined_symbols": ["<|own|>", "\n\n"]},
        {"user_defined_symbols": ["<|own|>", f"{' ' * 3}"], "add_dummy_prefix": False},
        {"byte_fallback": False},
        {"remove_extra_whitespaces": True},
        {"model_type": "unigram", "allow_whitespace_only_pieces": False},
        {
            "model_type": "unigram",
            "allow_whitespace_only_pieces": False,
            "byte_fallback": False,
            "user_defined_symbols": ["<|own|>"],
        },
    ],
    ids=lambda kind: ", ".join(kind),
)
def test_other_kinds_of_models_encode_as_sentencepiece(tmp_path, kind):
    path = write_model(tmp_path / "tokenizer.model", **kind)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    # Line by line: in a long text SentencePiece's sums of unigram scores are rounded to where another way seems better.
    lines = [line for text in TEXTS for line in text.splitlines(keepends=True)]
    texts = [*lines, "<|own|> at the start", "a<|own|>b <|own|><|own|>\n\n\nc"]
    assert [ids.tolist() for ids in encode_batch(load_tokenizer(path), texts)] == processor.encode(texts)


@pytest.mark.parametrize(
    "kind",
    [
        {"normalization_rule_name": "nmt_nfkc"},
        {"treat_whitespace_as_suffix": True},
    ],
    ids=lambda kind: ", ".join(kind),
)
def test_a_model_that_cannot_be_followed_is_refused_with_the_first_difference(tmp_path, kind):
    path = write_model(tmp_path / "tokenizer.model", **kind)
    with pytest.raises(DataError, match=r"tokenizer .*tokenizer\.model: .*: at '.*', SentencePiece gives \['.*, the "):
        load_tokenizer(path)


def test_a_tokenizer_json_that_departs_from_the_model_beside_it_is_refused(llama, processor, tmp_path):
    shutil.copy(llama, tmp_path / "tokenizer.model")
    LlamaTokenizer.from_pretrained(str(tmp_path)).save_pretrained(tmp_path)  # with merges by id
    with pytest.raises(DataError, match=r"tokenizer\.json does not encode as the tokenizer\.model beside it: at '"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_json_that_differs_at_leading_spaces_alone_is_taken(llama, processor, tmp_path):
    """HuggingFace's own LLaMA tokenizers put no space before one that is there."""
    from tokenizers import pre_tokenizers

    backend = SentencePieceModel(llama).convert()
    backend.normalizer = None
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.save(str(tmp_path / "tokenizer.json"))
    shutil.copy(llama, tmp_path / "tokenizer.model")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert encode_batch(tokenizer, [CODE])[0].tolist() == processor.encode(CODE)
    assert encode_batch(tokenizer, ["  a"])[0].tolist() != processor.encode("  a")


def test_a_tokenizer_json_is_taken_as_it_stands_whatever_class_a_config_names(tmp_path):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    backend.train_from_iterator(sample_text().splitlines(), trainer)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>", "tokenizer_class": "LlamaTokenizer"}')
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    tokenizer = load_tokenizer(tmp_path)
    assert encode_batch(tokenizer, [CODE])[0].tolist() == backend.encode(CODE).ids
    assert tokenizer.decode(backend.encode(CODE).ids) == CODE
    assert (tokenizer.bos_token, tokenizer.eos_token_id, len(tokenizer)) == (None, 0, 400)


def test_no_bos_or_eos_is_invented(tmp_path):
    without_bos = write_model(tmp_path / "a" / "tokenizer.model", bos_id=-1, eos_id=1)
    tokenizer = load_tokenizer(without_bos)
    assert (tokenizer.bos_token, tokenizer.eos_token_id, tokenizer.pad_token, len(tokenizer)) == (None, 1, None, 600)
    without_either = write_model(tmp_path / "b" / "tokenizer.model", bos_id=-1, eos_id=-1)
    for name in (without_either, without_either.parent):
        with pytest.raises(ConfigurationError, match="no end-of-sequence token"):
            load_tokenizer(name)


def test_llama_3s_file_is_told_from_a_damaged_one(tmp_path):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"".join(base64.b64encode(bytes([value])) + b" %d\n" % value for value in range(256)))
    with pytest.raises(DataError, match="tiktoken's form"):
        load_tokenizer(path)
