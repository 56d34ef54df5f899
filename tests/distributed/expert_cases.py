"""What the processes of `test_experts.py` run beside the training of all tests: routers made to choose one way, faults
planted in how experts are spread, and states handed from one layout to another."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import islice
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.boosters.layers import expert_exchange
from llama_dyt.boosters.strategies.hybrid import clipping, runtime
from llama_dyt.models import empty_model
from llama_dyt.models.mixtral import modeling_mixtral_dyt
from llama_dyt.models.ops.capacity import within_capacity
from llama_dyt.training.callbacks.routing import Routing
from llama_dyt.training.optimizer import parameter_groups
from tests.distributed import cases, small_run
from tests.distributed.small_run import Layout

FAMILY = "mixtral_8x2m"
LIMITED = f"{FAMILY} limited"
"""The same with a capacity."""


@dataclass(frozen=True)
class Steps:
    """What some steps came to, on one rank.

    Attributes:
        gradients: of the first step, whole, on the ranks that write them.
        grad_norms, losses: of every step.
        dense: sum of the working weights that all ranks have alike, to the last bit.
        choices: of the first micro batch over all ranks, (layers, experts).
    """

    gradients: dict[str, torch.Tensor]
    grad_norms: list[float]
    losses: list[float]
    dense: list[bytes]
    choices: torch.Tensor


def steps_of(boosted: Boosted, num_steps: int = 2, first: int = 0) -> Steps:
    gradients: dict[str, torch.Tensor] = {}
    grad_norms, losses, choices = [], [], None
    batches = small_run.batches(boosted.run, boosted.grid.dp_rank, boosted.grid.dp_size, {"step": first})
    for step in islice(batches, num_steps):
        boosted.set_learning_rate(boosted.run.optimizer.lr)
        losses += sum_over_ranks([boosted.forward_backward(step)], boosted.device)
        if choices is None:
            choices = boosted.routing.passes[0].totals().choices.clone()
            gradients = {name: whole for name, whole in boosted.state.gradients() if whole is not None}
        grad_norms.append(boosted.optimizer_step().grad_norm)
    dense = [
        parameter.detach().float().numpy().tobytes()
        for name, parameter in boosted.module.named_parameters()
        if ".experts." not in name and not hasattr(parameter, "to_local")
    ]
    return Steps(gradients, grad_norms, losses, dense, choices)


def as_whole(layout: Layout, skewed: bool) -> list[Steps]:
    """The same steps with experts spread as the layout says, and whole on every rank.

    Args:
        skewed: all tokens are sent to the first two experts.
    """
    flags = tuple((name, value) for name, value in layout.flags if name != "ep")
    return [_steps(each, skewed) for each in (layout, replace(layout, flags=flags))]


def _steps(layout: Layout, skewed: bool) -> Steps:
    run = small_run.run_config(layout, layout.precisions[0], 2 if layout.pp == 1 else 1)
    boosted = cases.boost(run, family=FAMILY)
    if skewed:
        for layer in boosted.module.model.layers:
            if hasattr(layer, "mlp"):
                layer.mlp.gate.register_forward_hook(
                    lambda gate, _, logits: logits + torch.tensor([9.0, 8.0, 0.0, 0.0], device=logits.device)
                )
    return steps_of(boosted)


def routing_record(layout: Layout, accumulation: int) -> dict[str, Any]:
    """What is logged of a step whose experts have a capacity."""
    run = small_run.run_config(layout, layout.precisions[0], accumulation)
    boosted = cases.boost(run, family=LIMITED)
    steps_of(boosted, num_steps=1)
    return Routing(run).record(SimpleNamespace(boosted=boosted), None)


def faulty(fault: str) -> Steps:
    """One step under ddp with experts spread over two ranks, with a capacity where that is what is wrong."""
    run = small_run.run_config(Layout("ddp", 2, flags=(("ep", 2),)), "fp32", 2)
    before, after = (FAULTS | FAULTS_OF_CAPACITY)[fault]
    with before():
        boosted = cases.boost(run, family=LIMITED if fault in FAULTS_OF_CAPACITY else FAMILY)
        after(boosted)
        return steps_of(boosted, num_steps=1)


def _each_experts(change: Callable[[torch.nn.Module], None]) -> Callable[[Boosted], None]:
    return lambda boosted: [change(layer.mlp.experts) for layer in boosted.module.model.layers]


def _share(share: float) -> Callable[[Boosted], None]:
    return _each_experts(lambda experts: setattr(experts, "weight_gradient_share", share))


@contextmanager
def _routers_unreduced() -> Iterator[None]:
    spread = runtime.spread_parameters

    def routers_too(model: torch.nn.Module) -> Iterator[Any]:
        yield from spread(model)
        yield from ((name, held, None) for name, held in model.named_parameters() if name.endswith("gate.weight"))

    with mock.patch.object(runtime, "spread_parameters", routers_too):
        yield


@contextmanager
def _norms_added() -> Iterator[None]:
    squares, seen = clipping.squared_norm, []

    def norms(*args: Any) -> torch.Tensor:
        seen.append(squares(*args))
        return seen[-1] if len(seen) == 1 else seen[-1] + 2 * (seen[0] * seen[-1]).sqrt()

    with mock.patch.object(clipping, "squared_norm", norms):
        yield


@contextmanager
def _norm_of_own_experts() -> Iterator[None]:
    squares = clipping.squared_norm
    with mock.patch.object(clipping, "squared_norm", lambda parts, groups: squares(parts, [])):
        yield


def _balance_of_a_rank(boosted: Boosted) -> None:
    boosted.routing.reduce, boosted.routing.copies = lambda sums: lambda: None, 1


@contextmanager
def _first_expert_elsewhere() -> Iterator[None]:
    """Tokens of the first expert go to the rank that has the last one."""
    exchanged = expert_exchange.exchanged

    def elsewhere(experts: Any, group: Any, tokens: Any, chosen: torch.Tensor, weights: Any) -> torch.Tensor:
        return exchanged(experts, group, tokens, chosen.masked_fill(chosen == 0, 3), weights)

    from llama_dyt.boosters import expert_parallel

    with mock.patch.object(expert_parallel, "exchanged", elsewhere):
        yield


def _within(change: Callable[..., torch.Tensor]) -> Callable[[], Any]:
    return lambda: mock.patch.object(modeling_mixtral_dyt, "within_capacity", change)


def _made_whole(experts: torch.nn.Module) -> None:
    """The weights of what is left of a token's choices sum to 1 again."""
    forward = experts.forward
    experts.forward = lambda tokens, chosen, weights: forward(
        tokens, chosen, weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)
    )


