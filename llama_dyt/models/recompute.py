"""Activation checkpointing: which decoder layers run again in the backward pass instead of keeping their activations.

The model, the memory estimate and the count of hardware FLOPs agree on the layers by asking here.
"""

from __future__ import annotations

from fractions import Fraction
from math import floor

from torch import nn

from llama_dyt.models.spec import family_of


def recomputed_layers(num_layers: int, share: float) -> list[int]:
    """The layers, counted from 0, that recompute when `share` of them (0 to 1) does: evenly spread, from the middle of
    each stretch.

    The rule is that of the DyT authors' trainer (IBM's fms-fsdp, `ac_handler.py`): of the first k layers as many
    recompute as k times the share, rounded, halves up. 1/2 takes the 1st, 3rd, 5th layer, 1/3 the 2nd, 5th, 8th.
    """
    exact = Fraction(share).limit_denominator(1000)  # 0.333… is meant to be 1/3, and halves must be seen exactly
    half = Fraction(1, 2)
    return [index for index in range(num_layers) if floor((index + 1) * exact + half) > floor(index * exact + half)]


def recompute_activations(model: nn.Module, share: float) -> None:
    """Have `share` of a causal LM's decoder layers (0 to 1) recompute. Call it before the model is boosted.

    The layers are transformers' GradientCheckpointingLayer, which look at an attribute of their own.
    """
    layers = family_of(model.config).layers_of(model)
    chosen = recomputed_layers(len(layers), share)
    if not chosen:
        return
    # Not reentrant: that kind's first pass makes no graph, and boosters put hooks on what layers return.
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for index, layer in enumerate(layers):
        layer.gradient_checkpointing = index in chosen
