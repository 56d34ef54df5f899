"""What a rank really holds of a model's states, in bytes, counted from the storages of the tensors themselves.

Its own file because where a plugin keeps its masters, moments and gradients is known here and nowhere else, and because
an estimate of memory is worth what it was compared with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from colossalai.zero import GeminiOptimizer, LowLevelZeroOptimizer

from .boosted import Boosted
from .interface import MOMENTS


@dataclass(frozen=True)
class HeldBytes:
    """Bytes of one rank; a storage that serves for two things is counted under the first.

    Attributes:
        weights: what forward and backward work with; between steps, without what is gathered for them.
        gradients: 0 unless between backward and optimizer step, and where they take the weights' place.
        masters: fp32 weights besides.
        moments: of Adam.
    """

    weights: int
    gradients: int
    masters: int
    moments: int

    @property
    def optimizer_state(self) -> int:
        return self.masters + self.moments


def held_bytes(boosted: Boosted) -> HeldBytes:
    """Count what this rank holds now. No communication."""
    seen: set[int] = set()
    return HeldBytes(
        weights=_bytes(_weights(boosted), seen),
        masters=_bytes(_masters(boosted), seen),
        moments=_bytes(_moments(boosted), seen),
        gradients=_bytes(_gradients(boosted), seen),
    )


def _bytes(tensors: Iterable[torch.Tensor], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()  # a DTensor's own part
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total


def _weights(boosted: Boosted) -> Iterator[torch.Tensor]:
    yield from (parameter.data for parameter in boosted.module.parameters())
    yield from (chunk.payload for chunk in _chunks(boosted))


def _masters(boosted: Boosted) -> Iterator[torch.Tensor]:
    for group in boosted.optimizer.optim.param_groups:
        yield from (parameter.data for parameter in group["params"])
    yield from (chunk.paired_chunk.payload for chunk in _chunks(boosted))


def _moments(boosted: Boosted) -> Iterator[torch.Tensor]:
    for state in boosted.optimizer.optim.state.values():
        yield from (state[moment] for moment in MOMENTS if moment in state)


def _gradients(boosted: Boosted) -> Iterator[torch.Tensor]:
    optimizer = boosted.optimizer
    yield from (parameter.grad for parameter in boosted.module.parameters() if parameter.grad is not None)
    if isinstance(optimizer, LowLevelZeroOptimizer):
        for store in optimizer.pg_to_grad_store.values():
            for slices_of in store._grads_of_params.values():
                for slices in slices_of.values():
                    yield from slices
    yield from (chunk.grad_chunk.payload for chunk in _chunks(boosted) if chunk.grad_chunk is not None)


def _chunks(boosted: Boosted) -> tuple[Any, ...]:
    """Gemini's chunks of working weights."""
    if not isinstance(boosted.optimizer, GeminiOptimizer):
        return ()
    return boosted.model.chunk_manager.get_chunks(boosted.model.fp16_params)
