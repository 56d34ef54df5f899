"""Phi: one norm a layer, attention and a plain MLP side by side, rotary positions on a part of each head, biases."""

from __future__ import annotations

from typing import Any

from llama_dyt.models.size import Size
from llama_dyt.models.spec import ModelSpec

_MODELING = "llama_dyt.models.phi"


def _size(*figures: int, rotary: float, **others: Any) -> Size:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": rotary}
    return Size(*figures, vocab_size=51200, max_length=2048, others={"rope_parameters": rope, **others})


class _Phi(ModelSpec):
    def config_fields(self, size: Size) -> dict[str, Any]:
        return {"layer_norm_eps": size.rms_norm_eps, **super().config_fields(size)}

    def mlp_matmul_parameters(self, config: Any) -> int:
        return 2 * config.hidden_size * config.intermediate_size

    def mlp_activations(self, config: Any) -> int:
        return 2 * config.intermediate_size  # before the activation and after it


FAMILY = _Phi(
    name="phi_dyt",
    in_words="Phi",
    config_class=f"{_MODELING}:PhiDytConfig",
    decoder_class=f"{_MODELING}:PhiDytModel",
    causal_lm_class=f"{_MODELING}:PhiDytForCausalLM",
    aliases=("phi",),
    plain_type="phi",
    plain_norm="layernorm",
    presets={
        "phi_1": _size(2048, 24, 32, 32, 8192, rotary=0.5),
        "phi_1_5": _size(2048, 24, 32, 32, 8192, rotary=0.5),
        "phi_2": _size(2560, 32, 32, 32, 10240, rotary=0.4, resid_pdrop=0.1),
    },
    final_norm="final_layernorm",
    column_parallel=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.fc1"),
    row_parallel=("self_attn.dense", "mlp.fc2"),
    layer_norms=("input_layernorm",),
)
