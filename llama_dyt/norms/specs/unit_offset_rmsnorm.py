"""Gemma's own norm: RMSNorm whose weight is stored less 1."""

from __future__ import annotations

from typing import Any

from llama_dyt.norms.norm_spec import NormSpec


def build(config: Any, place: str) -> Any:
    from llama_dyt.norms.layers.unit_offset_rms_norm import UnitOffsetRMSNorm

    return UnitOffsetRMSNorm(config.hidden_size, eps=config.eps_of_norms)


def starting_value(parameter: str, config: Any, place: str) -> float:
    return 0.0


NORM = NormSpec("unit_offset_rmsnorm", __name__, build, starting_value, weight_offset=1.0)
