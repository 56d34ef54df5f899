"""Cases that go through the trainer's own session, schedule and checkpoints: resuming, overflow, failing saves.

Its own file because `cases.py` drives a booster alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any
from unittest import mock

import numpy
import torch
import torch.distributed as dist

from llama_dyt.config.run import RunConfig
from llama_dyt.core.environment import ProcessEnvironment
from llama_dyt.core.errors import CheckpointError
from llama_dyt.data.loaders.packed import TokenBatches
from llama_dyt.data.loaders.step import BatchShape, Step
from llama_dyt.training.checkpoint import writer as checkpoint_module
from llama_dyt.training.checkpoint.background import BackgroundWriter
from llama_dyt.training.checkpoint.copying import Copying
from llama_dyt.training.checkpoint.marker import damaged_files, read_marker
from llama_dyt.training.checkpoint.model_files import save_model_files
from llama_dyt.training.checkpoint.reader import Checkpoint
from llama_dyt.training.checkpoint.writer import CheckpointWriter
from llama_dyt.training.loop import Trainer
from llama_dyt.training.plan import Plan
from llama_dyt.training.session import Session
from llama_dyt.training.tapering.plan import fit_gates
from tests.distributed import small_run
from tests.distributed.small_run import Layout

NUM_LAYERS = 2
TOTAL_STEPS = 20
SAVE_AT = 10
OVERFLOW_AT = 8
"""The step before which fp16 runs get a loss scale that overflows for a few steps, the saved one among them."""
TOO_LARGE_SCALE = 2.0**20


@dataclass
class Trace:
    """What a run did, in numbers that were never rounded. Tensors are here only on the ranks that write them.

    Attributes:
        losses, lrs, grad_norms, skipped, loss_scales: one entry a step.
        draws: a number of each of the process's random generators, drawn after every step.
        tensors: fp32 weights and Adam's moments after the last step, "param.<name>" and so on.
        optimizer_steps: Adam's own count.
        scaler: the loss scaler's state.
        progress: the trainer's counters and the data position.
    """

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    grad_norms: list[float | None] = field(default_factory=list)
    skipped: list[bool] = field(default_factory=list)
    loss_scales: list[float] = field(default_factory=list)
    draws: list[tuple[float, float, float]] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    optimizer_steps: int = 0
    scaler: dict[str, Any] | None = None
    progress: dict[str, Any] = field(default_factory=dict)


def num_layers(run: RunConfig) -> int:
    """Layers of the model: few, but one for every chunk of a pipeline."""
    return max(NUM_LAYERS, run.booster.pp * run.booster.model_chunks)


def start(
    run: RunConfig,
    folder: Path | None = None,
    resume_from: Path | None = None,
    teacher: Path | None = None,
    norm: str = "dyt",
    family: str = "15m",
) -> Trainer:
    """The trainer of a run as an entry gets it, in the process group that the pool made."""
    config = small_run.model_config(norm, num_layers=num_layers(run), family=family)
    checkpoint = Checkpoint(resume_from) if resume_from else None
    fit_gates(run, config, checkpoint)
    plan = Plan(
        run=run,
        environment=ProcessEnvironment(dist.get_rank(), dist.get_world_size()),
        device="cpu",
        model_config=config,
        checkpoint=checkpoint,
        teacher_folder=teacher,
    )
    session = "llama_dyt.training.session"
    with mock.patch(f"{session}.launch"), mock.patch(f"{session}.Speedometer"):
        started = Session(plan)
        writer = None
        if folder is not None:
            files = partial(save_model_files, plan.model_config, None)
            writer = CheckpointWriter(folder, started.boosted.state, started.grid, files)
        return started.make_trainer(TOTAL_STEPS, writer=writer)


def follow(trainer: Trainer, steps: Iterable[Step], trace: Trace, num_steps: int) -> None:
    """Train some steps and write down what came of them."""
    for step in islice(steps, num_steps):
        outcome = trainer.train_step(step)
        trace.losses.append(outcome.loss)
        trace.lrs.append(outcome.lr)
        trace.grad_norms.append(outcome.result.grad_norm)
        trace.skipped.append(outcome.result.skipped)
        trace.loss_scales.append(outcome.result.loss_scale)
        trace.draws.append((random.random(), numpy.random.random(), torch.rand(()).item()))


def finish(trainer: Trainer, trace: Trace) -> Trace:
    """Add the state after the last step."""
    state = trainer.boosted.state
    trace.tensors = tensors_of(trainer)
    trace.optimizer_steps = state.optimizer_steps()
    trace.scaler = trainer.boosted.scaler.state_dict()
    trace.progress = dict(vars(trainer.progress))
    return trace


def tensors_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    state = trainer.boosted.state
    return {
        f"{key}.{name}": tensor
        for name, tensors in state.gather(list(state.sizes()))
        if tensors is not None
        for key, tensor in tensors.items()
    }


def force_scale(trainer: Trainer, scale: float) -> None:
    trainer.boosted.scaler.load_state_dict({"scale": scale, "growth_step": 0, "hysteresis_step": 0})


def open_batches(trainer: Trainer, text: str | None) -> Any:
    """The run's steps from where it stands, as a context: of the small run, or of a text file."""
    run, grid, position = trainer.boosted.run, trainer.boosted.grid, trainer.progress.position
    if text is None:
        return nullcontext(small_run.batches(run, grid.dp_rank, grid.dp_size, position))
    shape = BatchShape(run.data.batch_size, run.optimizer.gradient_accumulation_steps, grid.dp_rank, grid.dp_size)
    return closing(TokenBatches(text, small_run.letters_tokenizer(), run.data.max_length, shape, state=position))


