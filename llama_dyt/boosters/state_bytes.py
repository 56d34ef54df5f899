"""What a rank really holds of a model's states, in bytes, counted from the storages of the tensors themselves: an
estimate of memory is worth what it was compared with."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor

from llama_dyt.boosters.boosted import Boosted


@dataclass(frozen=True)
class MeasuredBytes:
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


def measure_state_bytes(boosted: Boosted) -> MeasuredBytes:
    """Count what this rank holds now. No communication."""
    seen: set[int] = set()
    runtime = boosted.runtime
    return MeasuredBytes(
        weights=_bytes(runtime.working_weights(), seen),
        masters=_bytes(runtime.masters(), seen),
        moments=_bytes(runtime.moments(), seen),
        gradients=_bytes(runtime.gradients(), seen),
    )


def _bytes(tensors: Iterable[torch.Tensor], seen: set[int]) -> int:
    total = 0
    for tensor in tensors:
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        storage = own.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            total += storage.nbytes()
    return total
