"""The trackers of a run together: each is told of everything, and one that fails is told of once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from llama_dyt.core import console
from llama_dyt.core.errors import in_one_line, raised_at
from llama_dyt.training.trackers.tracker import TRACKERS, Record, Sample, Tracked, Tracker


class Trackers:
    """Those of this process; on all ranks but the first there are none, so that nobody asks for the rank.

    Raises (open, advance, log, log_validation): what a tracker that is `needed` raises; of the others a failure is
    printed once, and the run goes on.
    """

    def __init__(self, trackers: Sequence[Tracker] = (), quiet: bool = True) -> None:
        """`quiet`: `say` prints nothing, as on other ranks than the first."""
        self._trackers = list(trackers)
        self._quiet = quiet
        self._told: set[str] = set()

    @classmethod
    def of_run(cls, tracked: Tracked, first: bool) -> Trackers:
        """Those that every run has, and those that --tracker names; `first`: this is the first rank."""
        trackers = cls(quiet=not first)
        console.bar_stands(True)
        tracked = replace(tracked, say=trackers.say)
        asked = {TRACKERS.get(name).name for name in tracked.run.run.trackers}
        for kind in TRACKERS if first else ():
            if kind.always_on or kind.name in asked:
                trackers._attempt(kind, "made", lambda kind=kind: trackers._trackers.append(kind(tracked)))
        return trackers

    def open(self) -> None:
        """Called when the first batch is there. One that fails in it is left out from then on."""
        self._trackers = [one for one in self._trackers if self._attempt(one, "open", one.open)]

    def advance(self) -> None:
        for tracker in self._trackers:
            if type(tracker).advance is not Tracker.advance:  # a small model's step is short
                self._attempt(tracker, "advance", tracker.advance)

    def log(self, record: Record) -> None:
        for tracker in self._trackers:
            self._attempt(tracker, "log", lambda tracker=tracker: tracker.log(record))

    def log_validation(self, record: Record) -> None:
        for tracker in self._trackers:
            self._attempt(tracker, "log_validation", lambda tracker=tracker: tracker.log_validation(record))

    def log_samples(self, step: int, samples: Sequence[Sample], seconds: float) -> None:
        for tracker in self._trackers:
            action = partial(tracker.log_samples, step, samples, seconds)
            self._attempt(tracker, "log_samples", action)

    def close(self) -> None:
        for tracker in self._trackers:
            self._attempt(tracker, "close", tracker.close)
        if not self._quiet:  # to another rank, which may have failed alone, the first one's bar is still there
            console.bar_stands(False)

    def results(self) -> Iterable[tuple[str, Any]]:
        """Word and thing of each that has left something to look at, and has not failed."""
        found: list[tuple[str, Any]] = []
        for tracker in self._trackers:
            if tracker.name in self._told:
                continue
            self._attempt(tracker, "result", lambda tracker=tracker: found.append(tracker.result()))
        return [one for one in found if one is not None]

    def say(self, message: str) -> None:
        """Print a line without tearing the progress bar."""
        if not self._quiet:
            from tqdm import tqdm

            tqdm.write(message, file=sys.stderr)

    def _attempt(self, tracker: Tracker | type[Tracker], where: str, action: Callable[[], Any]) -> bool:
        """Whether it went well."""
        try:
            action()
            return True
        except Exception as error:
            if tracker.needed:
                raise
            if tracker.name not in self._told:
                self._told.add(tracker.name)
                rest = f"the run goes on, and what else fails in it is not told ({raised_at(error)})"
                self.say(f"warning: tracker {tracker.name} failed in {where}: {in_one_line(error)}; {rest}")
            return False
