"""Batches of random token ids for the benchmark: no text, no tokenizer, the same interface."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.loaders.step import BatchShape, Prefetcher, Step, make_micro_batch


class SyntheticBatches(Prefetcher):
    """Iterates steps of uniformly random ids for one data-parallel rank.

    A row depends on the seed, the step and its place in the global batch only, so ranks differ and any number of them
    sees the same global batches.

    Args:
        vocab_size: ids are drawn from [0, vocab_size).
        num_steps: steps to deliver in all; None for no end.
        state: `Step.position` to go on from.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        batch_size: int,
        accumulation: int = 1,
        dp_rank: int = 0,
        dp_size: int = 1,
        num_steps: int | None = None,
        state: dict | None = None,
        *,
        seed: int = 42,
        prefetch: int = 2,
    ):
        if max_length < 2:
            raise ConfigurationError(f"--max_length is {max_length}; a sequence needs at least 2 tokens")
        shape = BatchShape(batch_size, accumulation, dp_rank, dp_size)
        first = state["step"] if state else 0
        super().__init__(lambda: _steps(vocab_size, max_length, shape, first, num_steps, seed), prefetch)


def _steps(vocab_size, max_length, shape: BatchShape, first: int, num_steps: int | None, seed: int) -> Iterator[Step]:
    rows = range(shape.own_rows.start, shape.own_rows.stop)
    num_tokens = shape.global_rows * max_length
    step = first
    while num_steps is None or step < num_steps:
        ids = np.stack([np.random.default_rng((seed, step, row)).integers(0, vocab_size, max_length) for row in rows])
        parts = np.split(ids, shape.accumulation)
        step += 1
        batches = [make_micro_batch(part, part) for part in parts]
        yield Step(batches, num_tokens - shape.global_rows, num_tokens, {"step": step, "tokens": step * num_tokens})
