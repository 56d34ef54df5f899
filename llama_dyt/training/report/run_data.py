"""What a report knows of a run, from its records, events and settings; in room that a long run does not fill."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from llama_dyt.core.secrets import redacted
from llama_dyt.training.report.series import Series, Table, shortened
from llama_dyt.training.trackers.tracker import Record

_FEW = 8
"""So many names of one kind are lines in one picture; of more each group of like names is a map."""
_EVENTS = 400
_SOURCES = "sources"


class RunData:
    """Takes records as metrics.jsonl has them, in order.

    Attributes:
        name: of the run.
        about: what the run is, in words, by name: title, environment, state.
        config: its flags by name.
    """

    def __init__(self, name: str, about: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self.name = name
        self.about = dict(about)
        self.config = redacted(dict(config))
        self._series: dict[str, Series] = {}
        self._tables: dict[str, Table] = {}
        self._newest: dict[str, tuple[int, dict[str, float]]] = {}
        self._events: list[dict[str, Any]] = []
        self._samples: list[Any] = []

    def add(self, record: Record) -> None:
        """A record, whatever is in it: numbers become lines, dicts of numbers lines or maps, `events` events."""
        step = record["step"]
        for key, value in record.items():
            if key == "step":
                continue
            if isinstance(value, (int, float)):
                self._series.setdefault(key, Series()).add(step, value)
            elif isinstance(value, Mapping):
                self._add_table(step, key, value)
            elif key == "samples":
                self._samples = [step, value]
            elif key in ("event", "events"):
                for event in value if isinstance(value, list) else [value]:
                    self.add_event(step, event)

    def _add_table(self, step: int, key: str, values: Mapping[str, Any]) -> None:
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        if key == _SOURCES:
            numbers = _shares(numbers)
        if key.startswith("validation_"):  # few, and each point counts
            for name, value in numbers.items():
                self._series.setdefault(f"{key}/{name}", Series()).add(step, value)
        elif numbers:
            self._tables.setdefault(key, Table()).add(step, numbers)
            self._newest[key] = step, numbers

    def add_event(self, step: int, event: Any) -> None:
        """One of events.jsonl, or what a record has: a dict with a kind and a text, or a text."""
        known = event if isinstance(event, Mapping) else {"text": str(event)}
        text = known.get("text") or ", ".join(f"{k} {v}" for k, v in known.items() if k not in ("kind", "step", "time"))
        kind = str(known.get("kind", "event"))
        self._events.append(
            {"step": known.get("step", step), "kind": kind, "text": text, "time": known.get("time", "")}
        )
        if len(self._events) > 2 * _EVENTS:  # saves of a long run go first
            saves = [one for one in self._events if one["kind"] == "saved"][:-20]
            others = [one for one in self._events if one not in saves]
            self._events = others[-_EVENTS:]

    def add_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        for event in events:
            self.add_event(event["step"], event)

    @property
    def is_empty(self) -> bool:
        return not self._series

    def to_json(self) -> dict[str, Any]:
        """All of it as the page takes it."""
        lines = {name: series.points() for name, series in self._series.items() if series.steps}
        maps = []
        for kind, table in self._tables.items():
            steps, rows = table.rows()
            for group, names in _groups(rows).items():
                if len(rows) <= _FEW or len(names) == 1:
                    for name in names:
                        kept = [(step, value) for step, value in zip(steps, rows[name]) if value is not None]
                        lines[f"{kind}/{name}"] = tuple(map(list, zip(*kept))) if kept else ([], [])
                else:
                    values = [rows[name] for name in names]
                    maps.append({"kind": kind, "group": group, "names": names, "steps": steps, "values": values})
                    if group.count("*") == 2:  # as of a layer and an expert: a picture by itself
                        last, newest = self._newest[kind]
                        maps[-1]["newest"] = [last, [shortened(newest.get(name)) for name in names]]
        return {
            "name": self.name,
            "about": self.about,
            "config": {name: value for name, value in self.config.items() if value is not None},
            "lines": {name: points for name, points in lines.items() if points[0]},
            "maps": maps,
            "events": self._events[-_EVENTS:],
            "samples": self._samples,
        }


def _groups(names: Iterable[str]) -> dict[str, list[str]]:
    """The names that differ in numbers alone, by what they share: those of a norm in every layer."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(re.sub(r"\d+", "*", name), []).append(name)
    return found


def _shares(counts: Mapping[str, float]) -> dict[str, float]:
    """What part of the tokens each source gave; without counts of tokens, of all that was counted."""
    tokens = {name.removesuffix("/tokens"): count for name, count in counts.items() if name.endswith("/tokens")}
    used = tokens or dict(counts)
    total = sum(used.values())
    return {name: count / total for name, count in used.items()} if total else {}
