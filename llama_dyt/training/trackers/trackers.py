"""The trackers of a run together: each is told of everything, and one that fails is told of once."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from llama_dyt.core import console
from llama_dyt.core.errors import in_one_line, raised_at
from llama_dyt.core.secrets import redact
from llama_dyt.training.trackers.background import InBackground
from llama_dyt.training.trackers.tracker import TRACKERS, Record, Sample, Tracked, Tracker

_SECONDS_AFTER_A_FAILURE = 3.0


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
        self._background: list[InBackground] = []
        self._seconds_to_wait = 0.0

    @classmethod
    def of_run(cls, tracked: Tracked, first: bool) -> Trackers:
        """Those that every run has, and those that --tracker names; `first`: this is the first rank."""
        trackers = cls(quiet=not first)
        console.bar_stands(True)
        tracked = replace(tracked, say=trackers.say)
        trackers._seconds_to_wait = tracked.run.tracking.tracker_wait
        asked = {TRACKERS.get(name).name for name in tracked.run.run.trackers}
        for kind in TRACKERS if first else ():
            if not kind.always_on and kind.name not in asked:
                continue
            if kind.in_background:
                trackers._background.append(InBackground(kind, tracked, trackers._attempt))
            else:
                trackers._attempt(kind, "made", lambda kind=kind: trackers._trackers.append(kind(tracked)))
        trackers._trackers += trackers._background
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

    def log_event(self, step: int, kind: str, text: str) -> None:
        """Tell of what happened that is no step: a word ("resumed", "saved", "skipped", "spike") and a line."""
        text = redact(text)
        for tracker in self._trackers:
            self._attempt(tracker, "log_event", partial(tracker.log_event, step, kind, text))

    def went_back(self, step: int) -> None:
        """The run is as it was after this step, by a checkpoint."""
        for tracker in self._trackers:
            self._attempt(tracker, "went_back", partial(tracker.went_back, step))

    def saved(self, step: int) -> None:
        """A checkpoint of this step is complete."""
        for tracker in self._trackers:
            self._attempt(tracker, "saved", partial(tracker.saved, step))

    def states(self) -> dict[str, dict[str, Any]]:
        """Name → what the run that goes on from a checkpoint is to know of each."""
        found: dict[str, dict[str, Any]] = {}
        for tracker in self._trackers:
            self._attempt(tracker, "state", lambda tracker=tracker: found.update({tracker.name: tracker.state()}))
        return {name: state for name, state in found.items() if state}

    def finish(self) -> None:
        """The run has ended well: the trackers have its pictures before they are closed."""
        pictures: list[tuple[str, Path] | None] = []
        for tracker in self._trackers:
            self._attempt(tracker, "finish", lambda tracker=tracker: pictures.append(tracker.finish()))
        for name, path in filter(None, pictures):
            for tracker in self._trackers:
                self._attempt(tracker, "log_picture", partial(tracker.log_picture, name, path))

    def hurry(self) -> None:
        """The run has failed: what that was is to be told soon, whatever trackers still wait for."""
        self._seconds_to_wait = min(self._seconds_to_wait, _SECONDS_AFTER_A_FAILURE)

    def close(self) -> None:
        for tracker in self._background:
            tracker.end()
        for tracker in self._trackers:
            self._attempt(tracker, "close", tracker.close)
        deadline = time.monotonic() + self._seconds_to_wait
        for tracker in self._background:
            tracker.wait(deadline)
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
