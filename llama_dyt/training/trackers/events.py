"""events.jsonl: what happened to a run that is no step, one JSON object each: resumed, saved, skipped, …"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from typing import Any

from llama_dyt.core.store import Location, Spool, store_of
from llama_dyt.training.trackers.tracker import Tracker

EVENTS_FILE = "events.jsonl"


def read_events(folder: Location) -> list[dict[str, Any]]:
    """The events of a run, oldest first, each with step, kind, text and time; a line that is cut short is left out."""
    found = []
    with suppress(OSError):
        for line in (folder / EVENTS_FILE).read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
    return [event for event in found if {"step", "kind", "text"} <= set(event)]


class Events(Tracker):
    """Keeps every event, of courses that were left too: they are what happened. The file begins with the first."""

    name, always_on, order = "events", True, 11

    _spool: Spool | None = None

    def log_event(self, step: int, kind: str, text: str) -> None:
        if self._spool is None:
            folder = self.tracked.save_dir
            self._spool = store_of(folder).spool(folder, EVENTS_FILE)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        event = {"step": step, "kind": kind, "text": text, "time": now}
        with (self._spool.folder / EVENTS_FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._spool.sync(now=False)

    def close(self) -> None:
        if self._spool is not None:
            self._spool.close()


TRACKER = Events
