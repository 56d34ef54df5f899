"""Aim: in a repository in --tracker_dir, or on its server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem
from llama_dyt.training.trackers.described import described, not_installed, run_name
from llama_dyt.training.trackers.tracker import Record, Sample, Tracked, Tracker, scalars, share_right


class Aim(Tracker):
    """A resumed run goes on in the same run of Aim. No console, variables or packages of this machine are kept."""

    name, in_background, order = "aim", True, 32

    def __init__(self, tracked: Tracked) -> None:
        super().__init__(tracked)
        self._hash = tracked.states.get(self.name, {}).get("run_hash")
        self._run: Any = None

    @classmethod
    def why_not(cls, run: RunConfig) -> Problem | None:
        return not_installed(run, "aim", "aim")

    def open(self) -> None:
        from aim import Run

        tracking = self.tracked.run.tracking
        if tracking.tracker_server is None:
            Path(tracking.tracker_dir).mkdir(parents=True, exist_ok=True)
        self._run = Run(
            run_hash=self._hash,
            repo=tracking.tracker_server or tracking.tracker_dir,
            experiment=tracking.tracker_project_name,
            log_system_params=False,
            system_tracking_interval=None,
            capture_terminal_logs=False,
        )
        self._hash = self._run.hash
        self._run.name = run_name(self.tracked)
        self._run["flags"] = described(self.tracked)

    def log(self, record: Record) -> None:
        for name, number in scalars(record):
            self._run.track(number, name=name, step=record["step"])

    def log_samples(self, step: int, samples: Sequence[Sample], seconds: float) -> None:
        from aim import Text

        told = [[one.prompt, f"→ {one.text}", *([f"= {one.expected}"] if one.expected else [])] for one in samples]
        self._run.track([Text("\n".join(lines)) for lines in told], name="samples", step=step)
        if (right := share_right(samples)) is not None:
            self._run.track(right, name="samples/right", step=step)

    def log_event(self, step: int, kind: str, text: str) -> None:
        from aim import Text

        self._run.track(Text(f"{kind}: {text}"), name="events", step=step)

    def log_picture(self, name: str, path: Path) -> None:
        from aim import Image

        self._run.track(Image(str(path)), name=f"picture/{name}")

    def state(self) -> dict[str, Any]:
        return {"run_hash": self._hash} if self._hash is not None else {}

    def close(self) -> None:
        if self._run is not None:
            self._run.close()

    def result(self) -> tuple[str, str] | None:
        return ("aim", f"aim up --repo {self.tracked.run.tracking.tracker_dir}") if self._run is not None else None


TRACKER = Aim
