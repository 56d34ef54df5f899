"""Gemma: LLaMA's shape, with heads of a width of their own, a tied head, and an embedding that is multiplied."""

from __future__ import annotations

from typing import Any

from llama_dyt.models.size import Size
from llama_dyt.models.spec import ModelSpec

_MODELING = "llama_dyt.models.gemma"


def _size(*figures: int, **others: Any) -> Size:
    return Size(*figures, vocab_size=256000, max_length=8192, rms_norm_eps=1e-6, others={"head_dim": 256, **others})


FAMILY = ModelSpec(
    name="gemma_dyt",
    in_words="Gemma",
    config_class=f"{_MODELING}:GemmaDytConfig",
    decoder_class=f"{_MODELING}:GemmaDytModel",
    causal_lm_class=f"{_MODELING}:GemmaDytForCausalLM",
    aliases=("gemma",),
    plain_type="gemma",
    plain_norm="unit_offset_rmsnorm",
    presets={
        "gemma_2b": _size(2048, 18, 8, 1, 16384),
        # Its heads are together wider than the model: 16 of 256. (LL3M's table says 192, which is wrong.)
        "gemma_7b": _size(3072, 28, 16, 16, 24576),
    },
)
