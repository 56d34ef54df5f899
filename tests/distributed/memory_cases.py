"""What the processes of `test_memory.py` run: a step, and then the bytes that model states, or gathering them, take."""

from __future__ import annotations

from llama_dyt.boosters.engine.host import peak_resident_bytes, reset_peak_resident_bytes

import ctypes
import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import psutil
import torch.distributed as dist

from llama_dyt.boosters.state_bytes import measure_state_bytes
from tests.distributed import norm_cases, small_run
from tests.distributed.cases import boost
from tests.distributed.small_run import Layout

SENDING = ("send", "gather", "all_gather", "all_gather_into_tensor")
"""Functions of torch.distributed by which a rank could give its part."""


def model_states(layout: Layout, precision: str, accumulation: int, num_layers: int) -> dict[str, int]:
    """Bytes this rank holds after its first step, by what `--dry_run` calls them; gradients before that step ends."""
    run = small_run.run_config(layout, precision, accumulation)
    boosted = boost(run, num_layers=num_layers)
    batches = small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size)
    boosted.forward_backward(next(batches))
    gradients = measure_state_bytes(boosted).gradients
    boosted.optimizer_step()
    held = measure_state_bytes(boosted)
    return {"parameters": held.weights, "gradients": gradients, "optimizer": held.optimizer_state}


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Counts calls of the functions of SENDING; not by a mock's own counter, which keeps what it was called with."""
    calls: Counter[str] = Counter()

    def counting(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    with ExitStack() as stack:
        for name in SENDING:
            stack.enter_context(mock.patch.object(dist, name, counting(name, getattr(dist, name))))
        yield calls


def gathering(layouts: list[Layout], precision: str) -> list[dict[str, float]]:
    """Of each layout, what this rank's resident memory grows by, at its peak, while the state is gathered as for a save
    of a model with tables of 40 MB; and how many messages it sends for that."""
    return [_gathering(layout, precision) for layout in layouts]


def _gathering(layout: Layout, precision: str) -> dict[str, float]:
    run = small_run.run_config(layout, precision)
    boosted = norm_cases.boost_with_long_tables(run, vocab_size=80_000)
    boosted.forward_backward(next(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size)))
    boosted.optimizer_step()
    gc.collect()
    give_back = ctypes.CDLL(None).malloc_trim  # what is freed and kept would hide, or be counted besides, what is new
    give_back(0)
    before = psutil.Process().memory_info().rss
    reset_peak_resident_bytes()
    names = list(boosted.state.sizes())
    with _counted() as messages:
        for _, tensors in boosted.state.gather(names):
            assert (tensors is not None) == boosted.grid.is_writer
            give_back(0)
    chunks = len(boosted.model.chunk_manager.get_chunks(boosted.model.fp16_params)) if "gemini" in str(layout) else 0
    return {
        "megabytes": (peak_resident_bytes() - before) / 2**20,
        "messages": messages.total(),
        "parameters": len(names),
        "chunks": chunks,
    }
