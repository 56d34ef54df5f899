"""How long this rank's decoder layers take for a forward pass: its own speed, which no other rank's waiting is in.

A whole step takes every rank the same time, as all wait for the slowest. What is within a layer waits for nobody, but
under tensor, sequence and expert parallelism and Gemini, where it waits for those that share the layer.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn


class LayerTimes:
    """Times the first forward of each layer in a step; on CUDA on the device, waiting for nothing.

    Hooks stand around a layer, outside of its compiled forward and inside of what a booster does before and after it.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[Any, Any]] = []

    @contextmanager
    def of(self, layers: Iterable[nn.Module], on_cuda: bool) -> Iterator[None]:
        """Time these layers inside.

        Args:
            on_cuda: that is where they compute.
        """
        now = _event if on_cuda else time.perf_counter
        begun: dict[nn.Module, Any] = {}
        ended: set[nn.Module] = set()

        def begin(layer: nn.Module, given: Any) -> None:
            if layer not in begun:  # a forward that backward repeats is none of them
                begun[layer] = now()

        def end(layer: nn.Module, given: Any, made: Any) -> None:
            if layer not in ended:
                ended.add(layer)
                self._spans.append((begun[layer], now()))

        with ExitStack() as hooks:
            for layer in layers:
                hooks.callback(layer.register_forward_pre_hook(begin).remove)
                hooks.callback(layer.register_forward_hook(end).remove)
            yield

    def take(self) -> float:
        """Seconds of one layer, the mean of all that were timed since this was last called; 0.0 where there were none.
        Waits until the device has come that far."""
        spans, self._spans = self._spans, []
        return sum(_between(*span) for span in spans) / len(spans) if spans else 0.0


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _between(begun: Any, ended: Any) -> float:
    if isinstance(ended, float):
        return ended - begun
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000
