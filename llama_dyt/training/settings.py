"""How a run learns and how long, what it leaves behind, and where it starts; and what is wrong with that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llama_dyt.config.options import TRAINING, option
from llama_dyt.config.run import Owned, RunConfig
from llama_dyt.core.problem import Problem
from llama_dyt.core.registry import Registry
from llama_dyt.core.store import at, store_of, why_not_at
from llama_dyt.core.suggest import unknown
from llama_dyt.launch import DEFAULT_TIMEOUT_SECONDS
from llama_dyt.training.callbacks.callback import CALLBACKS
from llama_dyt.training.distillation.settings import DistillationSettings, distillation_problems
from llama_dyt.training.generation.settings import SampleSettings, sample_problems
from llama_dyt.training.health.settings import HealthSettings, health_problems
from llama_dyt.training.measurement.settings import BenchmarkSettings, benchmark_problems
from llama_dyt.training.schedule import FINETUNE_WARMUP_FRACTION
from llama_dyt.training.snapshots.settings import (
    SnapshotSettings,
    snapshot_path_problems,
    snapshot_problems,
    snapshot_warnings,
)
from llama_dyt.training.tapering.settings import TaperSettings, tapering_problems, tapering_warnings
from llama_dyt.training.trackers.settings import TrackingSettings, tracking_path_problems, tracking_problems
from llama_dyt.training.trackers.tracker import TRACKERS


@dataclass(frozen=True)
class OptimizerSettings:
    """AdamW and the learning rate's course."""

    lr: float = option(3e-4, "Highest learning rate.", spellings=("learning_rate",), above=0)
    weight_decay: float = option(
        0.1, "Weight decay.", short={"pretrain": "-w", "finetune": "-w"}, spellings=("weigth_decay",), at_least=0
    )
    decay_all_parameters: bool = option(
        True,
        "Decay every parameter, alphas and norm weights included, as the DyT authors do for both norms; off leaves "
        "out those with one dimension.",
    )
    adam_beta1: float = option(
        0.9, "How much Adam keeps of the gradients' running mean at each step.", at_least=0, at_most=0.999999
    )
    adam_beta2: float = option(
        0.95, "How much Adam keeps of the squared gradients' running mean at each step.", at_least=0, at_most=0.999999
    )
    adam_eps: float = option(1e-8, "What Adam adds to the root of the squared gradients' mean.", above=0)
    lr_scheduler: str = option(
        "cosine",
        "Course of the learning rate. cosine: linear warm-up, then down to a tenth, as Colossal-AI's; quadratic: the "
        "DyT authors' quadratic warm-up and cosine; linear: linear warm-up, then annealing to zero; constant: "
        "warm-up, then level.",
        choices=("cosine", "quadratic", "linear", "constant"),
        defaults={"benchmark": "constant"},
    )
    warmup_steps: int | None = option(
        2000,
        f"Steps of warm-up; none takes {FINETUNE_WARMUP_FRACTION:.0%} of the run.",
        short={"pretrain": "-s"},
        defaults={"finetune": None, "benchmark": 0},
        at_least=0,
    )
    gradient_clipping: float = option(
        1.0, "Largest norm of the whole gradient; 0 turns clipping off.", spellings=("grad_clip",), at_least=0
    )
    gradient_accumulation_steps: int = option(
        1, "Batches of --batch_size that make one optimizer step.", spellings=("accumulation_steps",), at_least=1
    )
    global_batch_size: int | None = option(
        None,
        "Sequences of one optimizer step, over all ranks: sets --gradient_accumulation_steps by the ranks that there "
        "are, whatever that is given as; none: as many as that makes, or, in a run that resumes by the same flags on "
        "other ranks, as its checkpoint's steps had.",
        metavar="SEQUENCES",
        at_least=1,
    )


