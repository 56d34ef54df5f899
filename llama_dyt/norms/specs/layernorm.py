"""LayerNorm, with a bias: Phi's own norm."""

from __future__ import annotations

from typing import Any

from llama_dyt.norms.norm_spec import NormSpec


def build(config: Any, place: str) -> Any:
    from llama_dyt.norms.layers.layer_norm import LayerNorm

    return LayerNorm(config.hidden_size, eps=config.eps_of_norms)


def starting_value(parameter: str, config: Any, place: str) -> float:
    return {"weight": 1.0, "bias": 0.0}[parameter]


NORM = NormSpec("layernorm", __name__, build, starting_value, own_parameters=("bias",))
