"""A decoder of a page, straight from another program's tensors and in its conventions: what a conversion is held to.

It shares neither names, nor the order of rows, nor the model's code with what it checks, but for the frequencies of
rotary positions. One layer's weights are there at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Norm = Callable[[Tensor, str], Tensor]
"""(hidden states, name of the norm) → its output."""
Rotate = Callable[[Tensor, Tensor], Tensor]
"""((length, heads, head_dim), (length, head_dim / 2) angles) → the same, turned."""


@dataclass(frozen=True)
class Reference:
    """A LLaMA by the names of its source.

    Args:
        config: HF config: its figures alone are read.
        read: (name in the source's own terms) → whole tensor, for the names below; in a layer they stand behind
            `layer(number)`.
        names: embedding, head, final_norm; query, key, value, output, gate, up, down, attention_norm,
            feed_forward_norm.
    """

    config: Any
    read: Callable[[str], Tensor]
    names: dict[str, str]
    layer: Callable[[int], str]
    rotate: Rotate
    norm: Norm
    scale: Callable[[], float] = lambda: 1.0

    @torch.no_grad()
    def logits(self, input_ids: Tensor) -> Tensor:
        """(1, length) ids to (length, vocabulary) in fp32."""
        config, names = self.config, self.names
        head_dim = config.head_dim
        heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
        hidden = self.read(names["embedding"])[input_ids[0]].float() * self.scale()
        length = hidden.shape[0]
        angles = self._angles(length)

        for number in range(config.num_hidden_layers):
            at = {part: f"{self.layer(number)}{name}" for part, name in names.items()}

            def project(x: Tensor, part: str, at: dict[str, str] = at) -> Tensor:
                return x @ self.read(at[part]).float().T

            x = self.norm(hidden, at["attention_norm"])
            query = self.rotate(project(x, "query").view(length, heads, head_dim), angles)
            key = self.rotate(project(x, "key").view(length, key_value_heads, head_dim), angles)
            value = project(x, "value").view(length, key_value_heads, head_dim)
            key, value = (t.repeat_interleave(heads // key_value_heads, dim=1) for t in (key, value))
            scores = torch.einsum("qhd,khd->hqk", query, key) / head_dim**0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).reshape(length, -1)
            hidden = hidden + project(mixed, "output")
            x = self.norm(hidden, at["feed_forward_norm"])
            hidden = hidden + project(F.silu(project(x, "gate")) * project(x, "up"), "down")
        return self.norm(hidden, names["final_norm"]) @ self.read(names["head"]).float().T

    def _angles(self, length: int) -> Tensor:
        from llama_dyt.models.ops.rope import inverse_frequencies

        frequencies, _ = inverse_frequencies(self.config)
        return torch.arange(length)[:, None].float() * frequencies


def turn_neighbours(x: Tensor, angles: Tensor) -> Tensor:
    """As Meta's code: neighbours are one complex number, multiplied by e^(i angle)."""
    turned = (
        torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2).contiguous())
        * torch.polar(torch.ones_like(angles), angles)[:, None]
    )
    return torch.view_as_real(turned).reshape(x.shape)


def turn_halves(x: Tensor, angles: Tensor) -> Tensor:
    """As GPT-NeoX' code: a number of the first half is turned with its like in the second."""
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def root_mean_square(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight.float()
