"""What a loader hands to the trainer: one optimizer step's batches of one data-parallel rank, prepared ahead.

The packed, the instruction and the synthetic loader share it, and the trainer sees nothing else.
"""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch

IGNORE_INDEX = -100
"""Label of a token that carries no loss: torch's and HuggingFace's own. `models/ops/loss.py`, which travels with saved
models and imports nothing of this part, has it too."""

MicroBatch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Step:
    """Everything for one optimizer step of one data-parallel rank.

    Attributes:
        micro_batches: one dict for each accumulated micro batch: input_ids and labels, both (batch, length) int64.
            Labels are aligned with input_ids (the model shifts them); -100 carries no loss. Where documents are kept
            apart also what `documents.DocumentsApart` adds.
        num_label_tokens: tokens that carry loss after that shift, in the GLOBAL batch (all ranks); at least 1.
        num_tokens: tokens that are not padding, in the global batch.
        position: JSON-able, where the data goes on after this step; give it to a loader as `state`.
        num_bad_lines: unusable records passed over since the run began (only with skip_bad_lines).
        sources: what each source of a mixture has given so far, such as {"wiki/tokens": 8192}; for the records.
        notices: what happened to the data in this step, in words for the log.
    """

    micro_batches: list[MicroBatch]
    num_label_tokens: int
    num_tokens: int
    position: dict
    num_bad_lines: int = 0
    sources: dict[str, int] = field(default_factory=dict)
    notices: tuple[str, ...] = ()


@dataclass(frozen=True)
class BatchShape:
    """How a global batch is dealt out: rank r takes rows r * rows and on, cut into `accumulation` micro batches."""

    batch_size: int
    accumulation: int = 1
    dp_rank: int = 0
    dp_size: int = 1

    @property
    def rows(self) -> int:
        """Sequences of one rank in a step."""
        return self.batch_size * self.accumulation

    @property
    def global_rows(self) -> int:
        return self.rows * self.dp_size

    @property
    def own_rows(self) -> slice:
        return slice(self.dp_rank * self.rows, (self.dp_rank + 1) * self.rows)


def make_micro_batch(input_ids: np.ndarray, labels: np.ndarray) -> MicroBatch:
    """Copies two (batch, length) integer arrays into int64 tensors of their own, so that no other rank's rows stay."""
    return {
        "input_ids": torch.from_numpy(np.array(input_ids, dtype=np.int64)),
        "labels": torch.from_numpy(np.array(labels, dtype=np.int64)),
    }


class _Failure:
    def __init__(self, error: BaseException):
        self.error = error


_END = object()


class Prefetcher(Iterator[Step]):
    """Runs an iterator of steps in a background thread, a few steps ahead.

    An exception of the iterator is raised by `next` in its turn, after the steps made before it. `close()` ends the
    thread; it is also called by `with`, by garbage collection, and at interpreter exit (a thread inside a native
    tokenizer at that moment would bring the process down).

    Args:
        make: makes the iterator; called in the thread.
        depth: steps held ready; bounds the memory.
    """

    def __init__(self, make: Callable[[], Iterator[Step]], depth: int = 2):
        self._queue: queue.Queue = queue.Queue(maxsize=depth)
        self._stop = threading.Event()
        self._last: object = None
        self._looked_at: list[object] = []
        # The thread must not hold `self`, or garbage collection would never end it.
        self._thread = threading.Thread(
            target=_produce, args=(make, self._queue, self._stop), name="llama_dyt-data", daemon=True
        )
        self._finalizer = weakref.finalize(self, _end, self._stop, self._thread)
        self._thread.start()

    def __next__(self) -> Step:
        if self._last is None:
            item = _END if self._stop.is_set() else self._looked_at.pop() if self._looked_at else self._queue.get()
            if isinstance(item, Step):
                return item
            self._last = item
        if isinstance(self._last, _Failure):
            raise self._last.error
        raise StopIteration

    def ready(self, seconds: float) -> bool:
        """Whether the next step, or the end, is there in so long: then `next` does not wait."""
        if self._last is None and not self._looked_at and not self._stop.is_set():
            try:
                self._looked_at.append(self._queue.get(timeout=seconds))
            except queue.Empty:
                return False
        return True

    def close(self) -> None:
        """Ends the thread. Steps not yet taken are dropped; the position of the last one taken tells where to go on."""
        self._last = self._last or _END
        self._finalizer()

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _produce(make, steps: queue.Queue, stop: threading.Event) -> None:
    def put(item) -> bool:
        while not stop.is_set():
            try:
                steps.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    try:
        for step in make():
            if not put(step):
                return
        put(_END)
    except BaseException as error:  # whatever it is belongs to the consumer; this thread has nobody to tell
        put(_Failure(error))


def _end(stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    if thread is not threading.current_thread():
        thread.join(timeout=10)
