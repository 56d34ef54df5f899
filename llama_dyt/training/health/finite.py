"""Whether a run still learns: numbers that are not finite, fp16 that overflows for good; and what is to be done.

It is no callback: it speaks in the midst of a step, before weights change. Advice fits the run: its precision, its
clipping, its checkpoints.
"""

from __future__ import annotations

import socket
from pathlib import Path

import torch

from llama_dyt.boosters.boosted import Boosted
from llama_dyt.boosters.training_state import TrainingState
from llama_dyt.config.run import RunConfig
from llama_dyt.core import ranks
from llama_dyt.core.errors import TrainingError
from llama_dyt.training.checkpoint.writer import CheckpointWriter
from llama_dyt.training.health import spikes
from llama_dyt.training.health.copies import Copies
from llama_dyt.training.progress import Progress

SKIPS_AT_THE_SMALLEST_SCALE = 20
"""So many fp16 steps in a row that overflow at the smallest loss scale end a run: nothing would ever move again."""


class Health:
    """Raises what ends a run that no longer learns; on all ranks alike.

    Args:
        progress: of the run; the steps that are no good are counted there.
        writer: of the run's checkpoints, whose `last_path` is now the one that the run was resumed from; None: it
            writes none.

    Attributes:
        copies: what several ranks hold of the state.
        spiked: a loss spike has begun since this was last set to False.
    """

    def __init__(self, boosted: Boosted, progress: Progress, writer: CheckpointWriter | None) -> None:
        self._boosted = boosted
        self._progress = progress
        self._writer = writer
        self._begun_from = writer.last_path if writer else None
        self._untold: list[tuple[int, str, str]] = []
        self.spiked = False
        self.copies = Copies(boosted.state)
        self._compared = 0

    def bear(self, what: str, value: float, step: int) -> None:
        """Count a step that is no good, whose update was left out.

        Args:
            what: its loss or gradient norm; `value`: that, not finite.

        Raises:
            TrainingError: it is one too many.
        """
        progress, bearable = self._progress, self._boosted.run.health.skip_nonfinite
        progress.nonfinite_steps += 1
        progress.nonfinite_in_a_row += 1
        if progress.nonfinite_in_a_row < bearable:
            so_far = f"{progress.nonfinite_in_a_row} in a row, {progress.nonfinite_steps} in all"
            told = f"{what} is {value}, the step's update was left out ({so_far}; {bearable} in a row end the run)"
            self._untold.append((step, "skipped", told))
            return
        left_out = self._boosted.runs_ahead  # the device did so; the host learns of it when the next step has begun
        when = "that step's update was left out" if left_out else "stopped before the weights were changed"
        if bearable > 1:
            when = f"the last of {bearable} in a row that were not finite (--skip_nonfinite), none changed the weights"
        raise TrainingError(f"{what} is {value} at step {step}: {when}; {self._remedy()}")

    def step_was_good(self) -> None:
        """Loss and gradient norm of a step are finite, and it changed the weights."""
        self._progress.nonfinite_in_a_row = 0

    def look_at(self, loss: float, step: int) -> None:
        """See whether a loss, finite, is a spike, or the end of one."""
        progress, factor = self._progress, self._boosted.run.health.spike_factor
        if factor is None:
            return
        found = spikes.look(progress.recent_losses, loss, factor)
        spikes.remember(progress.recent_losses, loss)
        if found is not None and progress.spike is None:
            progress.spike = {"since": step, "highest": loss}
            self.spiked = True
            self._untold.append((step, "spike", found.in_words()))
        elif found is not None:
            progress.spike["highest"] = max(loss, progress.spike["highest"])
        elif progress.spike is not None:
            since, highest = progress.spike["since"], progress.spike["highest"]
            progress.spike = None
            told = f"the loss spike of step {since} is over, the highest loss was {highest:.4f}"
            self._untold.append((step, "spike", told))

    def went_back(self) -> None:
        """The run is at an earlier step again."""
        self.spiked, self._compared = False, 0

    def news(self) -> list[tuple[int, str, str]]:
        """Of steps that were no good, what nobody was told yet: (step, kind of event, line)."""
        news, self._untold = self._untold, []
        return news

    def require_moving(self, step: int) -> None:
        """Raises TrainingError where fp16 has overflowed too often at the smallest loss scale; `step`: the last."""
        scaler = self._boosted.scaler
        if scaler.skips_at_smallest_scale >= SKIPS_AT_THE_SMALLEST_SCALE:
            raise TrainingError(
                f"fp16 gradients overflowed in {SKIPS_AT_THE_SMALLEST_SCALE} steps in a row at the smallest loss scale "
                f"({scaler.last_scale:g}), up to step {step}: no weight moves any more; {self._remedy()}"
            )

    def require_equal_copies(self, step: int) -> None:
        """Raises TrainingError where ranks that must hold the same weights do not, after this step. Collective."""
        if self._compared == step:
            return
        found = self.copies.difference()
        if found is not None:
            hosts = ranks.gather(socket.gethostname(), "telling which rank is where")
            last = self._writer.last_path if self._writer else None
            back = f"resume from {last}" if last is not None else "begin again (no checkpoint was written)"
            raise TrainingError(
                f"after step {step} {found.in_words(hosts)}: a machine computes or remembers wrong, or ranks do not "
                f"compute alike; look at its memory and its GPU, or leave that machine out, and {back}"
            )
        self._compared = step

    def require_finite_state(self, step: int) -> None:
        """Raises TrainingError where a weight or moment is not finite. Collective."""
        spoiled = first_not_finite(self._boosted.state)
        if spoiled is not None:
            raise TrainingError(f"{spoiled} is not finite after step {step}: not saved; {self._remedy()}")

    def _remedy(self) -> str:
        last = self._writer.last_path if self._writer else None
        return remedy(self._boosted.run, last, begun_from_it=last == self._begun_from)


def first_not_finite(state: TrainingState) -> str | None:
    """The first weight or moment with a value that is nan or infinite, in words; the same on all ranks. Collective.

    One pass over what each rank holds, with nothing copied.
    """
    own = None
    for name, key, part in state.own_parts():
        if part.numel() and not torch.isfinite(torch.stack(part.aminmax())).all():
            own = name if key == "param" else f"{key} of {name}"
            break
    return next(filter(None, ranks.gather(own, "looking for weights that are not finite")), None)


def remedy(run: RunConfig, checkpoint: Path | None, begun_from_it: bool) -> str:
    """What to try where loss, gradient or weights of a run are not finite.

    Args:
        checkpoint: the newest complete one, whose weights were finite when it was written and when it was read.
        begun_from_it: nothing was saved since the run was resumed from it.
    """
    ways = [f"a lower --lr (it is {run.optimizer.lr:g})"]
    if not run.optimizer.gradient_clipping:
        ways.append("--gradient_clipping 1.0 (it is off)")
    if run.booster.mixed_precision == "fp16":
        ways.append("--mixed_precision bf16")
    tries = " or ".join(ways)
    if checkpoint is None:
        return f"begin again with {tries} (no checkpoint was written)"
    if begun_from_it:
        return f"resume from an earlier checkpoint than {checkpoint}, which this run began from, or with {tries}"
    return f"resume from {checkpoint}, whose weights are finite, or from an earlier one, with {tries}"
