"""What the model tests share: configs small enough to compare exactly, with grouped heads and an odd vocabulary."""

import torch

from llama_dyt.models import build_config, build_model

TINY = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 131,
    "max_position_embeddings": 128,
}


def tiny_config(norm="dyt", **overrides):
    return build_config("15m", norm, **{**TINY, **overrides})


def tiny_model(norm="dyt", seed=0, **overrides):
    """Evaluation mode, with every parameter moved away from the value that would hide a mistake (1, 0)."""
    model = build_model(tiny_config(norm, **overrides), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.mul_(torch.rand(parameter.shape, generator=generator) + 0.5)
            else:
                parameter.mul_(4)  # logits far enough apart for a comparison to mean something
    return model


def tokens(batch=2, length=24, seed=0):
    return torch.randint(0, TINY["vocab_size"], (batch, length), generator=torch.Generator().manual_seed(seed))
