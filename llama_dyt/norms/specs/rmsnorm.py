"""RMSNorm, the baseline."""

from __future__ import annotations

from typing import Any

from llama_dyt.norms.norm_spec import NormSpec


def build(config: Any, place: str) -> Any:
    from llama_dyt.norms.layers.rms_norm import RMSNorm

    return RMSNorm(config.hidden_size, eps=config.eps_of_norms)


def starting_value(parameter: str, config: Any, place: str) -> float:
    return 1.0


NORM = NormSpec("rmsnorm", __name__, build, starting_value)
