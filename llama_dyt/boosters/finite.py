"""Stopping before an update by a gradient that is not finite, in the engine's optimizers.

Its own file because Colossal-AI's optimizers would go on: a norm of nan is not above the clipping bound, so the update
is made, the weights are nan, and only the next loss tells, after a checkpoint perhaps. Each of them computes the global
norm, on all ranks the same, just before it updates; what is here looks at it there. In fp16 overflows were skipped by
then. Ours for fsdp (`fsdp.py`) needs none of it: there the device leaves the update out.
"""

from __future__ import annotations

import math
from typing import Any

from colossalai.amp.naive_amp.mixed_precision_optimizer import MixedPrecisionOptimizer
from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelNaiveOptimizer
from colossalai.zero import GeminiOptimizer, LowLevelZeroOptimizer

from .interface import NonFiniteGradientError


def stop_at_gradients_not_finite(optimizer: Any) -> None:
    """Have an engine optimizer's `step` raise NonFiniteGradientError before it changes any weight."""
    if isinstance(optimizer, GeminiOptimizer):
        upstream_norm = optimizer._calc_global_norm
        optimizer._calc_global_norm = lambda: _finite(upstream_norm())
    elif isinstance(optimizer, LowLevelZeroOptimizer):
        upstream_clip = optimizer._unscale_and_clip_grads
        optimizer._unscale_and_clip_grads = lambda gradients, norm: upstream_clip(gradients, _finite(norm))
    elif isinstance(optimizer, MixedPrecisionOptimizer):
        upstream_amp = optimizer._unscale_and_clip_grads
        optimizer._unscale_and_clip_grads = lambda norm: upstream_amp(_finite(norm))
    elif isinstance(optimizer, HybridParallelNaiveOptimizer):
        upstream_naive = optimizer._clip_grad_norm
        optimizer._clip_grad_norm = lambda norm: upstream_naive(_finite(norm))


def _finite(norm: Any) -> Any:
    if not math.isfinite(norm):
        raise NonFiniteGradientError(float(norm))
    return norm
