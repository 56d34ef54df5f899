"""Cases that validate in the midst of training: what it finds, and that it leaves no trace.

Its own file because `cases.py` only trains.
"""

from __future__ import annotations

import signal
import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy
import torch
from torch.distributed.tensor import DTensor

from llama_dyt.boosters.boosted import Boosted, sum_over_ranks
from llama_dyt.config.run import RunConfig
from llama_dyt.data.loaders.step import BatchShape, Step, make_micro_batch
from llama_dyt.training.callbacks.callback import Callbacks
from llama_dyt.training.callbacks.validation import Figures, HeldOutBatches, Validation
from llama_dyt.training.loop import Trainer
from llama_dyt.training.trackers.trackers import Trackers
from tests.distributed import small_run, training_cases
from tests.distributed.cases import boost, gathered
from tests.distributed.small_run import Layout

NUM_STEPS = 6
INTERVAL = 2
FIRST_GLOBAL_BATCH = 100
"""Number of the first global batch that is validated on, far from those that are trained on."""
NUM_BATCHES = {"short": 1, "long": 2}
"""Sets by name, with so many global batches each."""


@dataclass
class Course:
    """What a run did, in numbers that were never rounded.

    Attributes:
        figures: of every validation, by set.
        draws: a number of torch's and numpy's generators, after every step.
        weights: fp32, after the last step, on the ranks that write them.
        left: what a validation left behind that should not be there.
    """

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float | None] = field(default_factory=list)
    draws: list[tuple[float, float]] = field(default_factory=list)
    figures: list[dict[str, Figures]] = field(default_factory=list)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)


def validation_numbers(name: str) -> range:
    """Numbers of the global batches of a set."""
    first = FIRST_GLOBAL_BATCH + 10 * sorted(NUM_BATCHES).index(name)
    return range(first, first + NUM_BATCHES[name])


def validation_of(boosted: Boosted) -> HeldOutBatches:
    run, grid = boosted.run, boosted.grid
    accumulation = run.optimizer.gradient_accumulation_steps
    shape = BatchShape(run.data.batch_size, accumulation, grid.dp_rank, grid.dp_size)
    sets: dict[str, list[Step]] = {}
    for name in sorted(NUM_BATCHES):
        sets[name] = []
        for number in validation_numbers(name):
            ids, labels = small_run.global_batch(number)
            parts = zip(
                numpy.split(ids[shape.own_rows], accumulation), numpy.split(labels[shape.own_rows], accumulation)
            )
            batches = [make_micro_batch(*part) for part in parts]
            sets[name].append(Step(batches, small_run.num_label_tokens(labels), ids.size, {}))
    return HeldOutBatches(sets)


def courses(layout: Layout, precision: str, accumulation: int = 1, **flags: Any) -> tuple[Course, Course]:
    """The same training twice: without validation, and with one before the first step and after every second one."""
    return tuple(_train(layout, precision, accumulation, validates, **flags) for validates in (False, True))


def _train(layout: Layout, precision: str, accumulation: int, validates: bool, **flags: Any) -> Course:
    run = small_run.run_config(layout, precision, accumulation, **flags)
    boosted, course = boost(run), Course()
    torch.manual_seed(5)
    numpy.random.seed(5)
    validation = validation_of(boosted)
    steps = islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), NUM_STEPS)
    for number, step in enumerate(steps):
        if validates and number % INTERVAL == 0:
            course.figures.append(validation.measure(boosted, stop_asked=lambda: False))
            course.left += _left_behind(boosted)
        course.losses += sum_over_ranks([boosted.forward_backward(step)], boosted.device)
        course.grad_norms.append(boosted.optimizer_step().grad_norm)
        course.draws.append((torch.rand(()).item(), numpy.random.random()))
    if validates:
        course.figures.append(validation.measure(boosted, stop_asked=lambda: False))
        course.left += _left_behind(boosted)
    course.weights = gathered(boosted)
    return course


def _left_behind(boosted: Boosted) -> list[str]:
    named = list(boosted.module.named_parameters())
    left = [f"gradient of {name}" for name, parameter in named if parameter.grad is not None]
    left += [f"evaluation mode of {name}" for name, part in boosted.model.named_modules() if not part.training]
    if boosted.run.booster.plugin.startswith(("fsdp", "hsdp")):
        left += [f"all of {name}" for name, parameter in named if not isinstance(parameter, DTensor)]
    if boosted.run.booster.plugin.startswith("gemini"):
        left += [f"accessed chunks of {mem} bytes" for mem in [boosted.model.chunk_manager.accessed_mem] if mem]
    return left


def interrupted(layout: Layout, asked: list[int]) -> list[bool]:
    """Whether a validation came to its end, where rank 1 is asked to stop after so many of its batches."""
    boosted = boost(small_run.run_config(layout, "fp32"))
    ended = []
    for after in asked:
        looks = iter(range(100))
        stop = lambda looks=looks, after=after: next(looks) >= after and boosted.grid.dp_rank == 1  # noqa: E731
        ended.append(validation_of(boosted).measure(boosted, stop) is not None)
    return ended


def signalled(layout: Layout, folder: str, max_steps: int) -> tuple[str, int, bool]:
    """How a run ends that gets SIGTERM on rank 1 in its first validation, at which step, and whether it was logged."""
    trainer = training_cases.start(_validating(layout), Path(folder))
    boosted = trainer.boosted
    logged = _log_validations(trainer)
    evaluate = boosted.evaluate

    def evaluate_and_signal(step: Step) -> torch.Tensor:
        if boosted.grid.dp_rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(step)

    boosted.evaluate = evaluate_and_signal
    with training_cases.open_batches(trainer, None) as batches:
        ending = trainer.fit(batches, max_steps)
    return str(ending), trainer.progress.step, bool(logged)


def signalled_in_a_save(layout: Layout, folder: str) -> tuple[str, int, int]:
    """How a run ends that gets SIGTERM, twice, on rank 1 in its first save; at which step, and after how many saves."""
    trainer = training_cases.start(small_run.run_config(layout, "fp32", save_interval=2), Path(folder))
    writer = trainer.checkpointing.writer
    save, saves = writer.save, []

    def signal_and_save(step: int, *what: object) -> Path:
        saves.append(step)
        if trainer.boosted.grid.dp_rank == 1:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.05)
            signal.raise_signal(signal.SIGTERM)
        return save(step, *what)

    writer.save = signal_and_save
    with training_cases.open_batches(trainer, None) as batches:
        ending = trainer.fit(batches, max_steps=10)
    return str(ending), trainer.progress.step, len(saves)


def _validating(layout: Layout) -> RunConfig:
    return small_run.run_config(layout, "fp32", validation_freq=INTERVAL)


def _log_validations(trainer: Trainer) -> list[int]:
    """Have a trainer validate; the steps are put into the list as they are logged."""
    logged: list[int] = []
    trackers = Trackers()
    trackers.log_validation = lambda record: logged.append(record["step"])
    validation = Validation(trainer.boosted.run, validation_of(trainer.boosted), trackers)
    trainer.callbacks = Callbacks([*trainer.callbacks, validation])
    return logged


def validated_steps(layout: Layout, max_steps: int) -> list[int]:
    """The steps after which a run logs a validation."""
    trainer = training_cases.start(_validating(layout))
    logged = _log_validations(trainer)
    with training_cases.open_batches(trainer, None) as batches:
        trainer.fit(batches, max_steps)
    return logged
