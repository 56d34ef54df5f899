"""The seam of what a run tells of its course: a tracker is a class with open, log and close.

Ours are the other files of this folder, on by themselves. A user's is a class that a module given to `--import`
registers, `TRACKERS.register(Mine)`, and that `--tracker` turns on. Only the first rank has trackers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.registry import Registry
from llama_dyt.core.store import Location

Record = dict[str, Any]
"""Of a step that is logged: its `step`, numbers by name, and dicts of numbers by name, such as one a norm."""


@dataclass(frozen=True)
class Sample:
    """What the model made of a prompt.

    Attributes:
        expected: what the data have there; None where they say nothing.
    """

    prompt: str
    text: str
    expected: str | None = None

    @property
    def is_right(self) -> bool:
        return self.text == self.expected


def share_right(samples: Sequence[Sample]) -> float | None:
    """Of those of which an answer is expected, the share that has it to the letter; None where there are none."""
    known = [sample for sample in samples if sample.expected is not None]
    return sum(sample.is_right for sample in known) / len(known) if known else None


@dataclass(frozen=True)
class Tracked:
    """What a tracker is told of its run.

    Attributes:
        run: the resolved run; a tracker's own settings are `run.NAME`.
        save_dir: where the run's files are.
        start_step: steps that were done by the run that this one resumes; records of later ones are of lost work.
        total_steps: of the run.
        describe: what is done: "pretraining".
        title: that, and the model in words.
        vocab_size: of the model.
        say: prints a line beside the progress bar.
    """

    run: RunConfig
    save_dir: Location
    start_step: int
    total_steps: int
    describe: str
    title: str
    vocab_size: int
    say: Callable[[str], None] = print


class Tracker:
    """What is not overridden does nothing. What one raises is told once, and the run goes on.

    Attributes:
        name: by which `--tracker` asks for it.
        settings: a dataclass of flags of its own, or None; a run has them as `run.NAME`.
        always_on: a run has it without being asked.
        needed: what it raises ends the run.
        order: its place among ours.
    """

    name: str
    settings: type | None = None
    always_on: bool = False
    needed: bool = False
    order: int = 100

    def __init__(self, tracked: Tracked) -> None:
        self.tracked = tracked

    def open(self) -> None:
        """The first batch is there: make files, connect. Data that cannot be read leaves nothing behind."""

    def advance(self) -> None:
        """One more step is done; of those that are logged `log` follows."""

    def log(self, record: Record) -> None:
        """A step is logged. Its record is for all trackers, so it is not to be changed."""

    def log_validation(self, record: Record) -> None:
        """A validation was done: `validation_loss`, `validation_perplexity` and `validation_tokens`, each by set."""
        self.log(record)

    def log_samples(self, step: int, samples: Sequence[Sample], seconds: float) -> None:
        """Prompts were continued by the weights of a step, which took so long."""

    def close(self) -> None:
        """No more comes; called after a failure too."""

    def result(self) -> tuple[str, Any] | None:
        """After `close`, of a run that ended well: a word and what there is to look at, for the run's last lines."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker", "llama_dyt.training.trackers", "TRACKER", "tracker")
