"""One optimizer step, whichever booster is behind it: what pretraining, fine-tuning and the benchmark all drive."""

from __future__ import annotations

import math

import torch

from llama_dyt.boosters.boosted import Boosted, summed_over_ranks
from llama_dyt.boosters.device_values import HostCopy
from llama_dyt.boosters.step import NonFiniteGradientError, StepResult
from llama_dyt.core.standing import Phase, enter
from llama_dyt.data.loaders.step import Step
from llama_dyt.training.health.finite import Health
from llama_dyt.training.progress import Progress
from llama_dyt.training.schedule import LearningRateSchedule
from llama_dyt.training.signals import StopRequest


class StepOutcome:
    """One optimizer step: the global batch's mean token loss, and what the optimizer did.

    Its numbers may still be on their way from the device; asking for one waits until they are there.

    Args:
        step: its number, from 1.
        totals: over all ranks, (2,): the loss, and how many were asked to stop.
    """

    def __init__(self, step: int, lr: float, totals: torch.Tensor, result: StepResult) -> None:
        self.step = step
        self.lr = lr
        self.result = result
        norm = 0.0 if result.norm is None else result.norm
        if not isinstance(norm, torch.Tensor):
            norm = totals.new_full((), norm)
        self._numbers = HostCopy(torch.cat([totals, norm.to(totals).reshape(1)]))

    @property
    def loss(self) -> float:
        return self._numbers.values()[0]

    @property
    def stop_asked(self) -> bool:
        return self._numbers.values()[1] > 0

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradient norm are; a norm that fp16 left out does not count."""
        loss, _, norm = self._numbers.values()
        return math.isfinite(loss) and math.isfinite(norm)


class StepRunner:
    """Makes the steps of a run, one after the other, and judges what came of each.

    Where the booster runs ahead of the host, nothing in a step waits for the device: its outcome is looked at once the
    next step has been started, or by `settle`. Elsewhere that is done before `train_step` returns. Nothing else knows
    of a step that was not looked at.

    Attributes:
        stopping: some rank was asked to end, and all know it.
    """

    def __init__(
        self, boosted: Boosted, schedule: LearningRateSchedule, progress: Progress, health: Health, stop: StopRequest
    ) -> None:
        """`progress` is kept up to date; `stop` is this process's."""
        self._boosted = boosted
        self._schedule = schedule
        self._progress = progress
        self._health = health
        self._stop = stop
        self._unsettled: StepOutcome | None = None
        self.stopping = False

    def train_step(self, batch: Step) -> StepOutcome:
        """Forward, backward and update.

        Where loss or gradient are not finite no weight changes. Before so many such steps in a row as --skip_nonfinite
        says, the run goes on, with the rate of the next step and the batch after this one.

        Raises:
            TrainingError: there were as many, up to this step or the one before; raised on every rank.
        """
        boosted, progress = self._boosted, self._progress
        number = progress.step + 1
        lr = self._schedule.lr(progress.step - progress.skipped_steps)
        boosted.set_learning_rate(lr)
        share = boosted.forward_backward(batch)
        # One collective for both: a signal costs a step nothing.
        totals = summed_over_ranks([share, float(self._stop.asked)], boosted.device)
        ahead = boosted.runs_ahead
        enter(Phase.OPTIMIZER)
        if ahead or math.isfinite(totals[0]):
            try:
                result = boosted.optimizer_step(totals[0] if ahead else None)
            except NonFiniteGradientError as error:
                result = boosted.leave_out_step(error.args[0])
        else:
            result = boosted.leave_out_step()
        outcome = StepOutcome(number, lr, totals, result)
        progress.step = number
        progress.skipped_steps += result.skipped
        progress.tokens_seen += batch.num_tokens
        progress.position = batch.position
        self._health.require_moving(number)
        self.settle()
        self._unsettled = outcome
        if not ahead:
            self.settle()
        return outcome

    def settle(self) -> None:
        """Look at the last step's outcome, if that has not been done; whoever logs, saves or validates asks first.

        Raises:
            TrainingError: its loss or gradient is not finite, and there were as many such steps as the run bears.
        """
        outcome, self._unsettled = self._unsettled, None
        if outcome is None:
            return
        result = outcome.result
        if outcome.is_finite:
            self._health.look_at(outcome.loss, outcome.step)
            if not result.skipped:
                self._health.step_was_good()
        else:
            if result.counted:
                self._boosted.uncount_step()
            no_good = ("gradient norm", result.grad_norm) if math.isfinite(outcome.loss) else ("loss", outcome.loss)
            self._health.bear(*no_good, outcome.step)
        self.stopping = self.stopping or outcome.stop_asked

    def learn_of_signals(self) -> None:
        """Have every rank know whether any was asked to end, as a step does. Collective."""
        asked = summed_over_ranks([float(self._stop.asked)], self._boosted.device)
        self.stopping = self.stopping or float(asked[0]) > 0