@dataclass(frozen=True)
class RunSettings:
    """How long the run is, what it leaves behind, and where it starts."""

    max_steps: int | None = option(
        None, "Stop after this many optimizer steps; none is all of --num_epochs.", entries=TRAINING, at_least=1
    )
    seed: int = option(42, "Seed of the initial weights and of all that is random.", at_least=0, at_most=2**32 - 1)
    save_interval: int = option(
        1000, "Steps between checkpoints; one is always saved at the end.", short="-i", entries=TRAINING, at_least=1
    )
    async_save: bool = option(
        False,
        "Stop training for a save only while tensors are copied, and that is done during the next step where they "
        "need not be gathered; a process beside each writing rank does the rest. "
        "Takes host memory there: 12 bytes for each parameter of its pipeline stage.",
        entries=TRAINING,
    )
    async_save_busy: str = option(
        "wait",
        "What becomes of an asynchronous save when the one before is still being written: wait for that, or skip.",
        choices=("wait", "skip"),
        entries=TRAINING,
    )
    save_grace: float | None = option(
        None,
        "Seconds from a signal that asks the run to end to its last checkpoint, whole on all ranks; where that takes "
        "longer the run ends without it, to be started again from the one before. None: as long as it takes.",
        entries=TRAINING,
        metavar="SECONDS",
        at_least=1,
    )
    keep_last: int | None = option(
        None, "Keep the newest N checkpoints and remove older ones; none keeps all.", entries=TRAINING, at_least=1
    )
    keep_every: int | None = option(
        None,
        "With --keep_last: keep the checkpoints of every step that is a multiple of this as well.",
        entries=TRAINING,
        metavar="STEPS",
        at_least=1,
    )
    save_dir: str | None = option(
        "checkpoint",
        "Folder for checkpoints, metrics.jsonl and config.yaml; s3://BUCKET/FOLDER, or a store of your own (scheme://…).",
        short="-o",
        defaults={"benchmark": None},
        metavar="FOLDER",
        path=True,
    )
    load: str | None = option(
        None,
        "Resume: a checkpoint, a --save_dir (its newest complete checkpoint), or auto (the newest in --save_dir, "
        "or a new run when there is none).",
        short="-f",
        entries=TRAINING,
        metavar="PATH|auto",
        path=True,
    )
    verify: bool = option(
        True,
        "Compare what --load, or --model_path with a checkpoint of ours, reads with the checksums it was written with; "
        "and what the model of --load computes with what it did before the save: with --no-verify a difference is a "
        "warning.",
        entries=TRAINING,
    )
    log_interval: int = option(1, "Steps between lines in the log.", entries=TRAINING, at_least=1)
    tensorboard_dir: str | None = option(
        "tb_logs",
        "Folder for TensorBoard; none writes nothing.",
        short="-t",
        entries=TRAINING,
        defaults={"benchmark": None},
        metavar="FOLDER",
        path=True,
    )
    timeout: int = option(
        DEFAULT_TIMEOUT_SECONDS,
        "Seconds that ranks wait for one another before the run ends with an error: for those that have not started, "
        "and for one that is not heard of or does not come to a step. Long work that shows life has no limit.",
        metavar="SECONDS",
        at_least=1,
    )
    callbacks: tuple[str, ...] = option(
        (),
        "A callback of your own, by the name it registers (see --import): what a run does every so many steps beside "
        "training. May be given several times.",
        name="callback",
        entries=TRAINING,
        metavar="NAME",
    )
    trackers: tuple[str, ...] = option(
        (),
        "What is told of the run's course beside metrics.jsonl, report.html, TensorBoard, the progress bar and the "
        "picture: wandb, mlflow or aim, which are to be installed (requirements-trackers.txt), or a tracker of your "
        "own, by the name it registers (see --import). May be given several times, or several with commas.",
        name="tracker",
        entries=TRAINING,
        metavar="NAME",
        listed=True,
    )
    dry_run: bool = option(
        False,
        "Print the resolved run, its parameters, tokens a step, steps and memory a rank, then end.",
        written=False,
    )
    dry_run_processes: int | None = option(
        None,
        "Processes that --dry_run plans for; none takes those that were started.",
        metavar="N",
        at_least=1,
        written=False,
    )
    config_file: str | None = option(
        None,
        "YAML whose keys are these flags; a flag on the command line wins over it.",
        written=False,
        metavar="PATH",
        path=True,
    )
    imports: tuple[str, ...] = option(
        (),
        "A module of your own to import before flags are read, by its dotted name; may be given several times. What it "
        "registers (norms, families, plugins, formats, trackers, callbacks, stores) counts as ours.",
        name="import",
        metavar="MODULE",
    )


def step_limit(run: RunConfig) -> int | None:
    """Optimizer steps after which the run ends whatever data is left; None for no such limit."""
    return run.benchmark.num_steps if run.kind == "benchmark" else run.run.max_steps


def sequences_per_step(run: RunConfig, world_size: int) -> int:
    """Sequences in one optimizer step of all ranks together."""
    ranks = run.booster.data_parallel_size(world_size)
    return run.data.batch_size * run.optimizer.gradient_accumulation_steps * ranks


