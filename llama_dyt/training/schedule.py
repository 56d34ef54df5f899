"""Learning-rate schedules: a pure function of the step, so that resuming needs nothing but the step number."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import ConfigurationError

FINETUNE_WARMUP_FRACTION = 0.03
"""The share of the steps fine-tuning warms up for when no number is given, as in Colossal-AI's program."""
FINAL_FRACTION = 0.1
"""The cosine schedules end at a tenth of the peak (LLaMA, section 2.2)."""


@dataclass(frozen=True)
class LearningRateSchedule:
    """The course of the learning rate; `lr_scheduler` in a checkpoint."""

    name: str
    peak_lr: float
    warmup_steps: int
    total_steps: int

    @classmethod
    def of(cls, run: RunConfig, total_steps: int) -> LearningRateSchedule:
        """That of a run of `total_steps`."""
        warmup = run.optimizer.warmup_steps
        if warmup is None:
            warmup = round(FINETUNE_WARMUP_FRACTION * total_steps)
        return cls(run.optimizer.lr_scheduler, run.optimizer.lr, warmup, total_steps)

    def lr(self, step: int) -> float:
        return self.peak_lr * learning_rate_factor(self.name, step, self.warmup_steps, self.total_steps)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def learning_rate_factor(name: str, step: int, warmup_steps: int, total_steps: int) -> float:
    """Share of the peak learning rate to use for optimizer step `step` (0 is the first).

    Args:
        name: "cosine" (Colossal-AI's: linear warm-up, cosine from its end to a tenth), "quadratic" (the DyT authors':
            quadratic warm-up under a cosine that starts at step 0), "linear" (linear warm-up, then down to zero) or
            "constant" (linear warm-up, then the peak).
        warmup_steps: W ≥ 0. "quadratic" shortens it to a twentieth of the run, as the authors do.
        total_steps: T ≥ 1. Past it the factor stays at its last value: it never rises again.

    Every schedule's first step has a rate above zero: step n is the (n+1)-th, so a step is never spent at rate 0.

    Raises:
        ConfigurationError: unknown name.
    """
    step = min(step, total_steps - 1)
    if name == "quadratic":
        # DyT's fms-fsdp fork: w = min(2000, N // 20), min of both curves; w at least 1 so that short runs do not
        # divide by zero.
        done = step + 1
        warmup = max(1, min(warmup_steps, total_steps // 20))
        rising = 1.0 - (1.0 - min(done, warmup) / warmup) ** 2
        return min(rising, _cosine(done / total_steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    if name == "cosine":
        return _cosine(progress)
    if name == "linear":
        return 1.0 - progress
    if name == "constant":
        return 1.0
    raise ConfigurationError(f"unknown --lr_scheduler {name!r}: choose cosine, quadratic, linear or constant")


def _cosine(progress: float) -> float:
    """1 at progress 0, FINAL_FRACTION at 1."""
    return FINAL_FRACTION + (1.0 - FINAL_FRACTION) * 0.5 * (1.0 + math.cos(math.pi * min(progress, 1.0)))
