"""The figures that make one decoder, before anything of it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Size:
    """The figures that make one decoder of a family.

    `max_length` is the longest sequence, in tokens, the published model was trained on; a run may ask for another.
    `others` are fields that the family's HF config has beside these, under its names.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int = 32000
    max_length: int = 4096
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    others: Mapping[str, Any] = field(default_factory=dict)

    @property
    def head_dim(self) -> int:
        return self.others.get("head_dim") or self.hidden_size // self.num_heads

    def with_overrides(
        self,
        *,
        hidden_width: int | None = None,
        num_layers: int | None = None,
        num_heads: int | None = None,
        num_key_value_heads: int | None = None,
        intermediate_size: int | None = None,
    ) -> Size:
        """This size with the figures given by hand in place of its own; None keeps a figure.

        Where every head had its own keys and values, a new number of heads keeps it that way.
        """
        if num_heads is not None and num_key_value_heads is None and self.num_key_value_heads == self.num_heads:
            num_key_value_heads = num_heads
        given = {
            "hidden_size": hidden_width,
            "num_layers": num_layers,
            "num_heads": num_heads,
            "num_key_value_heads": num_key_value_heads,
            "intermediate_size": intermediate_size,
        }
        return replace(self, **{name: value for name, value in given.items() if value is not None})
