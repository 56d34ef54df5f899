"""A dense model's MLP copied into experts: the start of a Mixtral (sparse upcycling, arXiv 2212.05055).

All experts of a layer are the same at first and the weights of those chosen add up to 1, so that the first loss is the
dense model's, whatever routers choose. These are drawn anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from llama_dyt.convert.decoder import parts_of
from llama_dyt.convert.weights import Stored, Weights
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.models import FAMILIES, build_config, empty_model, family_of, initial_tensor

TARGET = "mixtral_dyt"
_PRESET = "mixtral_8x2m"
_SEED = 0


@dataclass(frozen=True)
class Upcycled:
    """
    Attributes:
        experts: of a layer.
    """

    weights: Weights
    experts: int

    def __str__(self) -> str:
        return f"Each MLP copied into {self.experts} experts, two for each token; routers drawn anew"


def upcycle(weights: Weights, experts: int) -> Upcycled:
    """The weights of the Mixtral that computes what a dense model does.

    Raises:
        ConfigurationError: its layers have other parts than a Mixtral's besides, or it is none's that is dense.
    """
    dense, family = weights.config, FAMILIES.get(TARGET)
    source = family_of(dense)
    config = _config(dense, experts)
    parts = parts_of(source) if source.experts is None else None
    wanted = {name: tuple(held.shape) for name, held in empty_model(config).named_parameters()}
    plan: dict[str, tuple[str, ...]] = {}
    for number in range(config.num_hidden_layers if parts is not None else 0):
        layer = f"{source.layer_prefix}{number}."
        gate_up, down = (name for name in wanted if name.startswith(layer) and family.is_of_experts(name))
        plan[gate_up] = (f"{layer}{parts.gate}.weight", f"{layer}{parts.up}.weight")
        plan[down] = (f"{layer}{parts.down}.weight",)
    taken = {name for names in plan.values() for name in names}
    routers = {name for name in wanted if name not in plan and name not in weights.stored}
    misfits = sorted({*weights.stored} - taken - {*wanted}) or sorted(
        name for name in routers if len(wanted[name]) != 2 or wanted[name][0] != experts
    )
    if parts is None or misfits:
        reason = "the model has experts already" if parts is None else f"a Mixtral has nothing for {misfits[0]}"
        raise ConfigurationError(Problem("upcycle", experts, reason, "give a dense LLaMA or Mistral without biases"))
    some = next(iter(weights.stored.values()))
    stored: Mapping[str, Stored] = {
        name: Stored(shape, weights.stored[plan[name][0]].dtype, weights.stored[plan[name][0]].where)
        if name in plan
        else weights.stored.get(name) or Stored(shape, some.dtype, name)
        for name, shape in wanted.items()
    }

    def read(name: str) -> Tensor:
        if name in plan:
            one = torch.cat([weights.read(part) for part in plan[name]])
            return one.expand(experts, *one.shape).clone()
        if name in routers:
            return initial_tensor(name, wanted[name], config, _SEED).to(some.dtype)
        return weights.read(name)

    return Upcycled(replace(weights, config=config, stored=stored, read=read), experts)


def _config(dense, experts: int):
    """A Mixtral's with the figures of a dense model's."""
    template = build_config(_PRESET, dense.norm_type)
    kind = type(template)
    own = {name: value for name, value in dense.to_dict().items() if name in template.to_dict() and value is not None}
    for name in ("model_type", "architectures", "auto_map", "dtype", "transformers_version"):
        own.pop(name, None)
    return kind(**{**own, "num_local_experts": experts, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02})
