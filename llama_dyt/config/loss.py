"""The settings of the loss.

Its own file beside `settings.py`, for which it would be too much.
"""

from __future__ import annotations

from dataclasses import dataclass

from llama_dyt.config.options import option


@dataclass(frozen=True)
class LossSettings:
    """What is minimised beside the cross entropy of the next token."""

    z_loss: float = option(
        0.0,
        "Coefficient of the z-loss, which keeps the softmax's denominator near 1: to the gradient is added that of "
        "this times logsumexp(logits)^2, averaged over the same tokens. The loss that is logged, and validation's, "
        "stays the cross entropy alone. PaLM has 1e-4.",
        at_least=0,
        metavar="COEFFICIENT",
    )
