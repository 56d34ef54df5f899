"""A run from launch to summary, shared by the entries: what happens between a checked plan and the loop.

An entry makes the batches; everything that pretraining and fine-tuning have in common is here.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from transformers.utils import logging as hf_logging

from llama_dyt.boosters.boosted import Boosted, peak_memory_mb
from llama_dyt.boosters.interface import Read
from llama_dyt.boosters.launch import launch, read_environment, shutdown
from llama_dyt.boosters.materialize import WORKING_DTYPES
from llama_dyt.config import check
from llama_dyt.config.run import RunConfig
from llama_dyt.config.settings import FINETUNE_WARMUP_FRACTION
from llama_dyt.config.speed import compiles
from llama_dyt.data.sources import Source
from llama_dyt.data.step import Step
from llama_dyt.errors import LlamaDytError
from llama_dyt.models import InitialWeights, empty_model, read_pretrained, recompute_activations, use_float8

from .checkpoint import CheckpointWriter
from .optimizer import parameter_groups
from .performance import Speedometer
from .plan import Plan, say
from .randomness import set_rng_state
from .restore import restore_counters
from .tracking import METRICS_FILE, Tracker
from .trainer import Ending, Progress, Schedule, Trainer
from .validation import Validation, read_sets

INTERRUPTED_STATUS = 143
"""Exit status of a run that saved and ended because it was asked to (128 + SIGTERM): not a success, not an error."""


class Session:
    """A launched run: the process group exists, the model is boosted, a checkpoint is restored."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.run: RunConfig = plan.run
        for warning in plan.warnings:
            say(plan, f"warning: {warning}")
        launch(self.run.run.seed, plan.environment)
        if plan.recomputing is not None:
            self._agree_on_recomputation()
        self.boosted = self._boost()
        self.grid = self.boosted.grid
        self.progress = Progress()
        if plan.checkpoint is not None:
            self._restore()

    def _agree_on_recomputation(self) -> None:
        """Have every rank recompute what the rank with the least memory must: layers may hold collectives."""
        shares: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(shares, self.run.model.selective_checkpointing)
        self.run = self.plan.run = self.run.replace(selective_checkpointing=max(shares))
        say(self.plan, f"--auto_checkpointing: {self.plan.recomputing}")

    def _boost(self) -> Boosted:
        run, config = self.run, self.plan.model_config
        model = empty_model(config)
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        recompute_activations(model, run.model.recomputed_share)
        if run.precision.fp8 is not None:
            use_float8(model, run.precision.fp8, run.precision.fp8_emulate, run.precision.fp8_keep_layers)
        num_parameters = sum(shape.numel() for shape in shapes.values())
        self._model_in_words = f"{config.norm_type} LLaMA of {num_parameters:,} parameters"
        groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
        with self._weights(shapes) as read:
            return Boosted(run, model, groups, read)

    def _weights(self, shapes: dict[str, torch.Size]) -> AbstractContextManager[Read]:
        """Where the run's tensors come from: its checkpoint, existing weights, or the seed."""
        plan = self.plan
        if plan.checkpoint is not None:
            return plan.checkpoint.reader()
        if plan.weights_folder is not None:
            return read_pretrained(plan.weights_folder, plan.model_config)
        return nullcontext(InitialWeights(shapes, plan.model_config, self.run.run.seed).read)

    def _restore(self) -> None:
        """All of a checkpoint but the tensors, which the model was boosted from."""
        checkpoint = self.plan.checkpoint
        restore_counters(checkpoint, self.boosted.state, self.boosted.scaler)
        saved = checkpoint.trainer_state
        self.progress = Progress(**{name: saved[name] for name in Progress.__dataclass_fields__})
        generators = saved["rng"]
        if len(generators) == dist.get_world_size():
            set_rng_state(generators[dist.get_rank()])
        say(self.plan, f"resumed from {checkpoint.path}, step {self.progress.step}")

    def read_validation(
        self, make_batches: Callable[[Source], AbstractContextManager[Iterator[Step]]]
    ) -> Validation | None:
        """The run's validation sets, read; None without. `make_batches`: the loader of a source for this rank."""
        plan, settings = self.plan, self.run.validation
        if not plan.validation:
            return None
        options = plan.source_options
        sets = read_sets(
            plan.validation, settings.validation_batches, lambda chosen: chosen.open(**options), make_batches
        )
        for chosen in plan.validation:
            steps = sets[chosen.name]
            count = sum(step.num_label_tokens for step in steps)
            say(
                plan,
                f"validation every {settings.validation_freq} steps on {chosen}: {len(steps)} "
                f"batch{'es' if len(steps) > 1 else ''}, {count:,} tokens",
            )
        return Validation(settings.validation_freq, sets)

    def train(
        self, batches: Iterable[Step], total_steps: int, describe: str, validation: Validation | None = None
    ) -> Path:
        """Drive the loop over `batches` to `total_steps`, then say what came of it.

        Returns:
            The last checkpoint. Does not return if the run was interrupted: it ends the process.
        """
        plan, run = self.plan, self.run
        save_dir = Path(run.run.save_dir)
        for warning in check.warnings(run, plan.environment.world_size, plan.device, total_steps=total_steps):
            if warning not in plan.warnings:
                say(plan, f"warning: {warning}")
        writer = CheckpointWriter(save_dir, self.boosted.state, self.grid, self._save_model_files)
        if plan.checkpoint is not None:
            writer.last_path = plan.checkpoint.path
        tensorboard_dir = Path(run.run.tensorboard_dir) if run.run.tensorboard_dir else None
        say(plan, f"{describe}: {self.description}, {total_steps} steps")
        tracker = Tracker(
            enabled=plan.is_first_process,
            save_dir=save_dir,
            tensorboard_dir=tensorboard_dir,
            config_yaml=run.to_yaml(),
            start_step=self.progress.step,
            total_steps=total_steps,
            description=describe,
        )
        trainer = self.make_trainer(total_steps, tracker, writer, validation)
        self._compare_schedule(trainer.schedule)
        start, first_token = time.perf_counter(), self.progress.tokens_seen
        try:
            ending = trainer.fit(batches, total_steps)
        finally:
            tracker.close()
            if hasattr(batches, "close"):
                batches.close()
        picture = tracker.draw(f"{describe}: {self._model_in_words}", plan.model_config.vocab_size)
        seconds = time.perf_counter() - start
        if plan.is_first_process:
            speedometer = trainer.speedometer
            speed = speedometer.speed(self.progress.tokens_seen - first_token, seconds)
            print(f"{ending} at step {self.progress.step} of {total_steps}, {self.progress.tokens_seen:,} tokens seen")
            print(
                f"  speed       {speed.tokens_per_second:,.0f} tokens/s over all, {speed.tflops_per_device:.3g} TFLOPS "
                f"a device, {speed.mfu:.1%} MFU (peak {speedometer.peak_tflops:.3g} TFLOPS, {speedometer.peak_source})"
            )
            if self.progress.skipped_steps:
                print(f"  skipped     {self.progress.skipped_steps} fp16 steps that overflowed")
            if trainer.num_bad_lines:
                print(f"  left out    {trainer.num_bad_lines:,} unusable lines (--skip_bad_lines)")
            print(f"  checkpoint  {writer.last_path}")
            print(f"  metrics     {save_dir / METRICS_FILE}")
            if picture:
                print(f"  picture     {picture}")
            if tensorboard_dir:
                print(f"  tensorboard tensorboard --logdir {tensorboard_dir}")
            if ending is Ending.INTERRUPTED:
                print("  go on with  the same command and --load auto")
            sys.stdout.flush()
        if ending is Ending.INTERRUPTED:
            shutdown()
            sys.exit(INTERRUPTED_STATUS)
        return writer.last_path

    @property
    def description(self) -> str:
        """The run in one line: model, plugin, processes, tokens a step."""
        booster, world_size = self.run.booster, dist.get_world_size()
        layout = f", tp {booster.tp} pp {booster.pp}" if booster.ranks_a_replica > 1 else ""
        layout += f" {booster.pp_style}" if booster.pp_style != "1f1b" else ""
        if booster.sequence_parallelism is not None:
            layout += f" {booster.sequence_parallelism}" + (f" sp {booster.sp}" if booster.sequence_ranks > 1 else "")
        layout += f", fp8 {self.run.precision.fp8}" if self.run.precision.fp8 is not None else ""
        layout += " emulated" if self.run.precision.fp8_emulate else ""
        layout += ", layers compiled" if compiles(self.run, self.plan.device) else ""
        return (
            f"{self._model_in_words}, {booster.plugin} {booster.mixed_precision}{layout} on {world_size} "
            f"{self.plan.device} process{'es' if world_size > 1 else ''}, "
            f"{self.run.tokens_per_step(world_size):,} tokens a step"
        )

    def make_trainer(
        self,
        total_steps: int,
        tracker: Tracker | None = None,
        writer: CheckpointWriter | None = None,
        validation: Validation | None = None,
    ) -> Trainer:
        """The loop of this run; without tracker and writer it keeps nothing (the benchmark)."""
        run = self.run
        speedometer = Speedometer(
            self.plan.model_config,
            sequence_length=run.data.max_length,
            recomputed_share=run.model.recomputed_share,
            num_devices=dist.get_world_size(),
            device=self.boosted.device,
            dtype=WORKING_DTYPES[run.booster.mixed_precision],
        )
        return Trainer(
            self.boosted,
            make_schedule(run, total_steps),
            speedometer,
            tracker or Tracker(enabled=False),
            writer,
            self.progress,
            log_interval=run.run.log_interval,
            save_interval=run.run.save_interval if writer else None,
            validation=validation,
        )

    def largest_peak_memory_mb(self) -> float:
        """The peak memory of the rank that needed most, in MB; collective."""
        peak = torch.tensor(peak_memory_mb(), device=self.boosted.device)
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        return float(peak)

    def from_first_rank(self, compute: Callable[[], Any]) -> Any:
        """A value that the first rank computes and all get; its failure is everyone's."""
        box: list[Any] = [None]
        if dist.get_rank() == 0:
            try:
                box = [("value", compute())]
            except LlamaDytError as error:
                box = [("error", error)]
        dist.broadcast_object_list(box, src=0)
        kind, value = box[0]
        if kind == "error":
            raise value
        return value

    def _save_model_files(self, folder: Path) -> None:
        """Config, modeling files and tokenizer of a checkpoint's `model/`, so that it is an ordinary HF folder."""
        save_config(self.plan.model_config, folder)
        if self.plan.tokenizer is not None:
            self.plan.tokenizer.save_pretrained(folder)

    def _compare_schedule(self, schedule: Schedule) -> None:
        if self.plan.checkpoint is None:
            return
        for key, saved in self.plan.checkpoint.schedule.items():
            now = schedule.to_json()[key]
            if now != saved:
                say(self.plan, f"warning: the schedule's {key} is {now}, the checkpoint was made with {saved}")


