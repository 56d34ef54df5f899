"""A small real tokenizer for all tests of the data layer."""

import pytest

from llama_dyt.data.tokenizing.tokenizer import train_sentencepiece

TEXT = (
    "def area(width, height):\n    return width * height\n\n\nThe quick brown fox jumps over the lazy dog.\n"
    "for item in range(10):\n\tprint(item, 'value')\n"
)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    return train_sentencepiece([TEXT * 20], tmp_path_factory.mktemp("tokenizer"), vocab_size=330)
