"""Copies of a training's own memory, made in a thread while forward and backward go on, which only read it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch

Pair = tuple[torch.Tensor, torch.Tensor]
"""(where to, what), of one shape and type; the first on the host."""


class Copying(threading.Thread):
    """Begins at once.

    Args:
        pairs: whose second is not changed before `wait` has returned.
        then: done afterwards, in the thread.
    """

    def __init__(self, pairs: Sequence[Pair], then: Callable[[], None]) -> None:
        super().__init__(name="llama_dyt-copying", daemon=True)
        self._pairs = pairs
        self._then = then
        self._copied = threading.Event()
        self._failure: Exception | None = None
        self._streams = _streams(pairs)
        self.start()

    def wait(self) -> None:
        """Until all is copied.

        Raises:
            Exception: what went wrong over it.
        """
        self._copied.wait()
        if self._failure is not None:
            raise self._failure

    def run(self) -> None:
        try:
            for place, tensor in self._pairs:
                self._copy(place, tensor)
            for stream, _ in self._streams.values():
                stream.synchronize()
        except Exception as error:
            self._failure = error
            return
        finally:
            self._pairs = ()
            self._copied.set()
        self._then()

    def _copy(self, place: torch.Tensor, tensor: torch.Tensor) -> None:
        if tensor.device.type == "cpu":
            # One thread, without Python's lock: torch would take as many as it computes with.
            np.copyto(place.numpy(), tensor.detach().numpy())
            return
        stream, ready = self._streams[tensor.device]
        with torch.cuda.stream(stream):
            stream.wait_event(ready)
            place.copy_(tensor, non_blocking=True)  # at the bus's speed where the place was locked


def lock_for_gpu(place: torch.Tensor) -> None:
    """Have a GPU copy into this memory by itself: the driver keeps its pages where they are, as long as the process
    lives. Where it will not, copies go by way of the driver's own buffers; without a GPU nothing is done."""
    if torch.cuda.is_initialized():
        torch.cuda.cudart().cudaHostRegister(place.data_ptr(), place.nbytes, 0)


def _streams(pairs: Sequence[Pair]) -> dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.Event]]:
    """For each device a stream beside the one that trains, and when what that was asked for up to now is done."""
    streams = {}
    for device in {tensor.device for _, tensor in pairs if tensor.device.type == "cuda"}:
        ready = torch.cuda.Event()
        ready.record(torch.cuda.current_stream(device))
        streams[device] = torch.cuda.Stream(device), ready
    return streams