def save_config(config: Any, folder: Path) -> None:
    """Write config.json and the modeling files that make a folder load without this package."""
    from llama_dyt.models import export_modeling_files

    config = type(config).from_dict(config.to_dict())
    config.architectures = ["LlamaDytForCausalLM"]
    config.dtype = "float32"
    config.save_pretrained(folder)
    export_modeling_files(folder)


def make_schedule(run: RunConfig, total_steps: int) -> Schedule:
    """The learning rate's course over a run of `total_steps`."""
    warmup = run.optimizer.warmup_steps
    if warmup is None:
        warmup = round(FINETUNE_WARMUP_FRACTION * total_steps)
    return Schedule(run.optimizer.lr_scheduler, run.optimizer.lr, warmup, total_steps)


def run_entry(main: Callable[[], None]) -> NoReturn:
    """Run an entry's main so that a mistake is one line, every rank ends, and no destructor hangs in a collective.

    Every ending leaves through `os._exit`, a good one too: what is to be kept has been closed by then, and while the
    interpreter takes itself down a thread of gloo or of a tokenizer that asks for its lock aborts the process.
    """
    hf_logging.disable_progress_bar()  # a bar for reading one file helps nobody
    status = 0
    try:
        main()
    except LlamaDytError as error:
        _report(f"error: {error}")
        _exit_now(2)
    except KeyboardInterrupt:
        _exit_now(130)
    except SystemExit as ending:
        status = ending.code or 0
    except Exception:
        _report(f"unexpected failure on rank {read_environment().rank}:\n{traceback.format_exc().rstrip()}")
        _exit_now(1)
    shutdown()
    _exit_now(status)


def _report(message: str) -> None:
    """Print on stderr. The first process of a machine speaks at once; the others only if nobody ended the run before:
    what is wrong is nearly always the same on all of them, and one message is enough."""
    environment = read_environment()
    if environment.local_rank != 0:
        time.sleep(3.0)
        message = f"[rank {environment.rank}] {message}"
    print(message, file=sys.stderr, flush=True)


def _exit_now(status: int) -> NoReturn:
    """End without the interpreter's clean-up, which could wait for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