def tokens_per_step(run: RunConfig, world_size: int) -> int:
    """Tokens in one optimizer step of all ranks together."""
    return sequences_per_step(run, world_size) * run.data.max_length


def problems(run: RunConfig, world_size: int | None, device: str | None) -> Iterator[Problem]:
    """What is wrong with the course of a run."""
    if run.run.dry_run_processes is not None and not run.run.dry_run:
        reason, remedy = "has no effect without --dry_run", "add that, or leave it out"
        also = ("dry_run",)
        yield Problem("dry_run_processes", run.run.dry_run_processes, reason, remedy, also=also, clause=True)
    if run.run.keep_every is not None and run.run.keep_last is None:
        reason, remedy = "has no effect without --keep_last, all checkpoints are kept", "add that, or leave it out"
        yield Problem("keep_every", run.run.keep_every, reason, remedy, also=("keep_last",), clause=True)
    yield from health_problems(run, world_size)
    yield from benchmark_problems(run)
    yield from sample_problems(run)
    yield from distillation_problems(run, device)
    yield from tapering_problems(run)
    yield from _unknown_or_twice("callback", run.run.callbacks, CALLBACKS)
    yield from _unknown_or_twice("tracker", run.run.trackers, TRACKERS)
    yield from snapshot_problems(run)
    yield from tracking_problems(run)
    if device is not None:  # on the machine that it is to run on
        kinds = [TRACKERS.find(name) for name in run.run.trackers]
        yield from filter(None, (kind.why_not(run) for kind in kinds if kind is not None))


def _unknown_or_twice(flag: str, names: Sequence[str], registry: Registry) -> Iterator[Problem]:
    """What is wrong with the names that a repeatable flag was given."""
    for number, name in enumerate(names):
        if registry.find(name) is None:
            guess = unknown(flag, name, registry.names())
            yield Problem(flag, name, guess, "one of your own is brought in by --import its.module")
        elif name in names[:number]:
            yield Problem(flag, name, "is given twice", "give it once", clause=True)


def path_problems(run: RunConfig) -> Iterator[Problem]:
    """What is wrong with the folders of a run."""
    yield from tracking_path_problems(run)
    yield from snapshot_path_problems(run)
    if run.kind != "benchmark":
        if run.run.save_dir is None:
            yield Problem("save_dir", None, "is needed: give the folder for checkpoints and metrics", clause=True)
        load = run.run.load
        unknown = None if load is None else why_not_at(load, "load")
        if unknown is not None:
            yield unknown
        elif load is not None and load != "auto":
            try:
                reason = None if at(load).is_dir() else "no such folder"
            except OSError as error:  # of a store
                reason = f"it cannot be read ({error.strerror or error})"
            if reason is not None:
                yield Problem("load", load, reason, "give a checkpoint, the --save_dir of a run, or auto")
    for name in ("save_dir", "tensorboard_dir"):
        folder = getattr(run.run, name)
        if folder is not None:
            unknown = why_not_at(folder, name)
            if unknown is not None:
                yield unknown
                continue
            reason = store_of(folder).why_not_writable(at(folder))
            if reason is not None:
                yield Problem(name, folder, reason, "give a folder that can be written")


def warnings(run: RunConfig, world_size: int | None, device: str | None, total_steps: int | None) -> Iterator[str]:
    """What is probably not meant."""
    yield from snapshot_warnings(run)
    total_steps = total_steps if total_steps is not None else step_limit(run)
    warmup = run.optimizer.warmup_steps
    if run.kind != "benchmark" and warmup and total_steps is not None and warmup >= total_steps:
        yield (
            f"--warmup_steps {warmup} is not shorter than the run of {total_steps} steps: "
            f"the learning rate never reaches --lr {run.optimizer.lr:g}; "
            f"give less, such as --warmup_steps {min(max(total_steps // 20, 1), total_steps - 1)}"
        )
    yield from tapering_warnings(run, total_steps)


OWNED = Owned(
    {
        "optimizer": OptimizerSettings,
        "run": RunSettings,
        "snapshots": SnapshotSettings,
        "tracking": TrackingSettings,
        "distillation": DistillationSettings,
        "tapering": TaperSettings,
        "samples": SampleSettings,
        "benchmark": BenchmarkSettings,
        "health": HealthSettings,
    },
    problems,
    path_problems,
    warnings,
)
