"""Long documents encoded in pieces have the tokens that they have as a whole."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from llama_dyt.data.tokenizing import long_text
from llama_dyt.data.tokenizing.encode import encode_batch
from llama_dyt.data.tokenizing.long_text import LONG_CHARACTERS, cut_text, encode_in_pieces

TEXT = "".join(
    f"def area_{i}(width, height):\n    # {i * 7919} ünï 漢字\n\n\treturn width  *  height\n\n\nIt is {i} pieces.\n"
    for i in range(400)
)


class Fast:
    is_fast = True

    def __init__(self, backend):
        self.backend_tokenizer = backend


def byte_level():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=500, show_progress=False))
    return Fast(backend)


def with_a_space_before_each_text(tokenizer):
    """LLaMA's own way."""
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = None
    return Fast(backend)


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece with a space", "byte level"])
@pytest.mark.parametrize("longest", [100, 1000, 5000])
@pytest.mark.parametrize("text", [TEXT, TEXT.replace("\n", " ")], ids=["lines", "one line"])
def test_pieces_have_the_tokens_of_the_whole(tokenizer, kind, longest, text):
    if kind == "byte level":
        tokenizer = byte_level()
    elif kind == "sentencepiece with a space":
        tokenizer = with_a_space_before_each_text(tokenizer)
    whole = encode_batch(tokenizer, [text])[0]
    assert len(whole) > longest / 10
    longest_seen = 0

    def encode(texts):
        nonlocal longest_seen
        longest_seen = max(longest_seen, *map(len, texts))
        return encode_batch(tokenizer, texts)

    assert np.array_equal(encode_in_pieces(encode, text, longest), whole)
    assert longest_seen <= longest + 1


def test_text_without_a_place_to_cut_keeps_every_character():
    text = "0123456789" * 1000
    pieces = list(cut_text(text, 700))
    assert "".join(pieces) == text and max(map(len, pieces)) == 700


def test_encoding_a_batch_cuts_what_is_long(tokenizer, monkeypatch):
    monkeypatch.setattr(long_text, "LONG_CHARACTERS", 1000)
    texts = ["short", TEXT, "", "short too", "0123456789" * 1000]
    cut = encode_batch(tokenizer, texts)
    monkeypatch.setattr(long_text, "LONG_CHARACTERS", LONG_CHARACTERS)
    whole = encode_batch(tokenizer, texts)
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(cut, whole, strict=True))
