"""report.html in the --save_dir: the run in one file to look at, written anew at every save and at the end."""

from __future__ import annotations

from pathlib import Path

from llama_dyt.core.store import Location, store_of
from llama_dyt.training.measurement.provenance import provenance
from llama_dyt.training.report.page import page
from llama_dyt.training.report.reading import REPORT_FILE
from llama_dyt.training.report.run_data import RunData
from llama_dyt.training.trackers.described import run_name
from llama_dyt.training.trackers.events import read_events
from llama_dyt.training.trackers.jsonl import METRICS_FILE, read_metrics
from llama_dyt.training.trackers.tracker import Record, Tracker


class Report(Tracker):
    """What it shows it holds in bounded room; a resumed run reads what is there once."""

    name, always_on, order = "report", True, 16

    _run: RunData | None = None
    _state = "running"
    _written: Location | None = None

    def open(self) -> None:
        tracked = self.tracked
        self._run = RunData(run_name(tracked), {}, tracked.run.flags())
        for record in read_metrics(tracked.save_dir / METRICS_FILE):
            if record["step"] <= tracked.start_step:
                self._run.add(record)
        self._run.add_events(read_events(tracked.save_dir))

    def log(self, record: Record) -> None:
        if self._run is not None:
            self._run.add(record)

    def log_event(self, step: int, kind: str, text: str) -> None:
        if self._run is not None:
            self._run.add_event(step, {"kind": kind, "text": text})

    def saved(self, step: int) -> None:
        self._write("running")

    def finish(self) -> tuple[str, Path] | None:
        self._state = "ended"
        return None

    def close(self) -> None:
        self._write("failed" if self._state == "running" else self._state)

    def result(self) -> tuple[str, Location] | None:
        return None if self._written is None else ("report", self._written)

    def _write(self, state: str) -> None:
        if self._run is None or self._run.is_empty:
            return
        tracked, seen = self.tracked, provenance()
        self._run.about = {
            "title": tracked.title,
            "state": state,
            "total steps": tracked.total_steps,
            "written": seen["date"],
            "machine": seen["machine"],
            "versions": ", ".join(f"{name} {number}" for name, number in seen["versions"].items()),
        }
        place = tracked.save_dir / REPORT_FILE
        store_of(place).write_text(place, page([self._run.to_json()]))
        self._written = place


TRACKER = Report
