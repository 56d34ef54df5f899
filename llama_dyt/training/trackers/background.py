"""A tracker in a thread of its own: whatever it waits for, a server that does not answer too, the run does not.

Calls go into a queue with a bound. A tracker that does not keep up misses what finds the queue full; one that hangs is
left alone at the end. How far it came is kept beside the run's files, so that steps that are done again after a crash
are not told twice.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from llama_dyt.core.store import Spool, store_of
from llama_dyt.training.trackers.tracker import Record, Sample, Tracked, Tracker

QUEUE_LENGTH = 2000
"""Calls that may wait: some MB, and at a step a second half an hour of a server that is away."""

Attempt = Callable[[Tracker | type[Tracker], str, Callable[[], Any]], bool]
"""Does something, and says, once for each tracker, what it raised; whether it went well."""


class InBackground(Tracker):
    """Stands for a tracker, which its thread makes when the first batch is there."""

    def __init__(self, kind: type[Tracker], tracked: Tracked, attempt: Attempt) -> None:
        super().__init__(tracked)
        self.name = kind.name
        self._kind = kind
        self._attempt = attempt
        self._calls: queue.Queue[tuple[str, Callable[[Tracker], Any]] | None] = queue.Queue(QUEUE_LENGTH)
        self._thread: threading.Thread | None = None
        self._tracker: Tracker | None = None
        self._failed = False
        self._missed = 0
        self._course = Course(tracked, kind.name)

    def open(self) -> None:
        self._thread = threading.Thread(target=self._work, name=f"tracker {self.name}", daemon=True)
        self._thread.start()

    def log(self, record: Record) -> None:
        self._record("log", record["step"], lambda tracker: tracker.log(record))

    def log_validation(self, record: Record) -> None:
        self._record("log_validation", record["step"], lambda tracker: tracker.log_validation(record))

    def log_samples(self, step: int, samples: Sequence[Sample], seconds: float) -> None:
        self._record("log_samples", step, lambda tracker: tracker.log_samples(step, samples, seconds))

    def log_event(self, step: int, kind: str, text: str) -> None:
        self._later("log_event", lambda tracker: tracker.log_event(step, kind, text))

    def log_picture(self, name: str, path: Path) -> None:
        self._later("log_picture", lambda tracker: tracker.log_picture(name, path))

    def saved(self, step: int) -> None:
        self._later("saved", lambda tracker: tracker.saved(step))

    def finish(self) -> None:
        self._later("finish", lambda tracker: tracker.finish())

    def state(self) -> dict[str, Any]:
        """Of the tracker as far as it is known; while it is not opened, what the run before had."""
        return self._tracker.state() if self._tracker is not None else dict(self.tracked.states.get(self.name, {}))

    def end(self) -> None:
        """Nothing follows: the thread is to close the tracker once it has told it all."""
        with suppress(queue.Full):
            self._calls.put_nowait(None)

    def wait(self, deadline: float) -> None:
        """Wait for the thread until `deadline` (of time.monotonic); what it has not done then is told and left."""
        if self._thread is None:
            return
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(0.1)
            if self._calls.full():
                continue
            self.end()  # it may not have found room the first time
        missing = self._missed + (self._calls.qsize() if self._thread.is_alive() else 0)
        if self._thread.is_alive():
            waited = f"is not done {self.tracked.run.tracking.tracker_wait} s after the run's end (--tracker_wait)"
            self.tracked.say(f"warning: tracker {self.name} {waited}; it is left, and may lack the newest records")
        elif missing and not self._failed:
            self.tracked.say(f"warning: tracker {self.name} lacks {missing} records that it did not keep up with")

    def result(self) -> tuple[str, Any] | None:
        return self._tracker.result() if self._tracker is not None and not self._thread.is_alive() else None

    def _record(self, where: str, step: int, call: Callable[[Tracker], Any]) -> None:
        place = self._course.place(step)
        if not self._course.was_told(place):
            self._later(where, call, place)

    def _later(self, where: str, call: Callable[[Tracker], Any], place: tuple[int, int] | None = None) -> None:
        if self._failed:
            return
        try:
            self._calls.put_nowait((where, partial(self._tell, call, place)))
        except queue.Full:
            if not self._missed:
                self.tracked.say(
                    f"warning: tracker {self.name} does not keep up: it lacks records, and the run goes on"
                )
            self._missed += 1

    def _tell(self, call: Callable[[Tracker], Any], place: tuple[int, int] | None, tracker: Tracker) -> None:
        call(tracker)
        if place is not None:
            self._course.told(place, tracker.state())

    def _work(self) -> None:
        made: list[Tracker] = []
        well = self._attempt(self._kind, "made", lambda: made.append(self._kind(self.tracked)))
        if well and self._attempt(made[0], "open", made[0].open):
            self._tracker = made[0]
            self._attempt(made[0], "open", lambda: self._course.open(made[0].state()))
        else:
            self._failed = True
            return
        while (call := self._calls.get()) is not None:
            where, action = call
            self._attempt(self._tracker, where, partial(action, self._tracker))
        self._attempt(self._tracker, "close", self._tracker.close)
        self._course.close()


class Course:
    """How far a tracker was told of a course of a run: a small file beside metrics.jsonl, rewritten in place.

    A place is (step, number of the record among those of its step).
    """

    def __init__(self, tracked: Tracked, name: str) -> None:
        self._folder = tracked.save_dir
        self._file = f".tracker_{name}.json"
        self._state = tracked.states.get(name)
        self._before = (0, 0)
        self._newest = (0, 0)
        self._counted = (0, 0)
        self._spool: Spool | None = None
        self._descriptor = -1
        if self._state is not None:
            with suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads((tracked.save_dir / self._file).read_text(encoding="utf-8"))
                if found["state"] == self._state:
                    self._before = self._newest = tuple(found["told"])
        if self._before[0] == tracked.start_step:  # what is told of that step now comes after what was
            self._counted = self._before

    def open(self, state: dict[str, Any]) -> None:
        """Begin to write; `state`: of the tracker."""
        self._spool = store_of(self._folder).spool(self._folder, self._file)
        path = self._spool.folder / self._file
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        self.told(self._newest, state)

    def place(self, step: int) -> tuple[int, int]:
        """Of the record that comes now."""
        last, count = self._counted
        self._counted = (step, count + 1 if step == last else 1)
        return self._counted

    def was_told(self, place: tuple[int, int]) -> bool:
        return place <= self._before

    def told(self, place: tuple[int, int], state: dict[str, Any]) -> None:
        if self._descriptor < 0:
            return
        self._newest = max(self._newest, place)
        text = json.dumps({"told": self._newest, "state": state}) + "\n"
        os.pwrite(self._descriptor, text.encode(), 0)
        os.ftruncate(self._descriptor, len(text.encode()))
        self._spool.sync(now=False)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            with suppress(OSError):
                self._spool.close()
