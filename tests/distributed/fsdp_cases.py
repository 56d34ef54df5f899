"""What the processes of `test_fsdp.py` run: the fsdp plugins looked at from inside."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from llama_dyt.boosters.boosted import Boosted
from tests.distributed import cases, small_run
from tests.distributed.small_run import Layout


@dataclass(frozen=True)
class Inside:
    """What one rank sees during one step of two micro batches.

    Attributes:
        rows: of every parameter, how many of its rows lie here.
        dtypes: of the shards and their gradients, of every gathered parameter while layers run, and of what layers get.
        reduced: after each micro batch, whether gradients have reached the shards.
        optimized: the optimizer holds the sharded parameters, each once, in the model's order.
        moved: names whose rows here changed in the step.
    """

    rows: dict[str, int]
    shard_dtypes: set[torch.dtype]
    gathered_dtypes: set[torch.dtype]
    hidden_dtypes: set[torch.dtype]
    reduced: list[bool]
    optimized: bool
    moved: set[str]


def look_inside(layout: Layout, precision: str) -> Inside:
    run = small_run.run_config(layout, precision, accumulation=2)
    boosted = cases.boost(run, num_layers=2)
    parameters: dict[str, DTensor] = dict(boosted.module.named_parameters())
    before = {name: parameter.to_local().clone() for name, parameter in parameters.items()}
    gathered: set[torch.dtype] = set()
    hidden: set[torch.dtype] = set()

    def look(layer: nn.Module, args: tuple) -> None:
        gathered.update(parameter.dtype for parameter in layer.parameters())
        hidden.add(args[0].dtype)

    # On a part of the layer: the layer's own hooks run before its parameters are gathered.
    for layer in boosted.module.model.layers:
        layer.mlp.register_forward_pre_hook(look)
    (step,) = islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), 1)
    reduced = _watch_reduction(boosted, parameters)
    boosted.forward_backward(step)
    dtypes = {tensor.dtype for parameter in parameters.values() for tensor in (parameter, parameter.grad)}
    held = [parameter for group in boosted.optimizer.param_groups for parameter in group["params"]]
    boosted.optimizer_step()
    return Inside(
        rows={name: len(parameter.to_local()) for name, parameter in parameters.items()},
        shard_dtypes=dtypes,
        gathered_dtypes=gathered,
        hidden_dtypes=hidden,
        reduced=reduced,
        optimized=[id(parameter) for parameter in held] == [id(parameter) for parameter in parameters.values()],
        moved={name for name, p in parameters.items() if not torch.equal(p.to_local(), before[name])},
    )


def _watch_reduction(boosted: Boosted, parameters: dict[str, DTensor]) -> list[bool]:
    reduced: list[bool] = []
    backward = boosted.optimizer.backward

    def watched(*args, **kwargs) -> None:
        backward(*args, **kwargs)
        reduced.append(any(parameter.grad is not None for parameter in parameters.values()))

    boosted.optimizer.backward = watched
    return reduced


def state_after_a_forward_pass(layout: Layout) -> bool:
    """Whether new weights take the place of those that a forward pass without a backward left gathered."""
    run = small_run.run_config(layout, "fp32")
    boosted = cases.boost(run, num_layers=2)
    ids = torch.arange(small_run.LENGTH).unsqueeze(0)
    with torch.no_grad():
        first = boosted.model(input_ids=ids, use_cache=False).logits
        boosted.state.scatter(lambda name: {"param": torch.zeros(small_run_shapes()[name])})
        second = boosted.model(input_ids=ids, use_cache=False).logits
    return bool(first.any()) and not second.any()


def small_run_shapes() -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in small_run.small_model(num_layers=2).named_parameters()}
