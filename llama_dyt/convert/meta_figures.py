"""`params.json`: the figures of Meta's models, to HuggingFace's and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from llama_dyt.convert.decoder import PLAIN
from llama_dyt.convert.json_file import read_figures, whole_number
from llama_dyt.core.errors import CheckpointError, ConfigurationError

_POSITIONS_OF_THETA = {10_000.0: 4096, 500_000.0: 8192, 1_000_000.0: 16384}
"""Trained length by the rotary base: LLaMA-2, Llama 3, Code Llama."""

SCALED_ROPE = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""What `use_scaled_rope` means in Meta's code (`apply_scaling`)."""
_OTHER_MODELS = (
    "moe",
    "moe_args",
    "num_experts",
    "vision_chunk_size",
    "vision_model",
    "quantization_args",
    "lora_args",
)


def feed_forward_width(dim: int, multiple_of: int, multiplier: float | None) -> int:
    """The hidden size of the feed-forward block, as Meta's `FeedForward` computes it."""
    width = int(2 * 4 * dim / 3)
    if multiplier is not None:
        width = int(multiplier * width)
    return multiple_of * (-(-width // multiple_of))


def figures(path: Path, rows: int) -> dict[str, Any]:
    """Fields of a plain config.json, from params.json.

    Args:
        rows: of the head, over all files: params.json may have a vocab_size of -1, which the tokenizer fills in.
    """
    params = read_figures(path)
    dim, heads = whole_number(params, "dim", path), whole_number(params, "n_heads", path)
    if others := [key for key in _OTHER_MODELS if params.get(key) not in (None, False, -1)]:
        raise CheckpointError(f"{path}: {others[0]} is there, and only plain LLaMAs are read (no experts, no images)")
    vocabulary = params.get("vocab_size", -1)
    if vocabulary not in (-1, rows):
        raise CheckpointError(f"{path}: vocab_size is {vocabulary}, and the head in the files has {rows} rows")
    theta = float(params.get("rope_theta", 10_000.0))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": theta}
    if params.get("use_scaled_rope"):
        if "rope_scaling_factor" not in params:
            raise CheckpointError(
                f"{path}: use_scaled_rope is on and the factor is not told: Meta's code has 8, and HuggingFace's "
                "folders "
                'of Llama 3.2 have 32; add "rope_scaling_factor" to it'
            )
        rope |= {"rope_type": "llama3", **SCALED_ROPE, "factor": float(params["rope_scaling_factor"])}
    return {
        "model_type": PLAIN,
        "hidden_size": dim,
        "num_hidden_layers": whole_number(params, "n_layers", path),
        "num_attention_heads": heads,
        "num_key_value_heads": params.get("n_kv_heads") or heads,
        "intermediate_size": feed_forward_width(dim, params.get("multiple_of", 256), params.get("ffn_dim_multiplier")),
        "vocab_size": rows,
        "max_position_embeddings": _positions(params, theta),
        "rms_norm_eps": float(params.get("norm_eps", 1e-5)),
        "rope_parameters": rope,
        "tie_word_embeddings": False,
    }


def _positions(params: dict[str, Any], theta: float) -> int:
    """The length a model was trained on, which no params.json tells: by its generation."""
    if params.get("use_scaled_rope"):
        return 131072
    first_65b = params["dim"] == 8192 and params.get("n_layers") == 80 and not params.get("n_kv_heads")
    if theta == 10_000.0 and (params.get("norm_eps") == 1e-6 or first_65b):
        return 2048  # LLaMA-1: that epsilon is its alone, but for the 65B
    return _POSITIONS_OF_THETA.get(theta, 4096)


def params_of(config: Any) -> dict[str, Any]:
    """What Meta's `ModelArgs` is made of."""
    rope = config.rope_parameters
    params: dict[str, Any] = {
        "dim": config.hidden_size,
        "n_layers": config.num_hidden_layers,
        "n_heads": config.num_attention_heads,
    }
    if config.num_key_value_heads != config.num_attention_heads:
        params["n_kv_heads"] = config.num_key_value_heads
    params |= {"vocab_size": config.vocab_size, **_width_arguments(config.hidden_size, config.intermediate_size)}
    params["norm_eps"] = config.rms_norm_eps
    if rope["rope_theta"] != 10_000.0:
        params["rope_theta"] = rope["rope_theta"]
    if rope["rope_type"] == "llama3":
        params |= {"use_scaled_rope": True, "rope_scaling_factor": rope["factor"]}
    return params


def _width_arguments(dim: int, width: int) -> dict[str, Any]:
    """`multiple_of`, and `ffn_dim_multiplier` where it takes one, that give a feed-forward block this width."""
    multiples = [
        multiple for multiple in (256, 4096, 2048, 1024, 512, 128, 64, 32, 16, 8, 4, 2, 1) if not width % multiple
    ]
    for multiple in multiples:
        if feed_forward_width(dim, multiple, None) == width:
            return {"multiple_of": multiple}
    for digits in range(1, 18):
        for multiple in multiples:
            factor = round(width / int(2 * 4 * dim / 3), digits)
            if factor and feed_forward_width(dim, multiple, factor) == width:
                return {"multiple_of": multiple, "ffn_dim_multiplier": factor}
    raise ConfigurationError(f"--to meta: no ffn_dim_multiplier gives a feed-forward width of {width} for {dim}")
