"""The norms a model can be built with, by the name `--norm` takes.

Its own file so that a new norm is one more entry here, and no model asks which norms there are.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from llama_dyt.norms.dynamic_tanh import DynamicTanh
from llama_dyt.norms.rms_norm import RMSNorm

# Each takes (hidden_size, alpha_init, eps) and uses what it has a use for.
NORMS: dict[str, Callable[[int, float, float], nn.Module]] = {
    "dyt": lambda hidden_size, alpha_init, eps: DynamicTanh(hidden_size, alpha_init=alpha_init),
    "rmsnorm": lambda hidden_size, alpha_init, eps: RMSNorm(hidden_size, eps=eps),
}


def build_norm(norm_type: str, hidden_size: int, *, alpha_init: float | None = 0.5, eps: float = 1e-6) -> nn.Module:
    """One norm of the kind `norm_type`, over a last dimension of `hidden_size`.

    Args:
        norm_type: a key of `NORMS`.
        hidden_size: size of the last dimension.
        alpha_init: where DyT's alpha starts; other norms ignore it.
        eps: RMSNorm's epsilon; other norms ignore it.

    Raises:
        ValueError: there is no such norm.
    """
    if norm_type not in NORMS:
        raise ValueError(f"norm_type is {norm_type!r}; there are: {', '.join(sorted(NORMS))}")
    return NORMS[norm_type](hidden_size, alpha_init, eps)
