"""Cases that compute what checkpoints keep of a model's outputs, in the midst of training."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch

from llama_dyt.boosters.boosted import sum_over_ranks
from llama_dyt.core.errors import CheckpointError
from llama_dyt.training.checkpoint.forward_check import Computed
from tests.distributed import small_run, training_cases
from tests.distributed.cases import boost, gathered
from tests.distributed.small_run import Layout
from tests.distributed.validation_cases import _left_behind as left_behind

NUM_STEPS = 3


@dataclass
class Course:
    """What a run did, in numbers that were never rounded.

    Attributes:
        computed: before the first step and after every one.
    """

    losses: list[float] = field(default_factory=list)
    draws: list[tuple[float, float]] = field(default_factory=list)
    computed: list[Computed] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def courses(layout: Layout, precision: str, family: str) -> tuple[Course, Course]:
    """The same training twice, the second time with what a checkpoint keeps computed between the steps."""
    return tuple(_train(layout, precision, family, computes) for computes in (False, True))


def _train(layout: Layout, precision: str, family: str, computes: bool) -> Course:
    run = small_run.run_config(layout, precision, 2)
    boosted, course = boost(run, family=family), Course()
    torch.manual_seed(5)
    numpy.random.seed(5)

    def compute() -> None:
        if computes:
            course.computed.append(Computed.by(boosted))
            course.left += left_behind(boosted)

    compute()
    for step in islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), NUM_STEPS):
        course.losses += sum_over_ranks([boosted.forward_backward(step)], boosted.device)
        boosted.optimizer_step()
        course.draws.append((torch.rand(()).item(), numpy.random.random()))
        compute()
    course.weights = gathered(boosted)
    return course


def loading(layout: Layout, precision: str, path: str, **flags: Any) -> str:
    """The error that a checkpoint is refused with; empty where a run goes on from it."""
    run = small_run.run_config(layout, precision, **flags)
    try:
        training_cases.start(run, resume_from=Path(path))
    except CheckpointError as error:
        return str(error)
    return ""


def save_once(layout: Layout, precision: str, folder: str) -> str:
    """The path of a checkpoint after two steps."""
    trainer = training_cases.start(small_run.run_config(layout, precision), Path(folder))
    with training_cases.open_batches(trainer, None) as batches:
        training_cases.follow(trainer, batches, training_cases.Trace(), 2)
    return str(trainer.save())
