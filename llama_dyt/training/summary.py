"""A run in words: in one line what it is, in its last lines why it ended, how fast it was and where what it left is."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from llama_dyt.boosters.compilation import compiles
from llama_dyt.config.run import RunConfig
from llama_dyt.core.store import Location
from llama_dyt.training.loop import Trainer
from llama_dyt.training.progress import Ending
from llama_dyt.training.settings import tokens_per_step


def run_in_words(run: RunConfig, device: str, world_size: int, model: str) -> str:
    """A run in one line: model, plugin, processes, tokens a step. `model`: in words."""
    booster = run.booster
    layout = f", {booster.layout_in_words}" if booster.layout_in_words else ""
    layout += f", fp8 {run.precision.fp8}" if run.precision.fp8 is not None else ""
    layout += " emulated" if run.precision.fp8_emulate else ""
    layout += ", layers compiled" if compiles(run, device) else ""
    return (
        f"{model}, {booster.plugin} {booster.mixed_precision}{layout} on {world_size} "
        f"{device} process{'es' if world_size > 1 else ''}, "
        f"{tokens_per_step(run, world_size):,} tokens a step"
    )


def print_summary(
    trainer: Trainer,
    ending: Ending,
    total_steps: int,
    speed: str,
    checkpoint: Location | None,
    results: Iterable[tuple[str, Any]],
) -> None:
    """Called by the first rank alone.

    Args:
        speed: in words.
        results: what there is to look at, a word and the thing.
    """
    progress, batch = trainer.progress, trainer.batch
    print(f"{ending} at step {progress.step} of {total_steps}, {progress.tokens_seen:,} tokens seen")
    print(f"  speed       {speed}")
    if progress.skipped_steps:
        print(f"  skipped     {progress.skipped_steps} fp16 steps that overflowed")
    if progress.nonfinite_steps:
        print(f"  left out    {progress.nonfinite_steps} updates that were not finite (--skip_nonfinite)")
    if batch is not None and batch.num_bad_lines:
        print(f"  left out    {batch.num_bad_lines:,} unusable lines (--skip_bad_lines)")
    print(f"  checkpoint  {checkpoint}")
    for word, thing in results:
        print(f"  {word:<11} {thing}")
    if ending is Ending.INTERRUPTED:
        print("  go on with  the same command and --load auto")
    sys.stdout.flush()
