"""A run from launch to summary, shared by the entries: what happens between a checked plan and the loop.

An entry makes the batches; everything that pretraining and fine-tuning have in common is here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch.distributed as dist

from llama_dyt.boosters.boosted import Boosted, peak_memory_mb
from llama_dyt.boosters.materialize import WORKING_DTYPES
from llama_dyt.config import check
from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.core.errors import CheckpointError, in_one_line
from llama_dyt.core.store import Location, at
from llama_dyt.data.loaders.step import Step
from llama_dyt.launch.claim import Claim, release_all, take
from llama_dyt.launch.process_group import launch, shutdown
from llama_dyt.models import empty_model, family_of, recompute_activations, use_float8
from llama_dyt.models.adapters import attach, trained_in_words
from llama_dyt.training.adapters import base_of, contents_of, merge_at_end
from llama_dyt.training.agreement import facts_of
from llama_dyt.training.callbacks.callback import Callback, Callbacks, asked_for
from llama_dyt.training.callbacks.checkpointing import Checkpointing
from llama_dyt.training.callbacks.checksums import Checksums
from llama_dyt.training.callbacks.logging import Logging
from llama_dyt.training.callbacks.reporting import Reporting
from llama_dyt.training.callbacks.routing import Routing
from llama_dyt.training.callbacks.samples import AskedPrompts, Samples
from llama_dyt.training.callbacks.saturation import Saturation
from llama_dyt.training.callbacks.slow_ranks import SlowRanks
from llama_dyt.training.callbacks.status import Status
from llama_dyt.training.callbacks.tapering import Tapering
from llama_dyt.training.callbacks.validation import HeldOutBatches, Validation
from llama_dyt.training.checkpoint.background import BackgroundWriter
from llama_dyt.training.checkpoint.forward_check import require_same
from llama_dyt.training.checkpoint.generators import set_rng_state
from llama_dyt.training.checkpoint.imports import differences
from llama_dyt.training.checkpoint.publishing import home_of
from llama_dyt.training.checkpoint.reader import Checkpoint, is_newest_of, restore_counters
from llama_dyt.training.checkpoint.retention import Keep
from llama_dyt.training.checkpoint.verification import checkpoint_around, verify
from llama_dyt.training.checkpoint.writer import CheckpointWriter
from llama_dyt.training.distillation.teacher import teacher_of
from llama_dyt.training.health.finite import first_not_finite
from llama_dyt.training.health.rollback import Rollback
from llama_dyt.training.loop import Trainer
from llama_dyt.training.measurement.performance import Speedometer
from llama_dyt.training.optimizer import parameter_groups
from llama_dyt.training.plan import Plan, resolve_checkpoint, say
from llama_dyt.training.plan.global_batch import batch_state
from llama_dyt.training.progress import Ending, Progress
from llama_dyt.training.run_snapshots import RunSnapshots
from llama_dyt.training.schedule import LearningRateSchedule
from llama_dyt.training.signals import INTERRUPTED_STATUS, StopRequest
from llama_dyt.training.snapshots.found import Snapshot
from llama_dyt.training.summary import print_summary, run_in_words
from llama_dyt.training.tapering.plan import schedule_of
from llama_dyt.training.trackers.tracker import Tracked
from llama_dyt.training.trackers.trackers import Trackers
from llama_dyt.training.weights import starting_weights


class Session:
    """A launched run: the process group exists, the model is boosted, a checkpoint is restored."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.run: RunConfig = plan.run
        for line in plan.files:
            say(plan, line)
        for warning in plan.warnings:
            say(plan, f"warning: {warning}")
        tensor_parallel = self.run.booster.tp > 1
        launch(self.run.run.seed, plan.environment, self.run.run.timeout, tensor_parallel)
        self._claim: Claim | None = None
        self._nonce = ranks.from_first(self._claim_save_dir, "claiming the --save_dir")
        if self.run.run.save_dir is not None:
            ranks.keep_accounts(at(self.run.run.save_dir))
        if plan.recomputing is not None:
            self._agree_on_recomputation()
        facts = {}
        if dist.get_world_size() > 1 or self.run.snapshots.snapshot_interval:
            facts = facts_of(plan)  # otherwise one has nobody to compare with, and opens its data once
            ranks.agree(facts)
        self.snapshots = RunSnapshots(plan, facts)
        self._resumed = self.snapshots.found or plan.checkpoint
        self._verify()
        self._base = base_of(plan) if plan.adapter is not None else None
        self.boosted = self._boost()
        self.grid = self.boosted.grid
        # Before data are opened: their workers would work beside what is measured.
        self.speedometer = Speedometer(
            plan.model_config,
            sequence_length=self.run.data.max_length,
            recomputed_share=self.run.model.recomputed_share,
            num_devices=dist.get_world_size(),
            device=self.boosted.device,
            dtype=WORKING_DTYPES[self.run.booster.mixed_precision],
            processes_here=plan.environment.local_world_size or 1,
            adapter=plan.adapter,
        )
        self.progress = Progress()
        if self._resumed is not None:
            self._restore(self._resumed)

    def _agree_on_recomputation(self) -> None:
        """Have every rank recompute what the rank with the least memory must: layers may hold collectives."""
        shares = ranks.gather(self.run.model.selective_checkpointing, "choosing what is recomputed")
        self.run = self.plan.run = self.run.replace(selective_checkpointing=max(shares))
        say(self.plan, f"--auto_checkpointing: {self.plan.recomputing}")

    def _claim_save_dir(self) -> str:
        """Have the --save_dir for this run alone, and what it resumes from be what was found before that."""
        plan = self.plan
        if plan.claims is None:
            return ""
        ranks.undo_at_end(release_all)
        self._claim = take(plan.claims, f"{plan.run.kind}.py")
        found = resolve_checkpoint(plan.run)
        before, now = (str(checkpoint.path) if checkpoint else "nothing" for checkpoint in (plan.checkpoint, found))
        if before != now:
            raise CheckpointError(
                f"another run wrote to --save_dir {plan.claims} while this one started: there was {before} to resume "
                f"from, now {now}; it has ended, so start this one again"
            )
        return self._claim.nonce

    def _verify(self) -> None:
        """Compare what is about to be read with its checksums."""
        plan = self.plan
        if not plan.run.run.verify:
            return
        around = checkpoint_around(plan.weights_folder) if plan.weights_folder is not None else None
        if plan.checkpoint is not None and self._resumed is plan.checkpoint:
            say(plan, verify(plan.checkpoint.path, plan.environment))
        if around is not None and (plan.checkpoint is None or plan.adapter is not None):
            say(plan, verify(around, plan.environment, "model"))

    def _boost(self) -> Boosted:
        run, config, adapter = self.run, self.plan.model_config, self.plan.adapter
        model = empty_model(config)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        if adapter is not None:
            attach(model, adapter)
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._trained = trained
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        recompute_activations(model, run.model.recomputed_share)
        if run.precision.fp8 is not None:
            use_float8(model, run.precision.fp8, run.precision.fp8_emulate, run.precision.fp8_keep_layers)
        self._model_in_words = f"{config.norm_type} {family_of(config).in_words} of {num_parameters:,} parameters"
        if adapter is not None:
            say(self.plan, trained_in_words(adapter, config))
            self._model_in_words += f" with {adapter.in_words}"
        groups = parameter_groups(model, run.optimizer.weight_decay, run.optimizer.decay_all_parameters)
        with starting_weights(self.plan, shapes, trained, filled=self.snapshots.found is not None) as read:
            boosted = Boosted(run, model, groups, read)
        self.snapshots.fill(boosted.state, trained)
        self._require_finite(boosted)
        if self.plan.teacher_folder is not None:
            dtype = WORKING_DTYPES[run.booster.mixed_precision]
            boosted.objective = teacher_of(self.plan.teacher_folder, run.distillation, boosted.device, dtype)
            say(self.plan, f"taught by {self.plan.teacher_folder} (an experiment)")
        return boosted

    def _require_finite(self, boosted: Boosted) -> None:
        """A run that begins from a damaged file fails at once, and not with a loss of nan some steps later."""
        checkpoint = self.plan.checkpoint
        folder = checkpoint.path if checkpoint is not None else self.plan.weights_folder
        spoiled = first_not_finite(boosted.state) if folder is not None else None
        if spoiled is not None:
            remedy = "load an earlier checkpoint" if checkpoint is not None else "get the folder anew"
            raise CheckpointError(f"{folder}: {spoiled} has values that are not finite; {remedy}")

    def _restore(self, source: Checkpoint | Snapshot) -> None:
        """All but the tensors, which the model was boosted from."""
        restore_counters(source, self.boosted.state, self.boosted.scaler)
        checkpoint = self.plan.checkpoint
        if source is checkpoint:  # a snapshot's bytes were compared
            changed = require_same(checkpoint.path, checkpoint.forward_check, self.boosted, self.run.run.verify)
            if changed is not None:
                say(self.plan, f"warning: {changed}")
        saved = source.trainer_state
        self.progress = Progress.of_json(saved)
        generators = source.generators(dist.get_rank(), dist.get_world_size())
        if generators is not None:
            set_rng_state(generators)
        say(self.plan, f"resumed from {source.in_words}")
        for difference in differences(saved, self.run.run.callbacks, self.run.run.trackers):
            say(self.plan, f"warning: {difference}")

    def train(
        self,
        batches: Iterable[Step],
        total_steps: int,
        describe: str,
        validation: HeldOutBatches | None = None,
        asked: AskedPrompts | None = None,
    ) -> Location:
        """Drive the loop over `batches` to `total_steps`, then say what came of it.

        Returns:
            The last checkpoint. Does not return if the run was interrupted: it ends the process.
        """
        plan, run = self.plan, self.run
        save_dir = at(run.run.save_dir)
        for warning in check.warnings(run, plan.environment.world_size, plan.device, total_steps=total_steps):
            if warning not in plan.warnings:
                say(plan, f"warning: {warning}")
        say(plan, f"{describe}: {self.description}, {total_steps} steps")
        status = Status(run, save_dir, plan.environment.launcher, writes=plan.is_first_process)
        if status.in_words() is not None:
            say(plan, status.in_words())
        title, vocab_size = f"{describe}: {self._model_in_words}", plan.model_config.vocab_size
        tracked = Tracked(
            run, save_dir, self.progress.step, total_steps, describe, title, vocab_size, states=self._tracker_states()
        )
        trackers = Trackers.of_run(tracked, first=plan.is_first_process)
        writer = self._make_writer(save_dir, trackers.say)
        # To the end of the process: what follows the loop, on any rank, is not to be cut short either.
        stop = StopRequest(run.run.save_grace, lambda: writer.last_path)
        restore = stop.listen()
        ranks.undo_at_end(lambda: status.leave_word(writer.last_path, total_steps))
        trainer = self.make_trainer(
            total_steps, trackers, writer, validation, stop, [status, *self._samples(asked, trackers)]
        )
        self._compare_schedule(trainer.schedule)
        start, first_token = time.perf_counter(), self.progress.tokens_seen
        try:
            ending = trainer.fit(batches, total_steps, batches.ready)
            trackers.finish()
        except BaseException as error:
            trackers.log_event(self.progress.step, "failed", in_one_line(error))
            trackers.hurry()
            restore()  # what has failed is to be ended as any program, by a launcher that has seen it
            ranks.failed(error)  # but for one of several, which ends by itself
            raise
        finally:
            seconds = time.perf_counter() - start
            trackers.close()
            batches.close()
            writer.close()
        interrupted = ending is Ending.INTERRUPTED
        status.write("stopped" if interrupted else "finished", self.progress.step, total_steps)
        results = trackers.results()
        if plan.is_first_process:
            speed = self.speedometer.in_words(self.progress.tokens_seen - first_token, seconds)
            print_summary(trainer, ending, total_steps, speed, writer.last_path, results)
        if run.adapter.merge_adapter and not interrupted:
            merged = merge_at_end(plan, writer.last_path, save_dir)
            if plan.is_first_process:
                print(f"  merged      {merged}", flush=True)
        if interrupted:
            # torchrun ends all workers of a machine as soon as one has ended with a status of its own.
            ranks.gather(None, "ending after a save")
            shutdown()
            sys.exit(INTERRUPTED_STATUS)
        return writer.last_path

    def _tracker_states(self) -> dict[str, dict[str, Any]]:
        """What trackers go on from: nothing where this run leaves the course of the one it resumes."""
        checkpoint, found = self.plan.checkpoint, self.snapshots.found
        goes_on = found or (checkpoint is not None and is_newest_of(checkpoint.path, at(self.run.run.save_dir)))
        return self._resumed.trainer_state.get("tracker_states", {}) if goes_on else {}

    def _beside_others(self, trackers: Trackers) -> list[Callback]:
        """What compares ranks; one has nobody to compare with, and the benchmark looks at its own steps alone."""
        compares = dist.get_world_size() > 1 and self.run.kind != "benchmark"
        health = self.run.health
        slow_ranks = [SlowRanks(self.run, trackers)] if compares and health.slow_rank_factor is not None else []
        return [*slow_ranks, *([Checksums(self.run)] if compares and health.checksum_interval is not None else [])]

    def _samples(self, asked: AskedPrompts | None, trackers: Trackers) -> list[Callback]:
        return [Samples(self.run, self.plan, asked, trackers)] if asked is not None else []

    def _make_writer(self, save_dir: Location, say: Callable[[str], None]) -> CheckpointWriter:
        plan = self.plan
        contents, save_files = contents_of(plan, self._base)
        kind = BackgroundWriter if self.run.run.async_save else CheckpointWriter
        writer = kind(
            save_dir,
            self.boosted.state,
            self.grid,
            save_files,
            contents=contents,
            claim=self._claim,
            nonce=self._nonce[:8],
            say=say,
            keep=Keep(self.run.run.keep_last, self.run.run.keep_every),
        )
        if plan.checkpoint is not None:
            writer.last_path = home_of(plan.checkpoint.path)
        return writer

    @property
    def description(self) -> str:
        """The run in one line: model, plugin, processes, tokens a step."""
        return run_in_words(self.run, self.plan.device, dist.get_world_size(), self._model_in_words)

    def make_trainer(
        self,
        total_steps: int,
        trackers: Trackers | None = None,
        writer: CheckpointWriter | None = None,
        validation: HeldOutBatches | None = None,
        stop: StopRequest | None = None,
        more: Sequence[Callback] = (),
    ) -> Trainer:
        """The loop of this run; without trackers and writer it keeps nothing (the benchmark).

        Args:
            more: callbacks beside those that every run has.
        """
        run = self.run
        trackers = trackers or Trackers()
        batch = batch_state(self.plan.asked or run, run, dist.get_world_size())
        checkpointing = Checkpointing(run, writer, trackers, batch) if writer else None
        taper = schedule_of(run, self.plan.model_config)
        callbacks = Callbacks(
            [
                Reporting(run, trackers, self.snapshots.found.in_words if self.snapshots.found else None),
                Saturation(run),
                Routing(run),
                *([Tapering(run, taper)] if taper is not None else []),
                *self._beside_others(trackers),
                *asked_for(run, first=dist.get_rank() == 0),
                Logging(run, trackers, self.speedometer),
                *([Validation(run, validation, trackers)] if validation else []),
                *([checkpointing] if checkpointing else []),
                *(self.snapshots.callbacks(trackers, batch) if writer else []),
                *more,
            ]
        )
        if self._resumed is not None:
            callbacks.load_state(self._resumed.trainer_state.get("callbacks", {}))
        schedule = LearningRateSchedule.of(run, total_steps)
        trainer = Trainer(self.boosted, schedule, self.progress, callbacks, checkpointing, stop, trackers.say)
        if checkpointing is not None and run.health.rollback_on_spike:
            trainer.rollback = Rollback(run, self._trained, checkpointing, trackers)
        return trainer

    def largest_peak_memory_mb(self) -> float:
        """The peak memory of the rank that needed most, in MB; collective."""
        return max(ranks.gather(peak_memory_mb(), "comparing peaks of memory"))

    def _compare_schedule(self, schedule: LearningRateSchedule) -> None:
        if self._resumed is None:
            return
        for key, saved in self._resumed.schedule.items():
            now = schedule.to_json()[key]
            if now != saved:
                say(self.plan, f"warning: the schedule's {key} is {now}, the checkpoint was made with {saved}")
