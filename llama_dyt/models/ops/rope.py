"""Rotary position embedding that no half-precision cast can reach.

The promise: cos and sin are computed and applied in fp32 whatever was done to the model. Boosters cast every parameter
and every buffer, and positions in the thousands times an inverse frequency rounded to bf16 are off by whole radians,
without a word. So the inverse frequencies here are neither of the two: they are a plain attribute, computed on the CPU
at construction (on the meta device too) and copied to where they are needed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS


def inverse_frequencies(config: PreTrainedConfig, *, seq_len: int | Tensor | None = None) -> tuple[Tensor, float]:
    """Inverse frequencies (half of what is turned of head_dim,) in fp32, and the factor cos and sin are multiplied by.

    All of transformers' scaling types are its own functions; only the unscaled one is not among them.

    Args:
        config: read for `rope_parameters`, `head_dim` and `max_position_embeddings`.
        seq_len: the length reached, for the types that depend on it (dynamic, longrope).
    """
    rope_type = config.rope_parameters["rope_type"]
    device = seq_len.device if isinstance(seq_len, Tensor) else "cpu"
    if rope_type != "default":
        return ROPE_INIT_FUNCTIONS[rope_type](config, device, seq_len=seq_len)
    turned = int(config.head_dim * config.rope_parameters.get("partial_rotary_factor", 1.0))
    exponents = torch.arange(0, turned, 2, dtype=torch.int64, device=device).float() / turned
    return 1.0 / (config.rope_parameters["rope_theta"] ** exponents), 1.0


class RotaryEmbedding(nn.Module):
    """cos and sin of every position, in fp32.

    The types that depend on the length (dynamic, longrope) look at the positions of the call and nothing else, so a
    model gives the same answer whatever it was shown before. transformers keeps the longest length seen instead.
    """

    def __init__(self, config: PreTrainedConfig, device: torch.device | None = None):
        """`device`: of no use here, and given by programs made for transformers' rotary embeddings."""
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        # The context puts what transformers' functions allocate on the CPU even inside `with torch.device("meta")`.
        with torch.device("cpu"):
            self.frequencies, self.attention_scaling = inverse_frequencies(config)
            if self.rope_type == "longrope":
                self.pretrained_length = config.rope_parameters["original_max_position_embeddings"]
                self.long_frequencies, _ = inverse_frequencies(config, seq_len=self.pretrained_length + 1)
        self._on_device: dict[tuple[str, torch.device], Tensor] = {}

    @property
    def inv_freq(self) -> Tensor:
        """The frequencies of short inputs, (head_dim / 2,) in fp32, by the name they have in transformers."""
        return self.frequencies

    def _frequencies_on(self, name: str, device: torch.device) -> Tensor:
        """A copy on `device`, made once: a copy a step would be a transfer from unpinned memory in every forward."""
        master = getattr(self, name)
        if master.device == device:
            return master
        if (name, device) not in self._on_device:
            self._on_device[name, device] = master.to(device)
        return self._on_device[name, device]

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """
        Args:
            x: any tensor on the device wanted; its dtype does not matter.
            position_ids: (batch or 1, sequence) integers.

        Returns:
            cos and sin, each (batch or 1, sequence, head_dim) in fp32.
        """
        frequencies = self._frequencies_on("frequencies", x.device)
        if self.rope_type == "dynamic":
            frequencies, _ = inverse_frequencies(self.config, seq_len=position_ids.max() + 1)
        elif self.rope_type == "longrope":
            long = self._frequencies_on("long_frequencies", x.device)
            frequencies = torch.where(position_ids.max() + 1 > self.pretrained_length, long, frequencies)
        # A product, not a matmul: autocast and TF32 would round a matmul.
        angles = position_ids[..., None].float() * frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn queries or keys by their positions (arXiv 2104.09864), in fp32; returned in x's dtype.

    Args:
        x: (batch, heads, sequence, head_dim).
        cos, sin: (batch or 1, sequence, head_dim), fp32; where they are narrower, the rest of each head is left as it
            is.

    Raises:
        TypeError: cos or sin is not fp32, which means that something cast it between `RotaryEmbedding` and here.
    """
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        raise TypeError(
            f"cos and sin of the rotary embedding arrived as {cos.dtype}, which ruins long positions; they must stay "
            "float32. Whatever wraps the decoder layers casts their inputs: switch that off (FSDP2: "
            "MixedPrecisionPolicy(cast_forward_inputs=False))."
        )
    if cos.shape[-1] < x.shape[-1]:
        turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
        return torch.cat((rotate(turned, cos, sin), rest), dim=-1)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    first, second = wide.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (wide * cos.unsqueeze(1) + turned * sin.unsqueeze(1)).to(x.dtype)
