"""Encoding word by word gives the ids of the whole text, and is left alone where it might not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers

from llama_dyt.data.word_split import split_into_words

PIECES = st.sampled_from(
    [" ", "  ", "\n", "\t", "▁", "def area", "return", "width * height", "ü", "漢", "\x00", "9", "<s>"]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=20).map("".join)


def with_a_space_before_each_text(backend):
    other = Tokenizer.from_str(backend.to_str())
    other.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    other.pre_tokenizer = None
    return other


@given(text=TEXTS, prepend=st.booleans())
def test_words_have_the_ids_of_the_whole(tokenizer, text, prepend):
    backend = tokenizer.backend_tokenizer
    if prepend:
        backend = with_a_space_before_each_text(backend)
    quick = split_into_words(backend)
    assert quick is not backend
    for each in (quick, backend):
        each.encode_special_tokens = True
    assert quick.encode(text, add_special_tokens=False).ids == backend.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts["model"]["vocab"].update({"x▁y": 9999}),
        lambda parts: parts["pre_tokenizer"].update({"split": True}),
        lambda parts: parts.update(pre_tokenizer={"type": "Whitespace"}),
        lambda parts: parts["model"].update(ignore_merges=True),
    ],
)
def test_another_kind_is_left_as_it_is(tokenizer, change):
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    change(parts)
    backend = Tokenizer.from_str(json.dumps(parts))
    assert split_into_words(backend) is backend
