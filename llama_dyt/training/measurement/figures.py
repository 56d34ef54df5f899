"""How measured figures are printed: two decimals as usual, and more where a small figure would lose its digits."""

from __future__ import annotations

import math


def figure(value: float, decimals: int = 2, digits: int = 3) -> str:
    """A number with `decimals` decimals, or with as many as its first `digits` significant digits need.

    1234.5 is "1234.50" and 0.0123456 is "0.0123", where two decimals would say 0.01, and of a tenth of it nothing.
    """
    if value and math.isfinite(value):
        decimals = max(decimals, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:.{decimals}f}"


def percentage(share: float) -> str:
    """0.123 as "12.3%", 0.000456 as "0.0456%"."""
    return f"{figure(100 * share, decimals=1)}%"
