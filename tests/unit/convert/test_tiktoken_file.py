"""Llama 3's tokenizer.model: encoded as tiktoken does, which is written here anew, and carried there and back."""

from __future__ import annotations

import base64
import json
from dataclasses import replace

import pytest
import regex
from conversions import converted
from meta_files import LLAMA_3, write_release
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from llama_dyt.convert.tiktoken_file import is_tiktoken, load_tiktoken
from llama_dyt.core.errors import DataError
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from tests.sentencepiece_models import sample_text

WORDS = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
TEXTS = [
    "def f(x):\n        return  x\n",
    "I'm 12345 caf\u00e9s, \u6f22\u5b57!!\r\n\r\n  ",
    "<|eot_id|> is text",
    "aaaaaaabab",
]


@pytest.fixture(scope="module")
def ranks():
    """Bytes → rank of 800 tokens, trained on text."""
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator([sample_text()], trainers.BpeTrainer(vocab_size=800, initial_alphabet=alphabet))
    letters = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in letters}
    table |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in letters)}
    tokens = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    return {bytes(table[letter] for letter in token): rank for rank, (token, _) in enumerate(tokens)}


def write(ranks, path):
    path.write_bytes(b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in ranks.items()))
    return path


def encoded(text, ranks):
    """As tiktoken's own teaching code does."""
    ids = []
    for word in WORDS.findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [
                (ranks[a + b], at) for at, (a, b) in enumerate(zip(parts, parts[1:], strict=False)) if a + b in ranks
            ]
            if not pairs:
                break
            _, at = min(pairs)
            parts = [*parts[:at], parts[at] + parts[at + 1], *parts[at + 2 :]]
        ids += [ranks[part] for part in parts]
    return ids


def test_texts_are_encoded_as_tiktoken_does(ranks, tmp_path):
    path = write(ranks, tmp_path / "tokenizer.model")
    assert is_tiktoken(path)
    tokenizer = load_tiktoken(path, since_3_1=False)
    for text in [*TEXTS, sample_text()[:3000]]:
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == encoded(text, ranks) and tokenizer.decode(ids) == text
    assert len(tokenizer) == 800 + 256 and tokenizer(TEXTS[0])["input_ids"][0] == 800 == tokenizer.bos_token_id
    names = {name: tokenizer.convert_tokens_to_ids(name) - 800 for name in ("<|end_of_text|>", "<|eot_id|>")}
    assert names == {"<|end_of_text|>": 1, "<|eot_id|>": 9}
    assert tokenizer.convert_ids_to_tokens(800 + 255) == "<|reserved_special_token_250|>"
    newer = load_tiktoken(path, since_3_1=True)
    assert [newer.convert_ids_to_tokens(800 + n) for n in (8, 9, 10, 255)] == [
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
        "<|reserved_special_token_245|>",
    ]


def test_it_goes_with_a_model_of_metas_and_back(ranks, tmp_path):
    release = replace(LLAMA_3, vocabulary=800 + 256, params=LLAMA_3.params | {"vocab_size": -1})
    source = write_release(release, tmp_path / "meta")
    path = write(ranks, source / "tokenizer.model")
    result = converted(source, tmp_path / "hf", "--verify")
    for text in TEXTS:
        ids = load_tokenizer(result)(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert ids == encoded(text, ranks)
    assert json.loads((result / "generation_config.json").read_text())["eos_token_id"] == 801
    again = converted(converted(result, tmp_path / "copied"), tmp_path / "again", "--to", "meta")
    assert (again / "tokenizer.model").read_bytes() == path.read_bytes()


def test_a_damaged_file_is_named_by_its_line(ranks, tmp_path):
    path = write(ranks, tmp_path / "tokenizer.model")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:300], lines[300][3:], *lines[301:]]))
    with pytest.raises(DataError, match="line 301 is no token and its rank|has no token for the byte"):
        load_tiktoken(path, since_3_1=False)
    path.write_bytes(b"".join([*lines[:300], *lines[301:]]))
    with pytest.raises(DataError, match="line 301 is no token and its rank"):
        load_tiktoken(path, since_3_1=False)
