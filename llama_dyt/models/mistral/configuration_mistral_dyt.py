"""What a DyT Mistral is: a DyT LLaMA whose attention sees a window.

A saved model carries it along, so that the folder loads where this package is not installed.
"""

from __future__ import annotations

from huggingface_hub.dataclasses import strict

from llama_dyt.models.llama.configuration_llama_dyt import LlamaDytConfig


@strict
class MistralDytConfig(LlamaDytConfig):
    """A Mistral (arXiv 2310.06825) whose norms are chosen by name.

    Args (beside LlamaDytConfig's; what is not given is as in transformers' MistralConfig):
        sliding_window: how many tokens back attention sees, the token itself among them; None: all.
    """

    model_type = "mistral_dyt"

    intermediate_size: int = 14336
    num_key_value_heads: int | None = 8
    max_position_embeddings: int = 131072
    sliding_window: int | None = 4096

    def validate_architecture(self):
        """Heads may be of a width of their own, which LLaMA's must divide."""
