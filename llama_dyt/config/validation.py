"""The settings of validation, and what is wrong with them: text that is measured and never learned from.

Its own file beside `settings.py`, for which it would be too much, and because the rules that tie these flags together
follow from nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llama_dyt.config.options import Kind, option

if TYPE_CHECKING:
    from llama_dyt.config.run import RunConfig

TRAINING: tuple[Kind, ...] = ("pretrain", "finetune")


@dataclass(frozen=True)
class ValidationSettings:
    """Loss and perplexity on text that is not trained on, at intervals."""

    validation_freq: int | None = option(
        None,
        "Steps between validations; there is one at the end too. None or 0 is no validation.",
        entries=TRAINING,
        metavar="STEPS",
        at_least=0,
    )
    validation_batches: int = option(
        16,
        "Global batches to validate on, the same ones each time; a validation set that has fewer is taken whole.",
        entries=TRAINING,
        metavar="N",
        at_least=1,
    )
    validation_dataset: str | None = option(
        None,
        "What to validate on: anything that --dataset takes. None is what --validation_fraction holds out, else what "
        "the sample, prepared data or a mixture's sources have held out already.",
        entries=TRAINING,
        metavar="NAME|PATH",
    )
    validation_fraction: float | None = option(
        None,
        "Share of the documents of --dataset that is left out of training and validated on, chosen by each document's "
        "own hash.",
        entries=TRAINING,
        above=0,
        at_most=0.5,
        metavar="SHARE",
    )


def validation_problems(run: RunConfig) -> Iterator[str]:
    """Problems of the validation flags; what a validation set holds is checked where it is read."""
    settings = run.validation
    if run.kind == "benchmark":
        return
    if settings.validation_dataset is not None and settings.validation_fraction is not None:
        yield (
            f"--validation_dataset {settings.validation_dataset} and --validation_fraction "
            f"{settings.validation_fraction:g}: give one of the two, the set or the share of --dataset to hold out"
        )
    if settings.validation_dataset is not None and not settings.validation_freq:
        yield (
            f"--validation_dataset {settings.validation_dataset} has no effect without --validation_freq; give "
            "the steps between validations, or leave it out"
        )
