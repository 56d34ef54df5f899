"""What a trained model is worth on held-out text: its loss and bits per byte, beside models that learn no context.

It looks at a finished checkpoint through HuggingFace's door, as a user would, and not at the run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM

from llama_dyt.data.formats.sources import TextSource
from llama_dyt.data.opening import open_data
from llama_dyt.data.tokenizing.encode import encode_batch, frame_document
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.training.evaluation.baselines import (
    count_text,
    gzip_bits_per_byte,
    model_bits_per_byte,
    unigram_bits_per_byte,
)
from llama_dyt.training.evaluation.windows import cut, loss_on

HELD_OUT_BYTES = 200_000
UNIGRAM_DOCUMENTS = 1_000


@dataclass(frozen=True)
class HeldOutScore:
    """Bits per byte of the same held-out text under three models; lower is better.

    Attributes:
        loss: the model's mean loss a token, nats.
        num_bytes: of the text.
    """

    loss: float
    model: float
    unigram: float
    gzip: float
    num_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.model:.3f} bits per byte on {self.num_bytes:,} bytes of unseen text (loss {self.loss:.3f}); "
            f"a unigram model {self.unigram:.3f}, gzip -9 {self.gzip:.3f}"
        )


class _Documents:
    """The first documents of a source, read once, to be walked by functions that take a source."""

    def __init__(self, source: TextSource, max_documents: int | None = None, max_bytes: int | None = None) -> None:
        self.texts: list[str] = []
        size = 0
        for values, _ in itertools.islice(source.iterate(), max_documents):
            if values[0]:
                self.texts.append(values[0])
                size += len(values[0].encode())
            if max_bytes is not None and size >= max_bytes:
                break

    def iterate(self, position: dict | None = None):
        return (((text,), {}) for text in self.texts)


def score_held_out(model_folder: Path, train: str, held_out: str, max_length: int) -> HeldOutScore:
    """Score a checkpoint's `model/` folder on a held-out dataset.

    Args:
        train, held_out: local datasets as `--dataset` takes them; the first UNIGRAM_DOCUMENTS of the training text give
            the unigram model its frequencies, the first HELD_OUT_BYTES of the held-out text are scored.
        max_length: sequence length the model was trained at.
    """
    tokenizer = load_tokenizer(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, trust_remote_code=False).eval()
    text = _Documents(open_data(held_out), max_bytes=HELD_OUT_BYTES)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    documents = [frame_document(ids, bos, eos) for ids in encode_batch(tokenizer, text.texts)]
    stream = np.concatenate(documents).astype(np.int64)
    loss = loss_on(model, list(cut(stream, max_length)), unscored=bos).mean
    counts = count_text(text, tokenizer)
    frequencies = count_text(_Documents(open_data(train), max_documents=UNIGRAM_DOCUMENTS), tokenizer)
    return HeldOutScore(
        loss=loss,
        model=model_bits_per_byte(loss, counts),
        unigram=unigram_bits_per_byte(frequencies, counts),
        gzip=gzip_bits_per_byte(text.texts),
        num_bytes=counts.num_bytes,
    )
