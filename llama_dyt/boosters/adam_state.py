"""What stands in Adam's state, read and set the same way for every strategy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from llama_dyt.boosters.training_state import MOMENTS


def moments_of(name: str, state: Mapping[str, Any]) -> Iterator[tuple[str, str, torch.Tensor]]:
    """For `TrainingState.own_parts`, from one parameter's entry in Adam's state."""
    yield from ((name, moment, state[moment]) for moment in MOMENTS if moment in state)


def adam_steps(adam: torch.optim.Optimizer) -> int:
    """Steps an Adam has taken: the same for all of its parameters, and 0 before it has any state."""
    return next((int(state.get("step", 0)) for state in adam.state.values()), 0)


def set_adam_steps(adam: torch.optim.Optimizer, steps: int) -> None:
    """Set the step count of every parameter that has a state."""
    for state in adam.state.values():
        state["step"] = steps
