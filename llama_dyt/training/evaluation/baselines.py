"""What a trained model's bits per byte are worth: a unigram model and gzip on the same held-out text.

These are measures of text, not of a run; nothing here knows about batches.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from llama_dyt.data.formats.sources import TextSource
from llama_dyt.data.tokenizing.encode import encode_batch
from llama_dyt.data.tokenizing.tokenizer import vocabulary_size

_BATCH_DOCUMENTS = 256


@dataclass(frozen=True)
class TextCounts:
    """Counts over a corpus.

    Attributes:
        tokens: how often each id occurs, (vocabulary,) int64; one EOS a document, no BOS.
        num_documents, num_bytes: documents, and bytes of their text in UTF-8.
    """

    tokens: np.ndarray
    num_documents: int
    num_bytes: int

    @property
    def num_tokens(self) -> int:
        return int(self.tokens.sum())


def count_text(source: TextSource, tokenizer) -> TextCounts:
    """Walks a source once and counts its tokens, documents and bytes; empty documents are passed over."""
    counts = np.zeros(vocabulary_size(tokenizer), np.int64)
    num_documents = num_bytes = 0
    for texts in _batches(values[0] for values, _ in source.iterate() if values[0]):
        for ids in encode_batch(tokenizer, texts):
            counts += np.bincount(ids, minlength=len(counts))
        num_documents += len(texts)
        num_bytes += sum(len(text.encode()) for text in texts)
    counts[tokenizer.eos_token_id] += num_documents
    return TextCounts(counts, num_documents, num_bytes)


def _batches(texts: Iterable[str]) -> Iterable[list[str]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) == _BATCH_DOCUMENTS:
            yield batch
            batch = []
    if batch:
        yield batch


def unigram_bits_per_byte(train: TextCounts, held_out: TextCounts) -> float:
    """Bits per byte of held-out text under the training corpus' token frequencies (one added to each, so none is 0)."""
    probability = (train.tokens + 1) / (train.num_tokens + len(train.tokens))
    return float(-(held_out.tokens * np.log2(probability)).sum() / held_out.num_bytes)


def gzip_bits_per_byte(texts: Iterable[str]) -> float:
    """Bits per byte of the texts packed together by gzip at its strongest (9)."""
    plain = "".join(texts).encode()
    return 8 * len(gzip.compress(plain, compresslevel=9, mtime=0)) / len(plain)


def model_bits_per_byte(mean_loss: float, held_out: TextCounts) -> float:
    """Bits per byte of a model whose mean loss a token (nats) on the held-out text is `mean_loss`.

    The loss is charged for every token of the text and each document's EOS, also for the few that open a sequence and
    are never predicted.
    """
    return bits_per_byte(mean_loss, held_out.num_tokens, held_out.num_bytes)


def bits_per_byte(mean_loss: float, num_tokens: int, num_bytes: int) -> float:
    """Bits per byte of a text whose tokens have a mean loss, nats; comparable between tokenizers, unlike perplexity."""
    return mean_loss / math.log(2) * num_tokens / num_bytes
