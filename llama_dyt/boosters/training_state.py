"""The state of a boosted run as whole tensors, as types: what checkpoints ask of any strategy; no engine in it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Protocol

import torch

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's two moments, by the names that torch and the engine's HybridAdam give them."""


class Readable(Protocol):
    """A whole tensor of which parts can be had: a torch.Tensor, a stored one, or starting values yet to be drawn."""

    def __getitem__(self, index: slice | tuple[slice, ...]) -> torch.Tensor:
        """A part, in fp32 on the host."""
        ...


Read = Callable[[str], Mapping[str, Readable]]
"""Parameter name → "param", and perhaps Adam's moments."""

OwnParts = Callable[[str], Mapping[str, torch.Tensor]]
"""Parameter name → what `own_parts` gave of it, by "param" and moment: each in the shape it had; empty for none."""


class TrainingState(Protocol):
    """The state of a boosted run as whole fp32 tensors under HuggingFace names: what a checkpoint needs.

    `gather` and `gradients` are collective over the ranks of a pipeline stage: all call them, with the same names in
    the same order; only the stage's writer gets tensors, the others None.
    """

    def sizes(self) -> dict[str, int]:
        """Names of the trained parameters this rank's pipeline stage holds, in the model's order, and their bytes in
        fp32."""
        ...

    def own_parts(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        """(name, "param" or moment, what of it this rank holds), in any shape, of frozen parameters too. No
        communication, no copies."""
        ...

    def copies(self) -> Iterator[tuple[Hashable, str, torch.Tensor]]:
        """(whose, what, this rank's part) of masters, moments and working weights where these are others: ranks that
        have the same `whose` must hold the same bits of each `what`, which names the parameter. No communication, no
        copies; between steps."""
        ...

    def take_own_parts(self, parts: OwnParts) -> None:
        """Fill masters and moments with what `own_parts` gave of the same rank in the same layout, and make working
        weights the rounded masters. Collective; parameters of which nothing is given stay as they are.
        """
        ...

    def gather(self, names: list[str], lend: bool = False) -> Iterator[tuple[str, dict[str, torch.Tensor] | None]]:
        """Whole fp32 master ("param") and moments of each of `names` on the host, one parameter at a time.

        Moments are zeros before the first optimizer step.

        Args:
            lend: a tensor may be the training's own memory, on any device: to be copied before the next step.
        """
        ...

    def scatter(self, read: Read) -> None:
        """Fill masters, moments and working weights, frozen ones too, from whole tensors.

        `read(name)` gives "param" and, where a run is resumed rather than started from weights, the moments. Every rank
        indexes the part it holds; no communication.
        """
        ...

    def gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Whole fp32 gradient of each trained parameter held, mean over data-parallel ranks, loss scale removed.

        For tests and diagnosis, between the backward of the last micro batch and the optimizer's step.
        """
        ...

    def optimizer_steps(self) -> int:
        """Adam steps taken so far; skipped ones do not count."""
        ...

    def set_optimizer_steps(self, steps: int) -> None:
        """Set Adam's step count, which its bias correction needs; call after `scatter`."""
        ...