def resume(layout: Layout, precision: str, folder: str, text: str | None = None) -> tuple[Trace, Trace]:
    """All steps, a checkpoint among them, and the steps after it again in a run that began with other weights."""
    run = small_run.run_config(layout, precision, lr_scheduler="cosine", warmup_steps=4)
    straight = Trace()
    trainer = start(run, Path(folder))
    with open_batches(trainer, text) as batches:
        steps: Iterator[Step] = iter(batches)
        follow(trainer, steps, straight, OVERFLOW_AT)
        if precision == "fp16":
            force_scale(trainer, TOO_LARGE_SCALE)
        follow(trainer, steps, straight, SAVE_AT - OVERFLOW_AT)
        trainer.save()
        follow(trainer, steps, straight, TOTAL_STEPS - SAVE_AT)
    path = trainer.checkpointing.writer.last_path
    finish(trainer, straight)

    resumed = Trace()
    trainer = start(run.replace(seed=small_run.SEED + 1), resume_from=path)
    with open_batches(trainer, text) as batches:
        follow(trainer, iter(batches), resumed, TOTAL_STEPS - SAVE_AT)
    return straight, finish(trainer, resumed)


def load(layout: Layout, precision: str, path: str) -> tuple[dict[str, torch.Tensor], float]:
    """What a run holds that resumed from a checkpoint, and the loss of its next step."""
    run = small_run.run_config(layout, precision).replace(seed=small_run.SEED + 1)
    trainer, trace = start(run, resume_from=Path(path)), Trace()
    tensors = tensors_of(trainer)
    with open_batches(trainer, None) as batches:
        follow(trainer, batches, trace, 1)
    return tensors, trace.losses[0]


def overflow(layout: Layout, scale: float, at: int, num_steps: int, accumulation: int = 1) -> tuple[Trace, list[bool]]:
    """Train in fp16 with a loss scale that is too large before step `at`.

    Returns:
        The trace, and for every step whether it changed any weight.
    """
    trainer, trace, moved = (
        start(small_run.run_config(layout, "fp16", accumulation, warmup_steps=TOTAL_STEPS)),
        Trace(),
        [],
    )
    before = tensors_of(trainer)
    with open_batches(trainer, None) as batches:
        for number in range(num_steps):
            if number == at:
                force_scale(trainer, scale)
            follow(trainer, batches, trace, 1)
            after = tensors_of(trainer)
            changed = torch.tensor(float(any(not torch.equal(after[name], before[name]) for name in after)))
            dist.all_reduce(changed)
            moved.append(bool(changed))
            before = after
    return finish(trainer, trace), moved


def failing_save(layout: Layout, folder: str, failing_rank: int) -> tuple[str, list[str], str]:
    """Save once; save again where one rank's disk is full; save a third time.

    Returns:
        The error this rank got from the second save, what lay in the folder after it, and the third save's path.
    """
    trainer = start(small_run.run_config(layout, "bf16"), Path(folder))
    with open_batches(trainer, None) as batches:
        follow(trainer, batches, Trace(), 1)
        trainer.save()
        follow(trainer, batches, Trace(), 1)
        message = ""
        with _disk_full() if dist.get_rank() == failing_rank else nullcontext():
            try:
                trainer.save()
            except CheckpointError as error:
                message = str(error)
        dist.barrier()
        left = sorted(path.name for path in Path(folder).iterdir())
        dist.barrier()
        trainer.save()
    return message, left, str(trainer.checkpointing.writer.last_path)


def _disk_full() -> Any:
    def save_tensors(tensors: Any, path: Path) -> str:
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device", str(path))

    return mock.patch.object(checkpoint_module, "save_tensors", save_tensors)


def save_into(layout: Layout, folder: str) -> str:
    """The error of a save into `folder`."""
    trainer = start(small_run.run_config(layout, "bf16"), Path(folder))
    with open_batches(trainer, None) as batches:
        follow(trainer, batches, Trace(), 1)
    try:
        trainer.save()
    except CheckpointError as error:
        return str(error)
    return ""


def both_saves(layout: Layout, folder: str) -> list[tuple[str, str]]:
    """A step's checkpoint written in both ways, twice; a step is made while a slow machine copies the second.

    Returns:
        The markers of both, which hold the checksum of every file.
    """
    run = small_run.run_config(layout, layout.precisions[-1])
    trainer = start(run, Path(folder) / "at_once")
    at_once = trainer.checkpointing.writer
    at_once._max_shard_bytes = 40_000
    aside = BackgroundWriter(
        Path(folder) / "aside",
        trainer.boosted.state,
        trainer.boosted.grid,
        at_once._save_model_files,
        max_shard_bytes=40_000,
    )
    found = []
    copy, copied = Copying._copy, []

    def copy_slowly(self: Copying, place: torch.Tensor, tensor: torch.Tensor) -> None:
        time.sleep(0.002)
        copy(self, place, tensor)
        copied.append(tensor)

    with open_batches(trainer, None) as batches, mock.patch.object(Copying, "_copy", copy_slowly):
        for _ in range(2):
            follow(trainer, batches, Trace(), 1)
            paths = []
            for writer in (at_once, aside):
                trainer.checkpointing.writer = writer
                trainer.checkpointing.save(trainer)
                if writer is aside:
                    follow(trainer, batches, Trace(), 1)
                trainer.checkpointing._conclude(trainer, wait=True)
                paths.append(writer.last_path)
            if dist.get_rank() == 0:
                found.append(tuple((path / "COMPLETE").read_text() for path in paths))
                assert not damaged_files(paths[1], read_marker(paths[1]))
    aside.close()
    if layout.plugin == "ddp":
        assert bool(copied) == (dist.get_rank() == 0), "nothing is gathered"
    assert aside._process is None or aside._process.returncode == 0
    return found
