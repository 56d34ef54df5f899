"""An entry's first act: what can be said of a command line before torch, transformers and the engine are imported."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from llama_dyt.config.options import Kind
from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import EXIT_STATUS, ConfigurationError, LlamaDytError
from llama_dyt.core.secrets import redact
from llama_dyt.core.store import at, why_not_at
from llama_dyt.training.plan.check import Checked, check
from llama_dyt.training.plan.parse import parse

_OF_A_LAUNCHER = ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def answer(kind: Kind, argv: Sequence[str] | None = None) -> Checked | None:
    """Print `--help`, or what is wrong with a command line, and end the process; return what the plan goes on from.

    All problems of a run are told together: where some could only be found with what takes seconds to import, nothing
    is said yet. Nor is it in a process that a launcher started, which has others to tell; None where the plan has to
    begin anew there, to meet what could not be gathered.
    """
    launched = any(name in os.environ for name in _OF_A_LAUNCHER)
    try:
        asked = parse(kind, argv)
        # What reads data takes as long to import as all before it, and --help has been answered without.
        from llama_dyt.training.plan.datasets import datasets, look_at_datasets, may_be_of_the_hub

        checked = check(asked)
        if launched:
            return checked
        problems, dry = checked.found.problems, checked.run.run.dry_run  # which does without the data that it plans for
        if not dry and (problems or not any(map(may_be_of_the_hub, datasets(checked.run).values()))):
            look_at_datasets(checked)
        if problems and not _needs_a_look_at_weights(checked.run):
            raise ConfigurationError(problems)
    except LlamaDytError as error:
        return None if launched else _end(error)
    return checked


def _end(error: LlamaDytError) -> NoReturn:
    print(redact(f"error: {error}"), file=sys.stderr)
    sys.exit(EXIT_STATUS)


def _needs_a_look_at_weights(run: RunConfig) -> bool:
    """Whether checkpoints or weights have to be judged too, which is done with torch."""
    save_dir = run.run.save_dir
    if run.model.model_path is not None or run.run.load is not None:
        return True
    return save_dir is not None and why_not_at(save_dir, "save_dir") is None and at(save_dir).is_dir()
