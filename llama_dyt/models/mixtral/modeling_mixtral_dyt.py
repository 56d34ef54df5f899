"""The Mixtral decoder with norms by name, as transformers classes: LLaMA's layers with experts for an MLP.

Names and shapes are transformers' own: `mlp.gate.weight` (E, H), `mlp.experts.gate_up_proj` (E, 2F, H),
`mlp.experts.down_proj` (E, H, F). A saved model carries it along, with the few modules it imports from this package.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.activations import ACT2FN

from llama_dyt.models.llama.modeling_llama_dyt import (
    LlamaDytAttention,
    LlamaDytDecoderLayer,
    LlamaDytForCausalLM,
    LlamaDytModel,
)
from llama_dyt.models.mixtral.configuration_mixtral_dyt import MixtralDytConfig
from llama_dyt.models.ops.capacity import capacity_of, within_capacity
from llama_dyt.models.ops.grouped_linear import grouped_linear
from llama_dyt.models.ops.routing import RoutingBoard, RoutingPass


class MixtralDytRouter(nn.Module):
    """Scores each token for each expert, in fp32 whatever the model is in."""

    def __init__(self, config: MixtralDytConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_local_experts, config.hidden_size))

    def forward(self, tokens: Tensor) -> Tensor:
        """(tokens, hidden_size) to (tokens, experts) fp32 logits."""
        return F.linear(tokens.float(), self.weight.float())


class MixtralDytExperts(nn.Module):
    """The experts of a layer, each a SwiGLU; all tokens of an expert are one group of rows.

    Attributes:
        weight_gradient_share: what gradients of the weights are multiplied by: set by whoever has tokens of several
            ranks computed here and averages over fewer.
    """

    weight_gradient_share: float = 1.0

    def __init__(self, config: MixtralDytConfig):
        super().__init__()
        experts, hidden, inner = config.num_local_experts, config.hidden_size, config.intermediate_size
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))
        self.act_fn = ACT2FN[config.hidden_act]

    def cuts(self) -> list[tuple[nn.Parameter, int, int]]:
        """How units can be spread over ranks: each parameter, the dimension that units lie along, and how often they do
        one behind the other."""
        return [(self.gate_up_proj, 1, 2), (self.down_proj, 2, 1)]

    def forward(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """
        Args:
            tokens: (tokens, hidden_size).
            chosen: (tokens, k), the experts of each; the number of experts where a choice has no place.
            weights: (tokens, k) fp32, by which their outputs are added up.
        """
        order = chosen.flatten().argsort(stable=True)
        ends = ends_of_groups(chosen, len(self.gate_up_proj))
        outputs = self.of_rows(tokens[order // chosen.shape[1]], ends)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        outputs = outputs[places].view(*chosen.shape, -1)
        return (outputs * weights[..., None]).sum(1).to(tokens.dtype)

    def of_rows(self, rows: Tensor, ends: Tensor) -> Tensor:
        """(rows, hidden_size) to the same: those of each expert of this module, in order.

        Args:
            ends: as for `grouped_linear`.
        """
        share = self.weight_gradient_share
        gate, up = grouped_linear(rows, self.gate_up_proj, ends, share).chunk(2, dim=-1)
        return grouped_linear(self.act_fn(gate) * up, self.down_proj, ends, share)


def ends_of_groups(chosen: Tensor, num_experts: int) -> Tensor:
    """(experts,) int32: where the rows of each expert end, once they are sorted by expert; those of none come last."""
    counts = torch.zeros(num_experts + 1, dtype=torch.int64, device=chosen.device)
    counts.scatter_add_(0, chosen.flatten(), torch.ones_like(chosen.flatten()))
    return counts[:-1].cumsum(0).int()


class MixtralDytSparseMoeBlock(nn.Module):
    """Router and experts of a layer."""

    def __init__(self, config: MixtralDytConfig):
        super().__init__()
        self.top_k = config.num_experts_per_tok
        self.jitter_noise = config.router_jitter_noise
        self.capacity_factor = config.expert_capacity_factor
        self.gate = MixtralDytRouter(config)
        self.experts = MixtralDytExperts(config)

    def forward(
        self, hidden_states: Tensor, routing: RoutingPass | None = None, layer: int = 0, auxiliary_weight: float = 1.0
    ) -> Tensor:
        """(batch, sequence, hidden_size) to the same.

        Args:
            routing: of the pass through the layers, which counts and has the routers' losses; None: neither.
            layer: this one's number.
            auxiliary_weight: the layer's.
        """
        if self.training and self.jitter_noise:
            noise = torch.empty_like(hidden_states).uniform_(1.0 - self.jitter_noise, 1.0 + self.jitter_noise)
            hidden_states = hidden_states * noise
        tokens = hidden_states.flatten(0, -2)
        logits = self.gate(tokens)
        if routing is not None:
            logits = routing.balanced(logits, auxiliary_weight)
        weights, chosen = logits.softmax(-1).topk(self.top_k, dim=-1)
        weights = weights / weights.sum(-1, keepdim=True)
        kept = self._kept(chosen, logits.shape[1]) if self.training and self.capacity_factor is not None else None
        if routing is not None:
            routing.count(layer, logits, chosen, kept)
        if kept is not None:  # those that are left weigh what they did
            chosen, weights = chosen.masked_fill(~kept, logits.shape[1]), weights.masked_fill(~kept, 0.0)
        return self.experts(tokens, chosen, weights).view_as(hidden_states)

    def _kept(self, chosen: Tensor, num_experts: int) -> Tensor:
        """(tokens, k) bool: what of the choices is within the experts' capacity."""
        capacity = capacity_of(*chosen.shape, num_experts, self.capacity_factor)
        return within_capacity(chosen, num_experts, capacity)


