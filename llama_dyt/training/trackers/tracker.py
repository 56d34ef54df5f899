"""The seam of what a run tells of its course: a tracker is a class with open, log and close.

Ours are the other files of this folder, on by themselves. A user's is a class that a module given to `--import`
registers, `TRACKERS.register(Mine)`, and that `--tracker` turns on. Only the first rank has trackers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem
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


def scalars(record: Record) -> Iterator[tuple[str, float]]:
    """(name, number) of all numbers in a record but its step: `train/loss`, and `alpha/NORM` of a dict."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{name}", number) for name, number in value.items() if isinstance(number, (int, float)))
        elif key != "step" and isinstance(value, (int, float)):
            yield f"train/{key}", value


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
        states: name → what a tracker's `state` gave in the checkpoint that this run goes on from; empty where it begins
            a course of its own, from no checkpoint, another --save_dir's or an earlier one than the newest.
    """

    run: RunConfig
    save_dir: Location
    start_step: int
    total_steps: int
    describe: str
    title: str
    vocab_size: int
    say: Callable[[str], None] = print
    states: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Tracker:
    """What is not overridden does nothing. What one raises is told once, and the run goes on.

    Attributes:
        name: by which `--tracker` asks for it.
        settings: a dataclass of flags of its own, or None; a run has them as `run.NAME`.
        always_on: a run has it without being asked.
        needed: what it raises ends the run.
        in_background: a thread of its own makes it and calls it, so that one that is slow, or hangs, takes no time of
            the run; what it does not keep up with is left out, and the end of the run waits for it only so long.
        order: its place among ours.
    """

    name: str
    settings: type | None = None
    always_on: bool = False
    needed: bool = False
    in_background: bool = False
    order: int = 100

    def __init__(self, tracked: Tracked) -> None:
        self.tracked = tracked

    @classmethod
    def why_not(cls, run: RunConfig) -> Problem | None:
        """What keeps it from working for this run, such as a package that is not installed; asked before the run."""
        return None

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

    def log_event(self, step: int, kind: str, text: str) -> None:
        """Something happened that is no step: "resumed", "saved", "skipped", "spike", …, in a line for people."""

    def log_picture(self, name: str, path: Path) -> None:
        """A picture of the run (PNG) is there, of this name ("loss")."""

    def went_back(self, step: int) -> None:
        """The run is as it was after this step, and does the later ones anew: what was told of them does not count."""

    def saved(self, step: int) -> None:
        """A checkpoint of this step is complete."""

    def state(self) -> dict[str, Any]:
        """What the run that goes on from the next checkpoint is to know, as JSON can hold it: the id of a run on a
        server, say. It comes back as `tracked.states[name]`. Asked for before each save; it must not wait."""
        return {}

    def finish(self) -> tuple[str, Path] | None:
        """The run has ended well, and `close` follows; a picture that the other trackers are to have, or None."""

    def close(self) -> None:
        """No more comes; called after a failure too."""

    def result(self) -> tuple[str, Any] | None:
        """After `close`, of a run that ended well: a word and what there is to look at, for the run's last lines."""


TRACKERS: Registry[type[Tracker]] = Registry("tracker", "llama_dyt.training.trackers", "TRACKER", "tracker")
