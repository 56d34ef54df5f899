"""Encoding word by word gives the ids of the whole text, and is left alone where it might not."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from llama_dyt.data.tokenizing import word_encoder
from llama_dyt.data.tokenizing.word_encoder import make_word_encoder

PIECES = st.sampled_from(
    [" ", "  ", "\n", "\t", "▁", "def area", "return", "width * height", "ü", "漢", "\x00", "9", "<s>", "_a", "x1", "́"]
)
TEXTS = st.lists(PIECES | st.text(max_size=5), max_size=20).map("".join)


def prepend_always(backend):
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None


def prepend_unless_there(backend):
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)


def replace_only(backend):
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = None


@pytest.fixture(scope="module")
def backends(tokenizer):
    """Tokenizers of each way to mark spaces, with and without a piece that only whole words, cut at spaces, have."""
    made = []
    for change in (lambda backend: None, prepend_always, prepend_unless_there, replace_only):
        for piece in ("", "e1", "_t"):
            backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
            change(backend)
            backend = with_piece(backend, piece)
            backend.encode_special_tokens = True
            made.append((backend, make_word_encoder(backend), piece))
    return made


@given(text=TEXTS, number=st.integers(0, 11))
def test_words_have_the_ids_of_the_whole(backends, text, number):
    backend, encode, piece = backends[number]
    text = text.replace(" ", piece or " ", 1)
    expected = backend.encode(text, add_special_tokens=False).ids
    assert encode(text).tolist() == expected
    assert encode(text).tolist() == expected  # with all words known


@pytest.mark.parametrize("piece", ["0▁", "t▁▁e"])
def test_a_piece_with_a_space_behind_a_character_forbids_it(tokenizer, piece):
    assert make_word_encoder(with_piece(tokenizer.backend_tokenizer, piece)) is None


def with_piece(backend, piece):
    """With a merge of two pieces that makes another."""
    parts = json.loads(backend.to_str())
    vocabulary, merges = parts["model"]["vocab"], parts["model"]["merges"]
    for part in [*piece, *(piece[:stop] for stop in range(2, len(piece) + 1))]:
        if part not in vocabulary:
            vocabulary[part] = len(vocabulary)
    merges[:0] = [[piece[: stop - 1], piece[stop - 1]] for stop in range(2, len(piece) + 1)]
    return Tokenizer.from_str(json.dumps(parts))


def test_a_full_store_of_words_starts_anew(tokenizer, monkeypatch):
    monkeypatch.setattr(word_encoder, "_MOST_WORDS", 2)
    encode = make_word_encoder(tokenizer.backend_tokenizer)
    text = "one two three four five one two"
    for _ in range(2):
        assert encode(text).tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: parts["pre_tokenizer"].update({"split": True}),
        lambda parts: parts.update(pre_tokenizer={"type": "Whitespace"}),
        lambda parts: parts.update(pre_tokenizer=None),
        lambda parts: parts.update(normalizer={"type": "NFKC"}),
        lambda parts: parts["model"].update(ignore_merges=True),
        lambda parts: parts["model"].update(dropout=0.5),
        lambda parts: parts["added_tokens"].append({**parts["added_tokens"][0], "id": 5, "special": False}),
    ],
)
def test_another_kind_is_left_as_it_is(tokenizer, change):
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    change(parts)
    assert make_word_encoder(Tokenizer.from_str(json.dumps(parts))) is None


@pytest.mark.parametrize("model", [{"byte_fallback": False}, {"byte_fallback": True, "without": "<0xE6>"}])
def test_fused_unknown_characters_turn_it_off_where_a_character_can_be_unknown(tokenizer, model):
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts["model"].update(unk_token="<unk>", fuse_unk=True, byte_fallback=model["byte_fallback"])
    assert (make_word_encoder(Tokenizer.from_str(json.dumps(parts))) is None) == (not model["byte_fallback"])
    if "without" in model:
        parts["model"]["vocab"]["nothing"] = parts["model"]["vocab"].pop(model["without"])
        assert make_word_encoder(Tokenizer.from_str(json.dumps(parts))) is None


@pytest.mark.parametrize("part", [(), ("model",), ("pre_tokenizer",)], ids=str)
def test_a_part_that_is_not_known_turns_it_off(tokenizer, part):
    class Newer:
        """A tokenizer as a later version of the library may describe it."""

        model = tokenizer.backend_tokenizer.model

        def to_str(self):
            parts = json.loads(tokenizer.backend_tokenizer.to_str())
            place = parts
            for name in part:
                place = place[name]
            place["of_tomorrow"] = True
            return json.dumps(parts)

    assert make_word_encoder(tokenizer.backend_tokenizer) is not None
    assert make_word_encoder(Newer()) is None