class MixtralDytDecoderLayer(LlamaDytDecoderLayer):
    """Norm, attention, residual; norm, experts, residual."""

    mlp_class = MixtralDytSparseMoeBlock

    def __init__(self, config: MixtralDytConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.layer_idx = layer_idx

    def feed_forward(self, normed: Tensor, routing: RoutingPass | None = None) -> Tensor:
        """`routing`: as of `MixtralDytSparseMoeBlock`."""
        return self.mlp(normed, routing, self.layer_idx, self.auxiliary_weight)


class MixtralDytModel(LlamaDytModel):
    """The decoder without its head.

    Attributes:
        routing_board: of the passes through its layers.
    """

    config: MixtralDytConfig
    config_class = MixtralDytConfig
    layer_class = MixtralDytDecoderLayer
    _can_record_outputs = {"hidden_states": MixtralDytDecoderLayer, "attentions": LlamaDytAttention}

    def __init__(self, config: MixtralDytConfig):
        super().__init__(config)
        self.routing_board = RoutingBoard(
            config.num_hidden_layers,
            config.router_aux_loss_coef,
            config.router_z_loss_coef,
            limited=config.expert_capacity_factor is not None,
        )

    @contextmanager
    def through_layers(self, attention_mask: Tensor | None, first_layer: int = 0) -> Iterator[dict[str, Any]]:
        with self.routing_board.through_layers(first_layer, attention_mask) as routing:
            yield {"mlp_arguments": {"routing": routing}}


class MixtralDytForCausalLM(LlamaDytForCausalLM):
    """The decoder with its head and loss."""

    config: MixtralDytConfig
    config_class = MixtralDytConfig
    decoder_class = MixtralDytModel
    _can_record_outputs = {"hidden_states": MixtralDytDecoderLayer, "attentions": LlamaDytAttention}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """As LLaMA's, tensors as they are: the hub's matrix an expert is joined by transformers' own classes, and would
        not be by these in a folder where this package is not installed."""
        super().save_pretrained(save_directory, **{"save_original_format": False, **kwargs})
