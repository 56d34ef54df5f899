"""Where alpha starts, by the width of the model.

A table of published results, read by the models and shown by the entries.
"""

from __future__ import annotations

import math

# hidden size → alpha of the norm before attention, alpha of the others (before the MLP, and the last one). 1024, 2048,
# 4096 and 8192 are the paper's search over widths (arXiv 2503.10622); 5120 is what the authors trained
# their 13B with. Depth hardly matters, so it is not a key.
PUBLISHED_ALPHAS: dict[int, tuple[float, float]] = {
    1024: (1.0, 1.0),
    2048: (1.0, 0.5),
    4096: (0.8, 0.2),
    5120: (0.6, 0.15),
    8192: (0.2, 0.05),
}


def default_alphas(hidden_size: int) -> tuple[float, float]:
    """Starting alphas (attention, others) for a model of this width.

    A published width gives the published pair. Between two of them both values run linearly in log2(hidden_size);
    below the narrowest and above the widest they stay at that width's. Rounded to four decimals, for the eye.

    Raises:
        ValueError: hidden_size is not positive.
    """
    if hidden_size < 1:
        raise ValueError(f"hidden_size is {hidden_size}; a width is a positive number")
    widths = sorted(PUBLISHED_ALPHAS)
    width = min(max(hidden_size, widths[0]), widths[-1])
    above = next(w for w in widths if w >= width)
    if above == width:
        return PUBLISHED_ALPHAS[above]
    below = widths[widths.index(above) - 1]
    share = math.log2(width / below) / math.log2(above / below)
    low, high = PUBLISHED_ALPHAS[below], PUBLISHED_ALPHAS[above]
    attention, others = (round(a + share * (b - a), 4) for a, b in zip(low, high, strict=True))
    return attention, others
