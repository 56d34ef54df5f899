"""LLaMA with norms by name: where it differs from the shape in `models.spec` (nowhere), and its published sizes.

Initial alphas are not here: they depend on the width alone and live with the norms.
"""

from __future__ import annotations

from typing import Any

from llama_dyt.models.size import Size
from llama_dyt.models.spec import ModelSpec

_LLAMA3 = {"vocab_size": 128256, "max_length": 8192, "rope_theta": 500_000.0}

_CODE = {"max_length": 16384, "rope_theta": 1e6}


def _llama31(factor: float, **others: Any) -> dict[str, Any]:
    """Figures of LLaMA-3.1 and 3.2 beside a size's; `factor`: of the positions."""
    rope = {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    return {**_LLAMA3, "max_length": 131072, "others": {"rope_parameters": rope, **others}}


_SIZES = {
    # LLaMA-1: Meta's params.json (norm_eps is 1e-5 in the 65B release only). Colossal-AI's table had an
    # intermediate size of 13760 for 13B and 17888 for 30B; these are the released ones.
    "llama1_7b": Size(4096, 32, 32, 32, 11008, max_length=2048, rms_norm_eps=1e-6),
    "llama1_13b": Size(5120, 40, 40, 40, 13824, max_length=2048, rms_norm_eps=1e-6),
    "llama1_30b": Size(6656, 60, 52, 52, 17920, max_length=2048, rms_norm_eps=1e-6),
    "llama1_65b": Size(8192, 80, 64, 64, 22016, max_length=2048),
    # LLaMA-2 as the DyT paper trained it (arXiv 2503.10622).
    "llama2_1.4b": Size(2048, 24, 16, 4, 6144),
    "llama2_7b": Size(4096, 32, 32, 32, 11008),
    "llama2_13b": Size(5120, 40, 40, 40, 13824),
    "llama2_34b": Size(8192, 48, 64, 8, 22016),
    "llama2_70b": Size(8192, 80, 64, 8, 28672),
    # LLaMA-3 and its smaller relatives, from the DyT authors' LLaMA program.
    "llama3_194m": Size(1024, 10, 8, 8, 2816, **_LLAMA3),
    "llama3_1.8b": Size(2048, 24, 16, 8, 7168, **_LLAMA3),
    "llama3_3.2b": Size(3072, 24, 24, 8, 8192, **_LLAMA3),
    "llama3_8b": Size(4096, 32, 32, 8, 14336, **_LLAMA3),
    "llama3_70b": Size(8192, 80, 64, 8, 28672, **_LLAMA3),
    # Meta's later releases; positions scaled from the 8192 of LLaMA-3.
    "llama3.1_8b": Size(4096, 32, 32, 8, 14336, **_llama31(8.0)),
    "llama3.1_70b": Size(8192, 80, 64, 8, 28672, **_llama31(8.0)),
    "llama3.1_405b": Size(16384, 126, 128, 8, 53248, **_llama31(8.0)),
    "llama3.2_1b": Size(2048, 16, 32, 8, 8192, **_llama31(32.0, tie_word_embeddings=True)),
    "llama3.2_3b": Size(3072, 28, 24, 8, 8192, **_llama31(32.0, tie_word_embeddings=True)),
    # Code Llama's: 16 tokens for infilling in the two small ones.
    "code_llama_7b": Size(4096, 32, 32, 32, 11008, 32016, **_CODE),
    "code_llama_13b": Size(5120, 40, 40, 40, 13824, 32016, **_CODE),
    "code_llama_34b": Size(8192, 48, 64, 8, 22016, **_CODE),
    "open_llama_3b": Size(3200, 26, 32, 32, 8640, max_length=2048, rms_norm_eps=1e-6),
    "open_llama_7b": Size(4096, 32, 32, 32, 11008, max_length=2048, rms_norm_eps=1e-6),
    "open_llama_13b": Size(5120, 40, 40, 40, 13824, max_length=2048, rms_norm_eps=1e-6),
    "tiny_llama_1b": Size(2048, 22, 32, 4, 5632, max_length=2048),
    # Colossal-AI's benchmark: HuggingFace's defaults but for what is named there, hence the eps.
    "100m": Size(1024, 4, 32, 32, 2048, rms_norm_eps=1e-6),
    "5b": Size(4096, 32, 32, 8, 11008, rms_norm_eps=1e-6),
    # Small enough to train on a laptop's CPU.
    "15m": Size(288, 6, 6, 6, 768, max_length=1024),
}

_ALIASES = {
    # A bare size is LLaMA-2's where LLaMA-2 has it, else the only generation that does.
    "7b": "llama2_7b",
    "13b": "llama2_13b",
    "34b": "llama2_34b",
    "70b": "llama2_70b",
    "1.4b": "llama2_1.4b",
    "30b": "llama1_30b",
    "65b": "llama1_65b",
    "194m": "llama3_194m",
    "1.8b": "llama3_1.8b",
    "3.2b": "llama3_3.2b",
    "8b": "llama3_8b",
    # The paper calls it 33B, Meta's files 30B.
    "33b": "llama1_30b",
}

_SPELLINGS = {
    # "LLaMA" without a number is the first.
    "llama_7b": "llama1_7b",
    "llama_13b": "llama1_13b",
    "llama_30b": "llama1_30b",
    "llama_65b": "llama1_65b",
    "llama_33b": "llama1_30b",
    "llama1_33b": "llama1_30b",
    "llama_100m": "100m",
    "llama_15m": "15m",
    "llama_5b": "5b",
}


class _Llama(ModelSpec):
    def preset(self, name: str) -> Size | None:
        for generation in ("1", "2", "3.1", "3.2", "3"):
            name = name.replace(f"llama_{generation}_", f"llama{generation}_")
        return super().preset(name)


_MODELING = "llama_dyt.models.llama"

FAMILY = _Llama(
    name="llama_dyt",
    in_words="LLaMA",
    config_class=f"{_MODELING}:LlamaDytConfig",
    decoder_class=f"{_MODELING}:LlamaDytModel",
    causal_lm_class=f"{_MODELING}:LlamaDytForCausalLM",
    aliases=("llama",),
    plain_type="llama",
    presets=_SIZES,
    preset_aliases=_ALIASES,
    preset_spellings=_SPELLINGS,
)
