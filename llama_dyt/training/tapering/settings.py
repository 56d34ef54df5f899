"""The flags of norms that become others by a schedule, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.config.options import TRAINING, option
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem


@dataclass(frozen=True)
class TaperSettings:
    """When a tapered model's norms become Dynamic Tanh; experimental."""

    taper_steps: int | None = option(
        None,
        "Have the norms of a tapered model (convert.py --norm tapered) become Dynamic Tanh within so many steps, one "
        "after the other, the final norm last; none leaves them where they are.",
        entries=TRAINING,
        metavar="STEPS",
        at_least=1,
    )
    taper_start: int = option(
        0, "Steps before the first norm begins to become Dynamic Tanh.", entries=TRAINING, metavar="STEPS", at_least=0
    )
    taper_overlap: float = option(
        0.5,
        "Share of a norm's way that the next one goes at the same time: 0, one after the other, to 1, all together.",
        entries=TRAINING,
        at_least=0,
        at_most=1,
    )


def tapering_problems(run: RunConfig) -> Iterator[Problem]:
    """What of a run's other flags keeps its norms from becoming others."""
    if run.kind == "benchmark":
        return
    settings, plain = run.tapering, TaperSettings()
    if settings.taper_steps is None:
        for name in ("taper_start", "taper_overlap"):
            value = getattr(settings, name)
            if value != getattr(plain, name):
                reason, remedy = "has no effect without --taper_steps", "add that, or leave it out"
                yield Problem(name, value, reason, remedy, also=("taper_steps",), clause=True)
    elif run.adapter.asked_for:
        reason = "an adapter leaves the norms as they are, and is saved without them"
        yield Problem("taper_steps", settings.taper_steps, reason, "train all weights", also=("adapter", "lora_rank"))


def tapering_warnings(run: RunConfig, total_steps: int | None) -> Iterator[str]:
    """What is probably not meant."""
    settings = run.tapering
    if run.kind == "benchmark" or settings.taper_steps is None or total_steps is None:
        return
    end = settings.taper_start + settings.taper_steps
    if end >= total_steps:
        when, fewer = "there" if end == total_steps else "before", max(1, total_steps // 3)
        yield (
            f"--taper_steps {settings.taper_steps}: the last norm is exchanged in step {end} and the run of "
            f"{total_steps} ends {when}; give fewer, such as {fewer}"
        )
