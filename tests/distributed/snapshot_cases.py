"""What the processes of `test_snapshots.py` run: the state goes to a slot, and comes from there into a new run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.data.loaders.step import Step
from llama_dyt.models import empty_model
from llama_dyt.training.optimizer import parameter_groups
from llama_dyt.training.sizing.memory import stage_parts
from llama_dyt.training.snapshots.layout import OwnLayout, parts_in
from llama_dyt.training.snapshots.slot import Slot, fingerprint_of
from tests.distributed import cases, small_run
from tests.distributed.small_run import Layout

STEPS = 2


@dataclass(frozen=True)
class Seen:
    """Of one rank.

    Attributes:
        went_on, came_back: losses and grad norms of the steps after a snapshot, of the run that took it and of one that
            began from it.
        size, expected: bytes of the snapshot, and what --dry_run reckons.
    """

    went_on: list[float]
    came_back: list[float]
    size: int
    expected: int


def there_and_back(layout: Layout, precision: str, folder: str, tied: bool = False) -> Seen:
    """A snapshot of a run, and a run from it.

    Both end with the same bits in what this rank holds, or it fails here; and neither has changed the slot.
    """
    run = small_run.run_config(layout, precision)
    first = cases.boost(run, tied=tied)
    batches = list(islice(small_run.batches(run, first.grid.dp_rank, first.grid.dp_size), 2 * STEPS))
    _train(first, batches[:STEPS])
    model = empty_model(small_run.model_config(tied=tied))
    trained = [name for name, _ in model.named_parameters()]
    layout_here = OwnLayout(first.state, trained)
    slot = Slot(Path(folder), dist.get_rank(), 0, layout_here.size)
    pieces = json.loads(json.dumps(layout_here.copy(first.state, slot.memory)))
    taken = fingerprint_of(slot.memory)
    steps, scaler = first.state.optimizer_steps(), first.scaler.state_dict()
    went_on = _train(first, batches[STEPS:])

    groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
    second = Boosted(run, model, groups, lambda name: {})
    second.state.take_own_parts(parts_in(slot.memory, pieces))
    second.state.set_optimizer_steps(steps)
    second.scaler.load_state_dict(scaler)
    came_back = _train(second, batches[STEPS:])

    assert taken[1] and fingerprint_of(slot.memory) == taken
    for (name, key, own), (*same, other) in zip(first.state.own_parts(), second.state.own_parts(), strict=True):
        assert [name, key] == same and torch.equal(own, other), f"{key} of {name}"
    part = stage_parts(run, small_run.model_config(tied=tied))[first.grid.pp_rank]
    shared = layout.strategy.shard_ranks(run, layout.world_size, layout.world_size)
    expected = 12 * layout.strategy.held_states(run, part, shared)
    return Seen(went_on, came_back, layout_here.size, expected)


def _train(boosted: Boosted, batches: list[Step]) -> list[float]:
    numbers = []
    for step in batches:
        numbers += sum_over_ranks([boosted.forward_backward(step)], boosted.device)
        numbers.append(float(boosted.optimizer_step().norm))
    return numbers
