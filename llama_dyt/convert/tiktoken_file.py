"""Llama 3's `tokenizer.model`, in tiktoken's form, as a HuggingFace tokenizer.

A line holds a token's bytes, in base 64, and its rank: of two neighbours whose bytes together are a token, those of the
lowest rank are joined first. HuggingFace's tokenizers know ranks of pairs; how the two agree is seen by comparing them.
How a text is cut into words, and the names of special tokens, stand in Meta's code (`llama/tokenizer.py` of Llama 3,
`models/llama3/tokenizer.py` since 3.1), not in the file.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama_dyt.core.errors import DataError

_LINE = re.compile(rb"([A-Za-z0-9+/]+=*) (\d+)\r?\n?")
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_NUM_SPECIAL = 256
_BEGIN, _END = "<|begin_of_text|>", "<|end_of_text|>"
_SPECIAL = (
    *(_BEGIN, _END, *(f"<|reserved_special_token_{number}|>" for number in range(4))),
    *("<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"),
)
_SPECIAL_SINCE_3_1 = (
    *(_BEGIN, _END, "<|reserved_special_token_0|>", "<|reserved_special_token_1|>", "<|finetune_right_pad_id|>"),
    *("<|step_id|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    "<|image|>",
)
_MOST_COMPARED = 4000
_HARD_WORDS = (
    "bookkeeper mississippi antidisestablishmentarianism aaaaaaa abababab I'm ISN'T 'tis",
    "def f(x):\n        return [x, 3.14159]\t# caf\u00e9 \u6f22\u5b57 \U0001f600\r\n\n  ---===!!!! https://a.b/c?d=%20",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0939\u093f\u0928\u094d\u0926\u0940 \u0e44\u0e17\u0e22 \u05e2\u05d1 "
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439",
    "  \n\n\t\t   x   \u2028\u3000\ufeff\x00\x7f <|eot_id|>",
)


def is_tiktoken(path: Path) -> bool:
    """Whether a file is in tiktoken's form."""
    with open(path, "rb") as file:
        return _LINE.fullmatch(file.readline()) is not None


def load_tiktoken(path: Path, since_3_1: bool) -> Any:
    """The tokenizer of a file, with Llama 3's special tokens behind its own.

    Args:
        since_3_1: the special tokens are Llama 3.1's and later ones'.

    Raises:
        DataError: the file is damaged, or HuggingFace's tokenizers do not encode as it does.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ranks = _read(path)
    letters = _letters()
    vocabulary = {"".join(letters[byte] for byte in token): rank for token, rank in ranks.items()}
    merges = [tuple("".join(letters[byte] for byte in part) for part in pair) for pair in _merges(ranks)]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_WORDS), "isolated"), byte_level])
    backend.decoder = decoders.ByteLevel()
    _compare(path, backend, ranks, {letter: byte for byte, letter in enumerate(letters)})
    named = _SPECIAL_SINCE_3_1 if since_3_1 else _SPECIAL
    first = 2 if since_3_1 else 5
    special = [*named, *(f"<|reserved_special_token_{first + n}|>" for n in range(_NUM_SPECIAL - len(named)))]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    begin = backend.token_to_id(_BEGIN)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{_BEGIN}:0 $A:0", pair=f"{_BEGIN}:0 $A:0 {_BEGIN}:1 $B:1", special_tokens=[(_BEGIN, begin)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        name_or_path=str(path.parent),  # a folder: large vocabularies are asked of the hub by any other name
        bos_token=_BEGIN,
        eos_token=_END,
        clean_up_tokenization_spaces=False,
    )


def _read(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file):
            match = _LINE.fullmatch(line)
            try:
                if match is None or int(match[2]) != number:
                    raise ValueError
                ranks[base64.b64decode(match[1], validate=True)] = number
            except (ValueError, binascii.Error):
                raise DataError(
                    f"tokenizer {path}: line {number + 1} is no token and its rank; copy it again"
                ) from None
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise DataError(f"tokenizer {path}: it has no token for the byte {missing[0]}; copy it again")
    return ranks


def _letters() -> list[str]:
    """The character that stands for each byte in HuggingFace's byte-level vocabularies (GPT-2's table)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


def _merges(ranks: dict[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """Every pair of tokens that makes a token, by that token's rank."""
    for token in sorted(ranks, key=ranks.get):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ranks and pair[1] in ranks]
        yield from sorted(known, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def _joined(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """tiktoken's way: join what makes the token of the lowest rank, the leftmost of several, until nothing does."""
    if word in ranks:
        return [ranks[word]]
    parts = [bytes([byte]) for byte in word]
    while len(parts) > 1:
        made = [ranks.get(first + second, len(ranks)) for first, second in zip(parts, parts[1:], strict=False)]
        best = min(made)
        if best == len(ranks):
            break
        at = made.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [ranks[part] for part in parts]


def _compare(path: Path, backend: Any, ranks: dict[bytes, int], bytes_of: dict[str, int]) -> None:
    tokens = list(ranks)
    some = [token.decode("utf-8", "ignore") for token in tokens[:: -(-len(tokens) // _MOST_COMPARED)]]
    few: Sequence[str] = ["".join(some[first : first + 50]) for first in range(0, len(some), 50)]
    for text in (*_HARD_WORDS, *few):
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        expected = [id for word in words for id in _joined(bytes(bytes_of[letter] for letter in word), ranks)]
        if backend.encode(text, add_special_tokens=False).ids != expected:
            raise DataError(
                f"tokenizer {path}: HuggingFace's tokenizers cannot be made to encode as this file does, such as "
                f"{text[:40]!r}; give --tokenizer the folder of the same model for HuggingFace"
            )
