"""Dynamic Tanh: where its alphas start, what is watched of it, and its flags."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_dyt.config.options import option
from llama_dyt.norms.alphas import default_alphas
from llama_dyt.norms.norm_spec import ATTENTION, FEED_FORWARD, FINAL, NormSpec

ALPHA_FIELDS: dict[str, str] = {
    ATTENTION: "attn_alpha_init_value",
    FEED_FORWARD: "ffn_alpha_init_value",
    FINAL: "dec_alpha_init_value",
}
"""Place → the field that says where alpha starts there."""

SATURATED = 2.0
"""|alpha·x| beyond which tanh counts as saturated: its slope there is 0.07. A site that is saturated passes no gradient
to what is before it; 2604.23434 finds that this share early in a run predicts a collapse."""


@dataclass(frozen=True)
class DytSettings:
    """Where the alphas of Dynamic Tanh start."""

    attn_alpha_init_value: float | None = option(
        None, "Initial alpha of the DyT before attention; none takes the paper's value for the width.", above=0
    )
    ffn_alpha_init_value: float | None = option(
        None,
        "Initial alpha of the DyT before the feed-forward block; none takes the paper's value for the width.",
        above=0,
    )
    dec_alpha_init_value: float | None = option(
        None, "Initial alpha of the decoder's final DyT; none takes the paper's value for the width.", above=0
    )


def build(config: Any, place: str) -> Any:
    from llama_dyt.norms.layers.dynamic_tanh import DynamicTanh

    alpha = getattr(config, ALPHA_FIELDS[place])
    folded = place in (getattr(config, "folded_norms", None) or ())
    return DynamicTanh(config.hidden_size, alpha_init=alpha, bias=config.norm_bias and not folded, folded=folded)


def starting_value(parameter: str, config: Any, place: str) -> float:
    return {"alpha": getattr(config, ALPHA_FIELDS[place]), "weight": 1.0, "bias": 0.0}[parameter]


def settle(config: Any) -> None:
    """Alphas that were left open start by the width, from the paper's table."""
    attention, others = default_alphas(config.hidden_size)
    for field, default in zip(ALPHA_FIELDS.values(), (attention, others, others), strict=True):
        value = getattr(config, field)
        if value is None:
            setattr(config, field, default)
        elif not value > 0:
            raise ValueError(f"{field} is {value}; alpha starts above 0 (at 0 the layer's output is 0)")


def probe(layer: Any, rows: Any) -> Mapping[str, Any]:
    alpha = layer.alpha.detach().float().reshape(())
    return {"alpha": alpha, "saturation": ((alpha * rows).abs() > SATURATED).float().mean()}


def fit(inputs: Any, outputs: Any, config: Any, place: str) -> Mapping[str, Any]:
    from llama_dyt.norms.fitting import fit_dynamic_tanh

    return fit_dynamic_tanh(inputs, outputs, config.norm_bias)


NORM = NormSpec(
    "dyt",
    __name__,
    build,
    starting_value,
    own_parameters=("alpha",),
    folds=("weight", "bias"),
    embedding_scale=True,
    config_fields=tuple(ALPHA_FIELDS.values()),
    fit=fit,
    settle=settle,
    probe=probe,
    settings=DytSettings,
)
