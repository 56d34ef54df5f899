"""The flags of distillation, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.boosters.compilation import compiles
from llama_dyt.boosters.strategy import STRATEGIES, able
from llama_dyt.config.options import TRAINING, option
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem


@dataclass(frozen=True)
class DistillationSettings:
    """Another model as the teacher; experimental."""

    distill_from: str | None = option(
        None,
        "Learn from this model's logits beside the text: a HF folder, a checkpoint of ours or its --save_dir, of the "
        "same vocabulary. Every rank holds the whole of it. The loss that is logged stays the cross entropy.",
        entries=TRAINING,
        metavar="PATH",
        path=True,
    )
    distill_weight: float = option(
        0.5,
        "Share of the divergence from the teacher's logits in what is minimised; the cross entropy has the rest.",
        entries=TRAINING,
        at_least=0,
        at_most=1,
    )
    distill_temperature: float = option(
        1.0, "What both models' logits are divided by before they are compared.", entries=TRAINING, above=0
    )
    distill_hidden_weight: float = option(
        0.0,
        "Weight of how far hidden states behind each layer and the final norm are off the teacher's: the square of the "
        "difference by the teacher's, token by token, averaged over layers. Needs a teacher of the same width and "
        "depth.",
        entries=TRAINING,
        at_least=0,
    )


def distillation_problems(run: RunConfig, device: str | None) -> Iterator[Problem]:
    """What of how a model is spread, or of its other flags, keeps it from being taught."""
    if run.kind == "benchmark":
        return
    settings, booster = run.distillation, run.booster
    path = settings.distill_from
    if path is None:
        plain = DistillationSettings()
        for name in ("distill_weight", "distill_temperature", "distill_hidden_weight"):
            value = getattr(settings, name)
            if value != getattr(plain, name):
                reason, remedy = "has no effect without a teacher", "add --distill_from, or leave it out"
                yield Problem(name, value, reason, remedy, also=("distill_from",), clause=True)
        return
    strategy = STRATEGIES.find(booster.plugin)
    if strategy is not None and not strategy.capability.distillation:
        reason = f"--plugin {booster.plugin} is none that distillation is made for"
        remedy = f"take --plugin {' or '.join(able('distillation'))}"
        yield Problem("distill_from", path, reason, remedy, also=("plugin",))
    for cut, value in booster.cuts.items():
        reason = f"--{cut} {value} leaves no rank whole sequences with whole logits to compare"
        yield Problem("distill_from", path, reason, f"give --{cut} 1", also=(cut,))
    if settings.distill_hidden_weight and device is not None and compiles(run, device):
        reason, remedy = "needs the outputs of layers, which compiled ones do not hand out", "add --no-compile"
        yield Problem("distill_hidden_weight", settings.distill_hidden_weight, reason, remedy, also=("compile",))
    if not settings.distill_weight and not settings.distill_hidden_weight:
        reason, remedy = "nothing is learned from the teacher", "give it or --distill_hidden_weight above 0"
        yield Problem("distill_weight", 0, reason, remedy, also=("distill_from",))
