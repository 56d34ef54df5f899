"""Cases in which a loss or a gradient is not finite, or is looked at a step late.

Its own file because they spoil a single step, and force on a CPU what a booster does on CUDA alone.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.boosters.step import NonFiniteGradientError
from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import CheckpointError, TrainingError
from llama_dyt.training.checkpoint.background import BackgroundWriter
from llama_dyt.training.loop import Trainer
from tests.distributed import cases, small_run, training_cases
from tests.distributed.small_run import Layout


def spoiled_gradient(layout: Layout, precision: str, tp_rank: int | None = None) -> tuple[str, list[str]]:
    """Two steps, the second with one gradient of nan on the ranks that read the first rows; of these, on all or on the
    one of a tensor-parallel group.

    Returns:
        How it was told, and the names of the weights that changed all the same.
    """
    run = small_run.run_config(layout, precision)
    spoil = {"now": False}

    def to_nan(name: str, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan") if spoil["now"] and name.endswith("0.mlp.up_proj.weight") else gradient

    with mock.patch.dict(cases.FAULTS, {"nan": to_nan}):
        boosted = cases.boost(run, fault="nan")
        first, second = islice(small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size), 2)
        boosted.forward_backward(first)
        boosted.optimizer_step()
        before = cases.gathered(boosted)
        spoil["now"] = boosted.grid.dp_rank == 0 and tp_rank in (None, boosted.grid.tp_rank)
        boosted.forward_backward(second)
        try:
            told = f"norm {boosted.optimizer_step().grad_norm}"
        except NonFiniteGradientError as error:
            told = f"raised {error.args[0]}"
    after = cases.gathered(boosted)
    return told, [name for name in before if not torch.equal(before[name], after[name])]


def read_late(layout: Layout, precision: str, late: bool) -> training_cases.Trace:
    """Some steps whose outcome is looked at a step late, as on CUDA, or at once."""
    with mock.patch.object(Boosted, "runs_ahead", late):
        trainer, trace = training_cases.start(small_run.run_config(layout, precision)), training_cases.Trace()
        with training_cases.open_batches(trainer, None) as batches:
            training_cases.follow(trainer, batches, trace, 5)
        trainer.settle()
        return training_cases.finish(trainer, trace)


def spoiled_and_read_late(layout: Layout, folder: str, save: bool) -> tuple[list[str], list[str], list[str]]:
    """A loss of nan, with a gradient that is finite, in the second step, looked at a step late.

    Returns:
        What was raised and when, the names of weights that the second step changed, and what was saved.
    """
    raised: list[str] = []
    with mock.patch.object(Boosted, "runs_ahead", True):
        trainer = training_cases.start(small_run.run_config(layout, "fp32"), Path(folder))
        forward_backward = trainer.boosted.forward_backward
        steps = iter(small_run.batches(trainer.boosted.run, trainer.boosted.grid.dp_rank, trainer.boosted.grid.dp_size))
        trainer.train_step(next(steps))
        before = training_cases.tensors_of(trainer)
        with mock.patch.object(trainer.boosted, "forward_backward", lambda step: forward_backward(step) * float("nan")):
            trainer.train_step(next(steps))
        after = training_cases.tensors_of(trainer)
        try:
            trainer.save() if save else trainer.train_step(next(steps))
        except TrainingError as error:
            raised.append(str(error))
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    return raised, changed, sorted(path.name for path in Path(folder).iterdir())


def overflowing_for_good(layouts: list[Layout]) -> list[tuple[str, int]]:
    """Of each layout, how a run in fp16 ends whose gradients overflow at any loss scale, and its steps until then."""
    found = []
    for layout in layouts:
        trainer = training_cases.start(small_run.run_config(layout, "fp16"))
        training_cases.force_scale(trainer, 4.0)
        batches = small_run.batches(trainer.boosted.run, trainer.boosted.grid.dp_rank, trainer.boosted.grid.dp_size)
        message = ""
        try:
            for step in islice(batches, 40):
                # Label tokens divide the loss: of so few its gradients are beyond fp16.
                trainer.train_step(replace(step, num_label_tokens=1e-9))
        except TrainingError as error:
            message = str(error)
        found.append((message, trainer.progress.step))
    return found


def spoiled_state(layouts: list[Layout], folder: str) -> list[tuple[str, list[str], str]]:
    """Of each layout, with one moment of nan on one rank: what a save says, what was saved before it and after, and
    what resuming says from a checkpoint that was written all the same."""
    return [_spoiled_state(layout, Path(folder) / str(layout)) for layout in layouts]


def _spoiled_state(layout: Layout, folder: Path) -> tuple[str, list[str], str]:
    run = small_run.run_config(layout, "bf16")
    trainer = training_cases.start(run, folder)
    steps = small_run.batches(run, trainer.boosted.grid.dp_rank, trainer.boosted.grid.dp_size)
    for _ in range(2):
        trainer.train_step(next(steps))
    trainer.save()
    if dist.get_rank() == 1:
        parts = [part for name, key, part in trainer.boosted.state.own_parts() if key == "exp_avg_sq" and part.numel()]
        parts[-1].view(-1)[0] = float("nan")
    trainer.train_step(next(steps))
    refused = ""
    try:
        trainer.save()
    except TrainingError as error:
        refused = str(error)
    saved = sorted(path.name for path in folder.iterdir())
    with mock.patch.object(trainer, "health"):
        trainer.save()
    try:
        training_cases.start(run, resume_from=trainer.checkpointing.writer.last_path)
    except CheckpointError as error:
        return refused, saved, str(error)
    return refused, saved, ""


def spoiled_in_the_background(layouts: list[Layout], folder: str) -> list[tuple[str, list[str]]]:
    """Of each layout, with one moment of nan on one rank: what an asynchronous save says in the end, and what there is
    of it."""
    return [_spoiled_in_the_background(layout, Path(folder) / str(layout)) for layout in layouts]


def _spoiled_in_the_background(layout: Layout, folder: Path) -> tuple[str, list[str]]:
    run = small_run.run_config(layout, layout.precisions[0])
    trainer = training_cases.start(run, folder)
    boosted = trainer.boosted
    files = trainer.checkpointing.writer._save_model_files
    writer = trainer.checkpointing.writer = BackgroundWriter(folder, boosted.state, boosted.grid, files)
    steps = small_run.batches(run, boosted.grid.dp_rank, boosted.grid.dp_size)
    trainer.train_step(next(steps))
    if dist.get_rank() == 1 or layout.plugin == "ddp":
        parts = [part for name, key, part in boosted.state.own_parts() if key == "exp_avg_sq" and part.numel()]
        parts[-1].view(-1)[0] = float("nan")
    trainer.save()
    refused = ""
    try:
        trainer.checkpointing.before_end(trainer)
    except CheckpointError as error:
        refused = str(error)
    writer.close()
    dist.barrier()
    return refused, [path.name for path in folder.iterdir()] if folder.exists() else []


def skipping(layout: Layout, precision: str, late: bool, folder: str) -> dict[str, list[str]]:
    """Seven steps, of which the first, the fourth and the fifth are spoiled on the last data-parallel rank alone, by a
    loss or by a gradient of nan; and the same steps without those, whose rate passes by. Also gone on with from a
    checkpoint between the two spoiled steps, where the loss is.

    Returns:
        Kind of spoiling → what differs, in words.
    """
    run = small_run.run_config(layout, precision, skip_nonfinite=3, warmup_steps=4, lr_scheduler="cosine")
    differences: dict[str, list[str]] = {}
    with mock.patch.object(Boosted, "runs_ahead", late):
        without = _without_spoiled_steps(run)
        for kind in ("loss", "gradient"):
            trainer = training_cases.start(run, Path(folder) / kind)
            spoiled = _follow_spoiled(trainer, kind, save=kind == "loss")
            found = differences.setdefault(kind, [])
            if kind == "gradient" and precision == "fp16":  # the loss scaler's: it lowers the scale, the schedule waits
                expected = 0, len(SPOILED)
            else:
                expected = len(SPOILED), 0
                found += [f"without: {key}" for key in _differences(spoiled, without)]
            counted = spoiled.progress["nonfinite_steps"], spoiled.progress["skipped_steps"]
            if counted != expected:
                found.append(f"counted {counted}")
            if kind == "loss":
                again = run.replace(seed=small_run.SEED + 1)
                trainer = training_cases.start(again, resume_from=trainer.checkpointing.writer.last_path)
                resumed = _follow_spoiled(trainer, kind, save=False)
                found += [f"resumed: {key}" for key in _differences(spoiled, resumed)]
    return differences


SPOILED = (1, 4, 5)
"""Steps that are spoiled, counted from 1."""
_SAVED_AFTER, _STEPS = 4, 7


class _Poison:
    """Makes the output of an embedding nan, or its gradient, in the steps that it is told of."""

    def __init__(self, trainer: Trainer, kind: str) -> None:
        self.now = False
        grid = trainer.boosted.grid
        if grid.pp_rank == 0 and grid.dp_rank == grid.dp_size - 1:
            embedding = trainer.boosted.module.get_input_embeddings()
            embedding.register_forward_hook(self._spoil_loss if kind == "loss" else self._spoil_gradient)

    def _spoil_loss(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output * float("nan") if self.now else output

    def _spoil_gradient(self, module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        if self.now:
            output.register_hook(lambda gradient: gradient * float("nan"))
        return output


def _follow_spoiled(trainer: Trainer, kind: str, save: bool) -> training_cases.Trace:
    trace, poison = training_cases.Trace(), _Poison(trainer, kind)
    with training_cases.open_batches(trainer, None) as batches:
        while trainer.progress.step < _STEPS:
            step = trainer.progress.step + 1
            poison.now = step in SPOILED
            into = training_cases.Trace() if poison.now else trace
            training_cases.follow(trainer, batches, into, 1)
            poison.now = False
            if save and step == _SAVED_AFTER:
                trainer.save()
        trainer.settle()
        return training_cases.finish(trainer, trace)


def _without_spoiled_steps(run: RunConfig) -> training_cases.Trace:
    trainer, trace = training_cases.start(run), training_cases.Trace()
    with training_cases.open_batches(trainer, None) as batches:
        while trainer.progress.step < _STEPS:
            if trainer.progress.step + 1 in SPOILED:
                next(batches)
                trainer.progress.step += 1
            else:
                training_cases.follow(trainer, batches, trace, 1)
        trainer.settle()
        return training_cases.finish(trainer, trace)


def _differences(one: training_cases.Trace, other: training_cases.Trace) -> list[str]:
    after = len(other.losses)  # a run that was gone on with has the last steps alone
    found = [
        f"{name} {getattr(one, name)[-after:]} and {getattr(other, name)}"
        for name in ("losses", "lrs", "grad_norms")
        if getattr(one, name)[-after:] != getattr(other, name)
    ]
    found += [name for name, tensor in one.tensors.items() if not torch.equal(tensor, other.tensors[name])]
    if (one.optimizer_steps, one.scaler) != (other.optimizer_steps, other.scaler):
        found.append(f"Adam's steps or the scaler: {one.optimizer_steps}, {other.optimizer_steps}")
    return found


def too_many_spoiled(layouts: list[Layout]) -> list[tuple[str, int, int, list[str]]]:
    """Of each layout, a run with --skip_nonfinite 3 whose steps are all spoiled but the first and the third.

    Returns:
        What it ends with, at which step, how many were no good, and what was told before.
    """
    found = []
    for layout in layouts:
        trainer = training_cases.start(small_run.run_config(layout, "bf16", skip_nonfinite=3))
        poison, message, told = _Poison(trainer, "loss"), "", []
        with training_cases.open_batches(trainer, None) as batches:
            try:
                for number, step in enumerate(islice(batches, 10), start=1):
                    poison.now = number not in (1, 3)
                    trainer.train_step(step)
                    told += [line for _, _, line in trainer.health.news()]
            except TrainingError as error:
                message = str(error)
        found.append((message, trainer.progress.step, trainer.progress.nonfinite_steps, told))
    return found
