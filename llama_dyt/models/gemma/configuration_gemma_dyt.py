"""What a DyT Gemma is: a DyT LLaMA with Gemma's figures, and a multiplier of the embedding that DyT's scale replaces.

A saved model carries it along, so that the folder loads where this package is not installed.
"""

from __future__ import annotations

import math

from huggingface_hub.dataclasses import strict

from llama_dyt.models.llama.configuration_llama_dyt import LlamaDytConfig


@strict
class GemmaDytConfig(LlamaDytConfig):
    """A Gemma (arXiv 2403.08295) whose norms are chosen by name: GELU-gated MLP, heads of a width of their own, a head
    tied to the embedding.

    Args: LlamaDytConfig's; what is not given is as in transformers' GemmaConfig.

    Raises (beside LlamaDytConfig's):
        StrictDataclassError: use_bidirectional_attention is asked for.
    """

    model_type = "gemma_dyt"

    vocab_size: int = 256000
    hidden_size: int = 3072
    intermediate_size: int = 24576
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = 16
    head_dim: int | None = 256
    hidden_act: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    pad_token_id: int | None = 0
    bos_token_id: int | None = 2
    eos_token_id: int | list[int] | None = 1
    tie_word_embeddings: bool = True

    plain_norm_type = "unit_offset_rmsnorm"

    def __post_init__(self, **kwargs):
        if kwargs.pop("use_bidirectional_attention", None):
            raise ValueError("use_bidirectional_attention is not there; a decoder that learns the next token is causal")
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        """Heads are of a width of their own, which LLaMA's must divide."""

    @property
    def embedding_multiplier(self) -> float | None:
        """sqrt(hidden_size), unless a learnable scale, which starts there, takes its place."""
        return None if self.embedding_scale else math.sqrt(self.hidden_size)
