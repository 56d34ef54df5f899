"""What the processes of `test_grad_norm.py` run: norms and sums of gradients, against fp64."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.config.run import RunConfig
from llama_dyt.models import build_config, empty_model
from llama_dyt.training.optimizer import parameter_groups
from tests.distributed import cases, small_run
from tests.distributed.small_run import Layout

VOCAB_SIZE, HIDDEN_SIZE = 30_000, 128


def reported_and_exact(layouts: list[Layout], precision: str) -> list[tuple[float, float]]:
    """Of each layout, the norm that a first step reports, and the norm in fp64 of its whole gradients."""
    return [_reported_and_exact(layout, precision) for layout in layouts]


def boost_with_long_tables(run: RunConfig, vocab_size: int = VOCAB_SIZE) -> Boosted:
    """One layer, and an embedding and a head that dwarf it."""
    config = build_config(
        "15m",
        hidden_size=HIDDEN_SIZE,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=128,
        vocab_size=vocab_size,
    )
    model = empty_model(config)
    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    return Boosted(run, model, groups, small_run.weights(model))


def _reported_and_exact(layout: Layout, precision: str) -> tuple[float, float]:
    run = small_run.run_config(layout, precision)
    boosted = boost_with_long_tables(run)
    boosted.forward_backward(next(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size)))
    squares = torch.zeros((), dtype=torch.float64)
    for _, gradient in boosted.state.gradients():
        if gradient is not None:
            squares += gradient.double().square().sum()
    dist.all_reduce(squares)
    return boosted.optimizer_step().grad_norm, math.sqrt(squares)


def rounding_of_sums(layouts: list[Layout]) -> list[float]:
    """Of each layout in bf16 with four micro batches, how far its gradients are from the exact sum of what every
    backward pass gave: the norm of the difference by that of the sum."""
    return [_rounding_of_sums(layout) for layout in layouts]


def _rounding_of_sums(layout: Layout) -> float:
    run = small_run.run_config(layout, "bf16", accumulation=4)
    boosted = cases.boost(run)
    exact = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in boosted.module.named_parameters()}
    for name, parameter in boosted.module.named_parameters():
        parameter.register_hook(_adding_to(exact[name]))
    boosted.forward_backward(next(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size)))
    off = whole = 0.0
    for name, gradient in boosted.state.gradients():
        dist.all_reduce(exact[name])
        exact[name] /= dist.get_world_size()
        if gradient is not None:
            off += float((gradient.double() - exact[name]).square().sum())
            whole += float(exact[name].square().sum())
    return math.sqrt(off / whole) if whole else 0.0


def _adding_to(total: torch.Tensor) -> Callable[[torch.Tensor], None]:
    def add(gradient: torch.Tensor) -> None:
        total.add_(gradient.double())

    return add