def _nothing(boosted: Boosted) -> None: ...


FAULTS: dict[str, tuple[Callable[[], Any], Callable[[Boosted], Any]]] = {
    "none": (nullcontext, _nothing),
    "expert gradients times ep": (nullcontext, _share(1.0)),
    "expert gradients divided twice": (nullcontext, _share(0.25)),
    "norms added in place of squares": (_norms_added, _nothing),
    "each rank's norm of its own experts": (_norm_of_own_experts, _nothing),
    "no sum of the routers' gradients over ranks": (_routers_unreduced, _nothing),
    "balance of a rank in place of all": (nullcontext, _balance_of_a_rank),
    "an expert's tokens to the wrong rank": (_first_expert_elsewhere, _nothing),
}
"""In words → what is changed while a model is boosted and trained, and what of the boosted one."""
FAULTS_OF_CAPACITY: dict[str, tuple[Callable[[], Any], Callable[[Boosted], Any]]] = {
    "second choices before first ones": (
        _within(lambda c, *sizes: within_capacity(c.flip(1), *sizes).flip(1)),
        _nothing,
    ),
    "the last tokens before the first": (
        _within(lambda c, *sizes: within_capacity(c.flip(0), *sizes).flip(0)),
        _nothing,
    ),
    "a capacity of both ranks' tokens": (_within(lambda c, num, places: within_capacity(c, num, 2 * places)), _nothing),
    "weights that are made to sum to 1 again": (nullcontext, _each_experts(_made_whole)),
}
"""The same, of experts that have a capacity."""


@dataclass(frozen=True)
class Leg:
    """One layout on the way.

    Attributes:
        name: the layout's.
        same: weights and moments are those it was handed, to the last bit; on ranks that write them.
        shapes: of what it hands on.
        loss: of its first step.
    """

    name: str
    same: bool
    shapes: dict[str, torch.Size]
    loss: float


def handed_on(layouts: list[Layout]) -> list[Leg]:
    """Train two steps a layout; each goes on with the weights and moments of the one before."""
    whole: dict[str, dict[str, torch.Tensor]] | None = None
    legs, steps = [], 0
    for layout in layouts:
        run = small_run.run_config(layout, "fp32", 1)
        model = empty_model(small_run.model_config(family=FAMILY))
        groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
        handed = whole
        read = small_run.weights(model, small_run.SEED) if handed is None else handed.__getitem__
        boosted = Boosted(run, model, groups, read)
        boosted.state.set_optimizer_steps(steps)
        began = _whole(boosted)
        same = handed is None or all(
            torch.equal(tensor, handed[name][key]) for name, held in began.items() for key, tensor in held.items()
        )
        trained = steps_of(boosted, first=steps)
        whole, steps = _whole(boosted), steps + 2
        legs.append(
            Leg(str(layout), same, {name: held["param"].shape for name, held in whole.items()}, trained.losses[0])
        )
    return legs


def handed_on_unevenly(layouts: list[Layout]) -> list[Leg]:
    """The same of a model with six experts, which four ranks cannot have evenly."""
    with mock.patch.dict(small_run.OF_FAMILIES[FAMILY], num_local_experts=6):
        return handed_on(layouts)


def _whole(boosted: Boosted) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors, on every rank."""
    own = {name: held for name, held in boosted.state.gather(list(boosted.state.sizes())) if held is not None}
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    return {name: held for of_rank in every for name, held in of_rank.items()}
