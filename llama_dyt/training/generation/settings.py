"""Answers in the course of fine-tuning: when, to what; and what is wrong with that."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.config.options import option
from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem

_HERE = ("finetune",)


@dataclass(frozen=True)
class SampleSettings:
    """Continuations of the same prompts, every so many steps."""

    generate_every: int | None = option(
        None,
        "Steps between answers to a few prompts, by the likeliest tokens; they stand in the log, metrics.jsonl and "
        "TensorBoard. None or 0 is never.",
        entries=_HERE,
        metavar="STEPS",
        at_least=0,
    )
    generate_prompts: str | None = option(
        None,
        "What is asked: a file with a prompt a line, or .jsonl with `prompt` or `messages`. None: what validation "
        "holds out, whose answers are compared to the letter.",
        entries=_HERE,
        metavar="FILE",
        path=True,
    )
    generate_samples: int = option(8, "Prompts that are asked.", entries=_HERE, metavar="N", at_least=1)
    generate_tokens: int = option(64, "Longest answer.", entries=_HERE, metavar="TOKENS", at_least=1)


def sample_problems(run: RunConfig) -> Iterator[Problem]:
    """What keeps a run from asking its model."""
    settings, booster = run.samples, run.booster
    if run.kind != "finetune" or not settings.generate_every:
        if run.kind == "finetune" and settings.generate_prompts is not None:
            reason, remedy = "has no effect without --generate_every", "give the steps between answers"
            also = ("generate_every",)
            yield Problem("generate_prompts", settings.generate_prompts, reason, remedy, also=also, clause=True)
        return
    if booster.pp > 1:
        reason, remedy = (
            f"needs all weights in one process, and --pp {booster.pp} has them in several",
            "leave it out, and ask a checkpoint by generate.py",
        )
        yield Problem("generate_every", settings.generate_every, reason, remedy, also=("pp",), clause=True)
    if settings.generate_prompts is None and not run.validation.validation_freq:
        reason, remedy = "has nothing to ask", "give --generate_prompts, or --validation_freq and a set to hold out"
        also = ("generate_prompts", "validation_freq")
        yield Problem("generate_every", settings.generate_every, reason, remedy, also=also, clause=True)
    if settings.generate_prompts is not None and not os.path.isfile(settings.generate_prompts):
        reason, remedy = "no such file", "give one with a prompt a line"
        yield Problem("generate_prompts", settings.generate_prompts, reason, remedy, local=True)
