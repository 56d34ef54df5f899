"""Dynamic Tanh fitted to what another norm gave: where a trained model's norm is exchanged.

A norm divides by each token's own size, and Dynamic Tanh has one slope for all tokens of a site; so the fit is as good
as sizes are alike. For one slope the factors of all channels are a least-squares problem each, solved exactly; the
slope is searched for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_SEARCHED_ROWS = 4096
_SLOPES = 48
_LEAST, _MOST = 0.01, 10.0
"""Between these, by the inverse size of the inputs, the slope is looked for: nearly linear to nearly a sign."""
_REFINEMENTS = 24
_GOLDEN = 0.6180339887498949


def fit_dynamic_tanh(inputs: Tensor, outputs: Tensor, bias: bool = False) -> dict[str, Tensor]:
    """The alpha, weight and perhaps bias for which weight * tanh(alpha * inputs) [+ bias] is nearest to `outputs`.

    Args:
        inputs, outputs: (tokens, hidden_size) each, what the norm got and gave.
        bias: whether the layer has one.

    Returns:
        alpha (1,), weight (hidden_size,), bias (hidden_size,) where it was asked for; fp32. The sum of squared
        differences is minimised.
    """
    inputs, outputs = inputs.float(), outputs.float()
    step = max(1, len(inputs) // _SEARCHED_ROWS)
    some_inputs, some_outputs = inputs[::step], outputs[::step]
    size = some_inputs.square().mean().sqrt().clamp_min(torch.finfo(torch.float32).tiny).item()

    def error(log_slope: float) -> float:
        return _solve(torch.tanh(math.exp(log_slope) * some_inputs), some_outputs, bias)[2]

    logs = torch.linspace(
        torch.log(torch.tensor(_LEAST / size)), torch.log(torch.tensor(_MOST / size)), _SLOPES
    ).tolist()
    best = min(range(_SLOPES), key=lambda index: error(logs[index]))
    low, high = logs[max(best - 1, 0)], logs[min(best + 1, _SLOPES - 1)]
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    error_left, error_right = error(left), error(right)
    for _ in range(_REFINEMENTS):
        if error_left < error_right:
            high, right, error_right = right, left, error_left
            left = high - _GOLDEN * (high - low)
            error_left = error(left)
        else:
            low, left, error_left = left, right, error_right
            right = low + _GOLDEN * (high - low)
            error_right = error(right)
    alpha = torch.tensor([(low + high) / 2]).exp()
    weight, shift, _ = _solve(torch.tanh(alpha * inputs), outputs, bias)
    fitted = {"alpha": alpha, "weight": weight}
    return {**fitted, "bias": shift} if bias else fitted


def _solve(squashed: Tensor, outputs: Tensor, bias: bool) -> tuple[Tensor, Tensor, float]:
    """(factor, addend, sum of squared differences) of the best factor * squashed + addend of each channel."""
    if bias:
        means = squashed.mean(0), outputs.mean(0)
    else:
        means = torch.zeros(squashed.shape[1]), torch.zeros(squashed.shape[1])
    centred, targets = squashed - means[0], outputs - means[1]
    power = centred.square().sum(0)
    together = (centred * targets).sum(0)
    factor = torch.where(power > 0, together / power.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    left = targets.square().sum(0) - factor * together
    return factor, means[1] - factor * means[0], left.double().sum().item()
