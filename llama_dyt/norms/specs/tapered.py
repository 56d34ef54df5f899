"""A trained model's norms on their way to Dynamic Tanh: `convert.py --norm tapered`, then `--taper_steps`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llama_dyt.norms.norm_spec import FINAL, Gate, NormSpec
from llama_dyt.norms.specs.dyt import ALPHA_FIELDS, SATURATED
from llama_dyt.norms.specs.dyt import NORM as DYT
from llama_dyt.norms.specs.layernorm import NORM as LAYER_NORM
from llama_dyt.norms.specs.rmsnorm import NORM as RMS_NORM
from llama_dyt.norms.specs.unit_offset_rmsnorm import NORM as UNIT_OFFSET_RMS_NORM

_OVER: dict[str, NormSpec] = {norm.name: norm for norm in (RMS_NORM, UNIT_OFFSET_RMS_NORM, LAYER_NORM)}
"""The norms that there is a way from."""
_GATES = "taper_gates"
_TANH = "tanh_"
"""Before the names of Dynamic Tanh's parameters in a layer that has the norm's too."""


def build(config: Any, place: str) -> Any:
    from llama_dyt.norms.layers.tapered import TaperedLayerNorm, TaperedRMSNorm, TaperedUnitOffsetRMSNorm

    kinds = {RMS_NORM.name: TaperedRMSNorm, UNIT_OFFSET_RMS_NORM.name: TaperedUnitOffsetRMSNorm}
    layer = kinds.get(config.tapered_from, TaperedLayerNorm)
    return layer(config.hidden_size, config.eps_of_norms, getattr(config, ALPHA_FIELDS[place]), config.norm_bias)


def starting_value(parameter: str, config: Any, place: str) -> float:
    if parameter.startswith(_TANH):
        return DYT.starting_value(parameter.removeprefix(_TANH), config, place)
    return _OVER[config.tapered_from].starting_value(parameter, config, place)


def settle(config: Any) -> None:
    """Unless it is said, the norm is the family's own, and all gates are at 0."""
    DYT.settle(config)
    if getattr(config, "tapered_from", None) is None:
        config.tapered_from = config.plain_norm_type
    if config.tapered_from not in _OVER:
        raise ValueError(f"tapered_from is {config.tapered_from!r}; there is a way from {', '.join(_OVER)}")
    sites = config.num_hidden_layers * sum(place != FINAL for place in config.norm_places.values()) + 1
    gates = getattr(config, "taper_gates", None)
    if gates is None:
        config.taper_gates = [0.0] * sites
    elif len(gates) != sites or not all(0 <= gate <= 1 for gate in gates):
        raise ValueError(f"taper_gates has {len(gates)} numbers; it takes {sites}, one a norm, from 0 to 1")


def over(config: Any) -> Mapping[str, Any]:
    if config.norm_type not in _OVER:
        raise ValueError(f"there is a way from {', '.join(_OVER)}, not from {config.norm_type}")
    return {"tapered_from": config.norm_type}


def set_gate(layer: Any, gate: float) -> None:
    layer.gate.fill_(gate)


def probe(layer: Any, rows: Any) -> Mapping[str, Any]:
    alpha = layer.tanh_alpha.detach().float().reshape(())
    saturation = ((alpha * rows).abs() > SATURATED).float().mean()
    return {"alpha": alpha, "saturation": saturation, "gate": layer.gate.to(rows.device)}


def fit(inputs: Any, outputs: Any, config: Any, place: str) -> Mapping[str, Any]:
    return {f"{_TANH}{name}": value for name, value in DYT.fit(inputs, outputs, config, place).items()}


NORM = NormSpec(
    "tapered",
    __name__,
    build,
    starting_value,
    own_parameters=("bias", "tanh_alpha", "tanh_weight", "tanh_bias"),
    embedding_scale=True,
    config_fields=("tapered_from", _GATES, *DYT.config_fields),
    fit=fit,
    settle=settle,
    probe=probe,
    gate=Gate(
        becomes=DYT.name,
        parameters={name: f"{_TANH}{name}" for name in ("alpha", "weight", "bias")},
        over=over,
        field=_GATES,
        set=set_gate,
    ),
)
