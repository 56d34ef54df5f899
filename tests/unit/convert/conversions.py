"""What the tests of convert.py share: calling it, and loading what it leaves."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

import convert
from llama_dyt.models import build_config, build_model

TOKENS = torch.randint(96, (1, 24), generator=torch.Generator().manual_seed(5))


def converted(source: Path, result: Path, *flags: str) -> Path:
    """Call convert.py as a command line does; returns the folder of the result."""
    convert.main(["--input_path", str(source), "--output_path", str(result), *map(str, flags)])
    return result


@torch.no_grad()
def hf_logits(folder: Path, tokens: torch.Tensor = TOKENS, **how) -> torch.Tensor:
    """(length, vocabulary) by transformers' own loading, in fp32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **how).eval()
    return model(tokens).logits[0]


def tiny_model(norm: str, seed: int = 0, **overrides) -> PreTrainedModel:
    """A model whose every parameter is away from the value that would hide a mistake (1, 0); 97 entries of
    vocabulary."""
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 96, "vocab_size": 97, "max_position_embeddings": 128}
    model = build_model(build_config("15m", norm, **{**sizes, **overrides}), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                parameter.mul_(4)  # logits far enough apart for a comparison to mean something
    return model
