"""Which parameters decay. The optimizer itself (HybridAdam) belongs to the boosters."""

from __future__ import annotations

from typing import Any

from torch import nn


def parameter_groups(model: nn.Module, weight_decay: float, decay_all: bool) -> list[dict[str, Any]]:
    """Split a model's parameters into those that decay and those that do not.

    Args:
        decay_all: True decays every parameter, DyT's alpha, weight and embedding scale included, as the DyT authors
            do (reproduction mode). False leaves one-dimensional parameters alone, as most recipes do.

    Returns:
        One or two torch parameter groups; a group is left out if it would be empty (the engine does not take one).
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decaying = [p for p in parameters if decay_all or p.dim() > 1]
    resting = [p for p in parameters if not (decay_all or p.dim() > 1)]
    groups = [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": resting, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
