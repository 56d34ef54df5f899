"""Going back to the last checkpoint, in the midst of a run, with other data than those that led to a loss spike.

All ranks do it after the same step, as all know the same loss. Weights, moments, counters, schedule and generators are
the checkpoint's; the data go on where they are. A run that is killed before its next save does the same again when it
is resumed: it comes to the same spike from the same checkpoint.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields

import torch.distributed as dist

from llama_dyt.boosters.training_state import Read, Readable
from llama_dyt.config.run import RunConfig
from llama_dyt.training.callbacks.callback import Training
from llama_dyt.training.callbacks.checkpointing import Checkpointing
from llama_dyt.training.checkpoint.generators import set_rng_state
from llama_dyt.training.checkpoint.reader import Checkpoint, restore_counters
from llama_dyt.training.progress import Progress
from llama_dyt.training.trackers.trackers import Trackers


class Rollback:
    """Goes back, at most --rollback_on_spike times a run.

    Args:
        trained: names of the parameters that are; others are as they were.
    """

    def __init__(
        self, run: RunConfig, trained: Collection[str], checkpointing: Checkpointing, trackers: Trackers
    ) -> None:
        self._most = run.health.rollback_on_spike
        self._trained = trained
        self._checkpointing = checkpointing
        self._trackers = trackers

    def go_back(self, trainer: Training) -> None:
        """Have the run as it was when its last checkpoint was saved, but for the data. Collective.

        Where there is no checkpoint, or it went back often enough, that is told, and it goes on.
        """
        trainer.settle()
        step, progress = trainer.progress.step, trainer.progress
        self._checkpointing.conclude(trainer)
        path = self._checkpointing.writer.last_path
        if path is None or progress.rollbacks >= self._most:
            why = "there is no checkpoint to go back to" if path is None else f"went back {self._most} times already"
            self._tell(trainer, step, f"{why} (--rollback_on_spike {self._most}), the run goes on")
            return
        checkpoint = Checkpoint(path)
        with checkpoint.reader() as read:
            trainer.boosted.state.scatter(self._of_trained(read))
        restore_counters(checkpoint, trainer.boosted.state, trainer.boosted.scaler)
        generators = checkpoint.generators(dist.get_rank(), dist.get_world_size())
        if generators is not None:
            set_rng_state(generators)
        batches, tokens = step - checkpoint.step, progress.tokens_seen - int(checkpoint.trainer_state["tokens_seen"])
        self._set_back(progress, checkpoint, batches, tokens)
        trainer.callbacks.load_state(checkpoint.trainer_state.get("callbacks", {}))
        trainer.health.went_back()
        self._checkpointing.went_back(progress.step)
        self._trackers.went_back(progress.step)
        data = f"the {batches} batches of steps {progress.step + 1} to {step} ({tokens:,} tokens) are left out"
        self._tell(trainer, step, f"back to {path}: {data} (time {progress.rollbacks} of at most {self._most})")
        trainer.window.restart()

    def _of_trained(self, read: Read) -> Read:
        def of_trained(name: str) -> Mapping[str, Readable]:
            return read(name) if name in self._trained else {}

        return of_trained

    @staticmethod
    def _set_back(progress: Progress, checkpoint: Checkpoint, batches: int, tokens: int) -> None:
        """`batches`, `tokens`: since the checkpoint, none of which counts any more."""
        saved = Progress.of_json(checkpoint.trainer_state)
        saved.position = progress.position
        saved.rollbacks = progress.rollbacks + 1
        saved.skipped_batches = progress.skipped_batches + batches
        saved.skipped_tokens = progress.skipped_tokens + tokens
        for field in fields(progress):
            setattr(progress, field.name, getattr(saved, field.name))

    def _tell(self, trainer: Training, step: int, what: str) -> None:
        trainer.say(f"step {step}: {what}")
        self._trackers.log_event(step, "rollback", what)
