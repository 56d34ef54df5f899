"""Meta's files made small, and what Meta's code makes of them: written here from its conventions, by nothing of
ours."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

VOCABULARY = 96
COLUMN_PARALLEL = ("wq", "wk", "wv", "w1", "w3", "output")
ROW_PARALLEL = ("wo", "w2")


@dataclass(frozen=True)
class Release:
    """A model as Meta releases one.

    Attributes:
        params: of params.json.
        shards: files it is divided into.
        embedding_dim: along which the embedding is divided: 1, or 0 since Llama 3.
    """

    params: dict
    shards: int
    embedding_dim: int = 1
    vocabulary: int = VOCABULARY
    seed: int = 0
    weights: dict = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        return self.params["dim"] // self.params["n_heads"]

    @property
    def key_value_heads(self) -> int:
        return self.params.get("n_kv_heads") or self.params["n_heads"]

    @property
    def width(self) -> int:
        """As Meta's FeedForward has it."""
        hidden = int(2 * (4 * self.params["dim"]) / 3)
        if self.params.get("ffn_dim_multiplier") is not None:
            hidden = int(self.params["ffn_dim_multiplier"] * hidden)
        multiple = self.params["multiple_of"]
        return multiple * ((hidden + multiple - 1) // multiple)


SEVEN_B = Release(
    {"dim": 64, "n_layers": 2, "n_heads": 4, "multiple_of": 32, "norm_eps": 1e-5, "vocab_size": -1}, shards=2
)
SEVENTY_B = Release(
    {
        "dim": 128,
        "n_layers": 2,
        "n_heads": 16,
        "n_kv_heads": 8,
        "multiple_of": 16,
        "ffn_dim_multiplier": 1.3,
        "norm_eps": 1e-5,
        "vocab_size": -1,
    },
    shards=8,
)
CODE_LLAMA = Release(
    {"dim": 64, "n_layers": 2, "n_heads": 4, "multiple_of": 32, "norm_eps": 1e-5, "rope_theta": 1e6, "vocab_size": -1},
    shards=1,
)
LLAMA_3 = Release(
    {
        "dim": 64,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "multiple_of": 32,
        "norm_eps": 1e-5,
        "rope_theta": 5e5,
        "vocab_size": VOCABULARY,
    },
    shards=2,
    embedding_dim=0,
)
RELEASES = {"7b": SEVEN_B, "70b": SEVENTY_B, "code_llama": CODE_LLAMA, "llama3": LLAMA_3}


def whole_weights(release: Release) -> dict[str, torch.Tensor]:
    """Numbers of all tensors by Meta's names, in bf16 as they are released."""
    params, generator = release.params, torch.Generator().manual_seed(release.seed)
    dim, width = params["dim"], release.width
    queries, keys = params["n_heads"] * release.head_dim, release.key_value_heads * release.head_dim

    def draw(*shape: int) -> torch.Tensor:
        spread = 1.0 / math.sqrt(shape[-1])
        return (torch.randn(shape, generator=generator) * spread * 1.5).to(torch.bfloat16)

    def norm() -> torch.Tensor:
        return (torch.rand(dim, generator=generator) + 0.5).to(torch.bfloat16)

    weights = {"tok_embeddings.weight": draw(release.vocabulary, dim) * 4, "norm.weight": norm()}
    weights["output.weight"] = draw(release.vocabulary, dim)
    for layer in range(params["n_layers"]):
        shapes = {"attention.wq": (queries, dim), "attention.wk": (keys, dim), "attention.wv": (keys, dim)}
        shapes |= {"attention.wo": (dim, queries), "feed_forward.w1": (width, dim), "feed_forward.w2": (dim, width)}
        shapes["feed_forward.w3"] = (width, dim)
        weights |= {f"layers.{layer}.{name}.weight": draw(*shape) for name, shape in shapes.items()}
        weights |= {f"layers.{layer}.{name}.weight": norm() for name in ("attention_norm", "ffn_norm")}
    return weights


def divided(name: str, tensor: torch.Tensor, release: Release) -> list[torch.Tensor]:
    """A tensor's parts on each rank."""
    kind = name.split(".")[-2]
    if kind == "tok_embeddings":
        return list(tensor.chunk(release.shards, release.embedding_dim))
    if kind in COLUMN_PARALLEL or kind in ROW_PARALLEL:
        return list(tensor.chunk(release.shards, 0 if kind in COLUMN_PARALLEL else 1))
    return [tensor] * release.shards


def write_release(release: Release, folder: Path, weights: dict[str, torch.Tensor] | None = None) -> Path:
    """Write consolidated.NN.pth and params.json."""
    weights = whole_weights(release) if weights is None else weights
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: divided(name, tensor, release) for name, tensor in weights.items()}
    for rank in range(release.shards):
        shard = {name: part[rank].clone() for name, part in parts.items()}
        shard["rope.freqs"] = torch.ones(release.head_dim // 2)
        torch.save(shard, folder / f"consolidated.{rank:02d}.pth")
    (folder / "params.json").write_text(json.dumps(release.params))
    return folder


def logits(release: Release, weights: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """What Meta's `Transformer.forward` gives for one sequence, in fp64: (length, vocabulary)."""
    params = release.params
    weights = {name: tensor.double() for name, tensor in weights.items()}
    heads, key_value_heads, head_dim = params["n_heads"], release.key_value_heads, release.head_dim
    length = tokens.shape[-1]
    # precompute_freqs_cis
    frequencies = 1.0 / (params.get("rope_theta", 10000.0) ** (torch.arange(0, head_dim, 2).double() / head_dim))
    angles = torch.outer(torch.arange(length).double(), frequencies)
    freqs_cis = torch.polar(torch.ones_like(angles), angles)

    def apply_rotary_emb(x: torch.Tensor) -> torch.Tensor:
        x = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(x * freqs_cis[:, None, :]).flatten(-2)

    def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + params["norm_eps"]) * weight

    h = weights["tok_embeddings.weight"][tokens]
    mask = torch.full((length, length), float("-inf")).double().triu(1)
    for layer in range(params["n_layers"]):
        at = f"layers.{layer}."
        x = rms_norm(h, weights[f"{at}attention_norm.weight"])
        q = apply_rotary_emb((x @ weights[f"{at}attention.wq.weight"].T).view(length, heads, head_dim))
        k = apply_rotary_emb((x @ weights[f"{at}attention.wk.weight"].T).view(length, key_value_heads, head_dim))
        v = (x @ weights[f"{at}attention.wv.weight"].T).view(length, key_value_heads, head_dim)
        k, v = (t.repeat_interleave(heads // key_value_heads, 1).transpose(0, 1) for t in (k, v))
        scores = torch.softmax(q.transpose(0, 1) @ k.transpose(1, 2) / math.sqrt(head_dim) + mask, -1)
        h = h + (scores @ v).transpose(0, 1).reshape(length, -1) @ weights[f"{at}attention.wo.weight"].T
        x = rms_norm(h, weights[f"{at}ffn_norm.weight"])
        gate = torch.nn.functional.silu(x @ weights[f"{at}feed_forward.w1.weight"].T)
        h = h + (gate * (x @ weights[f"{at}feed_forward.w3.weight"].T)) @ weights[f"{at}feed_forward.w2.weight"].T
    return rms_norm(h, weights["norm.weight"]) @ weights["output.weight"].T
