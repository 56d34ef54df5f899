"""Where in a slot each part lies that a rank holds of masters and moments: as it is, nothing gathered."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from llama_dyt.boosters.training_state import MOMENTS, OwnParts, TrainingState

_ALIGNMENT = 64
_FP32_BYTES = 4

Piece = tuple[str, str, int, tuple[int, ...]]
"""(parameter, "param" or moment, first byte, shape)"""


class OwnLayout:
    """The places of one rank's parts.

    Attributes:
        size: bytes in all.
    """

    def __init__(self, state: TrainingState, trained: Collection[str]) -> None:
        """`trained`: names of the parameters that are; of others nothing is kept."""
        self._begins: dict[tuple[str, str], int] = {}
        self._counts: dict[str, int] = {}
        self.size = 0
        for name, key, part in state.own_parts():
            if name not in trained or key != "param":
                continue
            self._counts[name] = part.numel()
            for place in ("param", *MOMENTS):  # moments are not there before the first step
                self._begins[name, place] = self.size
                self.size += -(-part.numel() * _FP32_BYTES // _ALIGNMENT) * _ALIGNMENT

    def copy(self, state: TrainingState, memory: torch.Tensor) -> list[Piece]:
        """Copy every part to its place; what is copied from a device may still be on its way.

        Args:
            memory: (size,) uint8.

        Returns:
            What was copied.
        """
        pieces: list[Piece] = []
        for name, key, part in state.own_parts():
            if name not in self._counts:
                continue
            assert part.dtype == torch.float32 and part.numel() == self._counts[name], f"{key} of {name}: {part.dtype}"
            piece = (name, key, self._begins[name, key], tuple(part.shape))
            _view(memory, piece).copy_(part, non_blocking=True)
            pieces.append(piece)
        return pieces


def parts_in(memory: torch.Tensor, pieces: Sequence[Sequence[Any]]) -> OwnParts:
    """What a slot holds, by name, as `TrainingState.take_own_parts` wants it; views of the memory.

    Args:
        pieces: of `OwnLayout.copy`, perhaps by way of JSON.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, key, begin, shape in pieces:
        found.setdefault(name, {})[key] = _view(memory, (name, key, begin, tuple(shape)))

    def parts(name: str) -> Mapping[str, torch.Tensor]:
        return found.get(name, {})

    return parts


def _view(memory: torch.Tensor, piece: Piece) -> torch.Tensor:
    _, _, begin, shape = piece
    return memory[begin : begin + math.prod(shape) * _FP32_BYTES].view(torch.float32).view(shape)
