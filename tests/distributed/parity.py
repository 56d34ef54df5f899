"""The comparison of a boosted run with plain PyTorch: its bounds and its checks.

Its own file because the quick test, the full matrix and the tests of the comparison itself use it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.distributed import cases, reference

EXACT_GRADIENTS = 1e-5
"""Bound in fp32 on the norm of a gradient's difference by its norm. Measured over all layouts: at most 5e-7."""
NOISE_FACTOR = 3.0
"""Bound in half precision, as a multiple of the noise of half precision itself: the distance between plain PyTorch runs
in half precision and in fp32. Measured over all layouts: at most 1.6 times. Boosters round in other places than a
single process: every rank and micro batch for itself, and in sums over ranks. The noise of a gradient is 0.4 to 1.6% in
bf16 and 0.05 to 0.14% in fp16, so the bound is far below what a wrong factor or sign would be."""
EXACT_NORMS = 1e-5
LOSSES = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 2e-2}
WEIGHTS = 1e-3


def merged(results: list[cases.RankResult], field: str) -> dict[str, torch.Tensor]:
    """The tensors of all pipeline stages."""
    return {name: tensor for result in results for name, tensor in getattr(result, field).items()}


def within(measured: dict[str, float], bounds: dict[str, float], what: str) -> None:
    beyond = {kind: (value, bounds[kind]) for kind, value in measured.items() if not value <= bounds[kind]}
    assert not beyond, f"{what}, (distance, bound): {beyond}"


def check_gradients(results: list[cases.RankResult], precision: str, **model: Any) -> float:
    """Compare every kind of parameter's gradient.

    Returns:
        The largest distance in fp32; in half precision the largest multiple of its noise.
    """
    exact = reference.train(**model).gradients
    gradients = merged(results, "gradients")
    assert set(gradients) == set(exact)
    measured = reference.distances(gradients, exact)
    if precision == "fp32":
        within(measured, dict.fromkeys(measured, EXACT_GRADIENTS), "gradients")
        return max(measured.values())
    noise = reference.gradient_noise(precision, **model)
    within(measured, {kind: NOISE_FACTOR * value for kind, value in noise.items()}, "gradients")
    return max(measured[kind] / noise[kind] for kind in measured)


def check_grad_norms(results: list[cases.RankResult], precision: str, **model: Any) -> None:
    exact = np.array(reference.train(**model).grad_norms)
    bound = EXACT_NORMS
    if precision != "fp32":
        bound = NOISE_FACTOR * np.max(np.abs(reference.train(precision=precision, **model).grad_norms - exact) / exact)
    for result in results:
        np.testing.assert_allclose(result.grad_norms, exact[: len(result.grad_norms)], rtol=bound, atol=0)


def check_losses(results: list[cases.RankResult], precision: str, **model: Any) -> None:
    exact = reference.train(**model).losses
    # A run that does not learn would pass whatever the optimizer did.
    assert exact[0] - exact[-1] > 10 * LOSSES[precision]
    for result in results:
        np.testing.assert_allclose(result.losses, exact, rtol=0, atol=LOSSES[precision])


def check_weights(results: list[cases.RankResult], precision: str, without: tuple[str, ...] = (), **model: Any) -> None:
    """`without`: kinds of parameters that are not compared."""
    exact = reference.train(**model).weights
    measured = reference.distances(merged(results, "weights"), exact)
    measured = {kind: distance for kind, distance in measured.items() if kind not in without}
    if precision == "fp32":
        bounds = dict.fromkeys(measured, WEIGHTS)
    else:
        noise = reference.distances(reference.train(precision=precision, **model).weights, exact)
        bounds = dict.fromkeys(measured, NOISE_FACTOR * max(noise.values()))
    within(measured, bounds, "weights")


def check_all(results: list[cases.RankResult], precision: str, without: tuple[str, ...] = (), **model: Any) -> float:
    """All of it; returns what `check_gradients` does. `without`: kinds whose weights are not compared."""
    worst = check_gradients(results, precision, **model)
    check_grad_norms(results, precision, **model)
    check_losses(results, precision, **model)
    check_weights(results, precision, without, **model)
    return worst
