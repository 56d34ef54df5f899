"""Mixtral: LLaMA's shape, with experts for an MLP and a router that sends each token to some of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llama_dyt.config.options import option
from llama_dyt.models.model_spec import FilePart
from llama_dyt.models.size import Size
from llama_dyt.models.spec import Cut, ModelSpec

_MODELING = "llama_dyt.models.mixtral"
_BLOCK = "mlp"
_ROUTER, _COLUMN, _ROW = f"{_BLOCK}.gate.weight", f"{_BLOCK}.experts.gate_up_proj", f"{_BLOCK}.experts.down_proj"
_IN_FILES = "block_sparse_moe"
_PLACES = {"w1": (_COLUMN, 0), "w3": (_COLUMN, 1), "w2": (_ROW, None)}
"""A matrix of an expert in the hub's files → the tensor that it is in, and which half of its rows it is."""
_EXPERT = re.compile(rf"(.*\.)(?:{_IN_FILES}|{_BLOCK})\.experts\.(\d+)\.(w[123])\.weight")
_GATE = re.compile(rf"(.*\.){_IN_FILES}\.gate\.weight")
_ROUTING = {"num_local_experts": 8, "num_experts_per_tok": 2}


def _size(*figures: int, balance: float, theta: float = 1e6, max_length: int = 32768, vocab: int = 32000) -> Size:
    return Size(
        *figures,
        vocab_size=vocab,
        max_length=max_length,
        rope_theta=theta,
        others={**_ROUTING, "router_aux_loss_coef": balance},
    )


@dataclass(frozen=True)
class MixtralSettings:
    """Experts and their routers; each becomes the field of the config that has its name."""

    num_local_experts: int | None = option(
        None, "Mixtral: experts of a layer; none is the model's own.", spellings=("num_experts",), at_least=1
    )
    num_experts_per_tok: int | None = option(
        None, "Mixtral: experts that each token is sent to; none is the model's own.", at_least=1
    )
    router_aux_loss_coef: float | None = option(
        None,
        "Mixtral: coefficient of the loss that has routers choose evenly; none is the model's own, 0 leaves it out.",
        at_least=0,
    )
    router_z_loss_coef: float | None = option(
        None, "Mixtral: coefficient of the z-loss of the routers' logits; none is the model's own.", at_least=0
    )
    router_jitter_noise: float | None = option(
        None,
        "Mixtral: training multiplies what routers and experts read by numbers from 1 ± this; none is the model's own.",
        at_least=0,
        at_most=0.99,
    )
    expert_capacity_factor: float | None = option(
        None,
        "Mixtral: an expert takes no more tokens of a rank's micro batch than this times an even share, and those "
        "beyond have nothing of it; none takes all, dropless.",
        spellings=("capacity_factor", "moe_expert_capacity_factor"),
        above=0,
    )


class _Mixtral(ModelSpec):
    def read_by(self, norm: str) -> tuple[str, ...]:
        of_experts = (_ROUTER.removesuffix(".weight"), _COLUMN)
        return super().read_by(norm) + (of_experts if norm == self.layer_norms[-1] else ())

    def cut_of(self, name: str) -> Cut | None:
        if name.endswith(_COLUMN):
            return "column"
        return "row" if name.endswith(_ROW) else super().cut_of(name)

    def cut_dimension(self, name: str) -> int:
        # The first dimension of both is the experts'.
        return super().cut_dimension(name) + self.is_of_experts(name)

    def part_in_files(self, name: str) -> FilePart | None:
        if (expert := _EXPERT.fullmatch(name)) is not None:
            layer, number, matrix = expert.groups()
            whole, half = _PLACES[matrix]
            return FilePart(name, f"{layer}{whole}", int(number), half)
        router = _GATE.fullmatch(name)
        return FilePart(name, f"{router[1]}{_ROUTER}") if router is not None else None

    def parts_for_files(self, name: str, shape: tuple[int, ...]) -> list[FilePart]:
        if name.endswith(_ROUTER):
            return [FilePart(f"{name.removesuffix(_ROUTER)}{_IN_FILES}.gate.weight", name)]
        return [
            FilePart(f"{name.removesuffix(whole)}{_IN_FILES}.experts.{expert}.{matrix}.weight", name, expert, half)
            for matrix, (whole, half) in _PLACES.items()
            if name.endswith(whole)
            for expert in range(shape[0])
        ]

    def size_in(self, fields: Mapping[str, Any]) -> Size:
        size = super().size_in(fields)
        own = {name: fields[name] for name in (*_ROUTING, "router_aux_loss_coef") if name in fields}
        return Size(**{**vars(size), "others": {**size.others, **own}})

    def is_of_experts(self, name: str) -> bool:
        return name.endswith((_COLUMN, _ROW))

    def num_experts(self, size: Size, given: Mapping[str, Any]) -> int:
        return given.get("num_local_experts") or size.others.get("num_local_experts", 8)

    def flops_per_token(self, config: Any, sequence_length: int) -> float:
        """As LLaMA's, of the experts that a token is sent to."""
        return super().flops_per_token(config, min(sequence_length, config.sliding_window or sequence_length))

    def mlp_matmul_parameters(self, config: Any) -> int:
        expert = super().mlp_matmul_parameters(config)
        return config.num_experts_per_tok * expert + config.num_local_experts * config.hidden_size

    def mlp_activations(self, config: Any) -> int:
        # What each expert reads and gives, and what it keeps; the routers' logits and probabilities.
        expert = 2 * config.hidden_size + super().mlp_activations(config)
        return config.num_experts_per_tok * expert + 2 * config.num_local_experts

    def idle_parameters(self, config: Any) -> int:
        idle = config.num_local_experts - config.num_experts_per_tok
        return config.num_hidden_layers * idle * super().mlp_matmul_parameters(config)


FAMILY = _Mixtral(
    name="mixtral_dyt",
    in_words="Mixtral",
    config_class=f"{_MODELING}:MixtralDytConfig",
    decoder_class=f"{_MODELING}:MixtralDytModel",
    causal_lm_class=f"{_MODELING}:MixtralDytForCausalLM",
    aliases=("mixtral",),
    plain_type="mixtral",
    settings=MixtralSettings,
    presets={
        "mixtral_8x7b": _size(4096, 32, 32, 8, 14336, balance=0.02),
        "mixtral_8x22b": _size(6144, 56, 48, 8, 16384, balance=0.001, max_length=65536),
        # Small enough to train on a laptop's CPU.
        "mixtral_8x2m": _size(288, 6, 6, 6, 384, balance=0.02, theta=1e4, max_length=1024),
    },
    preset_aliases={"8x7b": "mixtral_8x7b", "8x22b": "mixtral_8x22b"},
    preset_spellings={"mixtral_tiny": "mixtral_8x2m"},
    column_parallel=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    row_parallel=("self_attn.o_proj",),
    experts=_BLOCK,
    auxiliary_losses=True,
)
