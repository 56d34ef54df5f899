"""Mistral: LLaMA's shape, with attention over a window."""

from __future__ import annotations

from typing import Any

from llama_dyt.models.size import Size
from llama_dyt.models.spec import ModelSpec

_MODELING = "llama_dyt.models.mistral"


class _Mistral(ModelSpec):
    def flops_per_token(self, config: Any, sequence_length: int) -> float:
        """As LLaMA's, but that a token is multiplied with those of its window alone."""
        return super().flops_per_token(config, min(sequence_length, config.sliding_window or sequence_length))


FAMILY = _Mistral(
    name="mistral_dyt",
    in_words="Mistral",
    config_class=f"{_MODELING}:MistralDytConfig",
    decoder_class=f"{_MODELING}:MistralDytModel",
    causal_lm_class=f"{_MODELING}:MistralDytForCausalLM",
    aliases=("mistral",),
    plain_type="mistral",
    presets={
        # The first release; later ones see all (sliding_window null) and have theta 1e6.
        "mistral_7b": Size(4096, 32, 32, 8, 14336, max_length=8192, others={"sliding_window": 4096}),
        "mistral_7b_v0.3": Size(
            4096, 32, 32, 8, 14336, 32768, max_length=32768, rope_theta=1e6, others={"sliding_window": None}
        ),
    },
)
