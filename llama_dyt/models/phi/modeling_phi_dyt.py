"""The Phi decoder with norms by name, as transformers classes.

A saved model carries it along, with the few modules it imports from this package.
"""

from typing import Any

from torch import Tensor, nn
from transformers import Cache
from transformers.models.phi.modeling_phi import PhiMLP

from llama_dyt.models.llama.modeling_llama_dyt import (
    LlamaDytAttention,
    LlamaDytDecoderLayer,
    LlamaDytForCausalLM,
    LlamaDytModel,
)
from llama_dyt.models.phi.configuration_phi_dyt import PhiDytConfig


class PhiDytAttention(LlamaDytAttention):
    """LLaMA's, whose last projection has another name."""

    output_projection = "dense"


class PhiDytDecoderLayer(LlamaDytDecoderLayer):
    """Norm; attention and MLP of the same; both added to the residual."""

    attention_class = PhiDytAttention
    mlp_class = PhiMLP
    norms = ("input_layernorm",)

    def __init__(self, config: PhiDytConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.resid_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(batch, sequence, hidden_size) to the same. `position_embeddings`: cos and sin of `RotaryEmbedding`."""
        normed = self.input_layernorm(hidden_states)
        attended, _ = self.self_attn(
            normed,
            position_embeddings=position_embeddings,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        return self.resid_dropout(attended) + self.resid_dropout(self.mlp(normed)) + hidden_states


class PhiDytModel(LlamaDytModel):
    """The decoder without its head."""

    config: PhiDytConfig
    config_class = PhiDytConfig
    layer_class = PhiDytDecoderLayer
    final_norm = "final_layernorm"
    _can_record_outputs = {"hidden_states": PhiDytDecoderLayer, "attentions": PhiDytAttention}


class PhiDytForCausalLM(LlamaDytForCausalLM):
    """The decoder with its head and loss."""

    config: PhiDytConfig
    config_class = PhiDytConfig
    decoder_class = PhiDytModel
    _can_record_outputs = {"hidden_states": PhiDytDecoderLayer, "attentions": PhiDytAttention}
