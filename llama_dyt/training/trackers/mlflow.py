"""MLflow: on its server, or in a file in --tracker_dir."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama_dyt.config.run import RunConfig
from llama_dyt.core.problem import Problem
from llama_dyt.core.secrets import redact
from llama_dyt.training.trackers.described import described, not_installed, run_name
from llama_dyt.training.trackers.tracker import Record, Sample, Tracked, Tracker, scalars, share_right

_METRICS_A_CALL = 1000  # of the server's own bounds
_PARAMETERS_A_CALL = 100
_LONGEST_PARAMETER = 500
_CHARACTERS = "_-. /:"


class Mlflow(Tracker):
    """A resumed run goes on in the same run of MLflow. Settings are its parameters, samples and pictures its files."""

    name, in_background, order = "mlflow", True, 31

    def __init__(self, tracked: Tracked) -> None:
        super().__init__(tracked)
        self._id = tracked.states.get(self.name, {}).get("run_id")
        self._client: Any = None
        self._ended_well = False
        self._address = address_of(tracked.run)

    @classmethod
    def why_not(cls, run: RunConfig) -> Problem | None:
        missing = not_installed(run, "mlflow", "mlflow-skinny")
        if missing is None and address_of(run).startswith("sqlite:"):
            return not_installed(run, "sqlalchemy", "sqlalchemy alembic")
        return missing

    def open(self) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        for library in ("mlflow", "alembic"):  # which tell of every table they make
            logging.getLogger(library).setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=self._address, registry_uri=self._address)
        if self._id is not None:
            self._client.update_run(self._id, status="RUNNING")
            return
        experiment = self._experiment()
        self._id = self._client.create_run(experiment, run_name=run_name(self.tracked)).info.run_id
        flags = {name: str(value)[:_LONGEST_PARAMETER] for name, value in described(self.tracked).items()}
        params = [Param(name, value) for name, value in flags.items() if value]
        for start in range(0, len(params), _PARAMETERS_A_CALL):
            self._client.log_batch(self._id, params=params[start : start + _PARAMETERS_A_CALL])

    def _experiment(self) -> str:
        name = self.tracked.run.tracking.tracker_project_name
        found = self._client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        folder = Path(self.tracked.run.tracking.tracker_dir).absolute() / "mlflow_files"
        place = folder.as_uri() if self._address.startswith("sqlite:") else None
        return self._client.create_experiment(name, artifact_location=place)

    def log(self, record: Record) -> None:
        self._tell(record["step"], dict(scalars(record)))

    def log_samples(self, step: int, samples: Sequence[Sample], seconds: float) -> None:
        rows = [{"prompt": one.prompt, "continuation": one.text, "expected": one.expected} for one in samples]
        self._client.log_dict(self._id, {"step": step, "samples": rows}, f"samples/step_{step:08d}.json")
        if (right := share_right(samples)) is not None:
            self._tell(step, {"samples/right": right})

    def log_event(self, step: int, kind: str, text: str) -> None:
        self._client.set_tag(self._id, f"event.{kind}", f"step {step}: {text}"[:_LONGEST_PARAMETER])

    def log_picture(self, name: str, path: Path) -> None:
        self._client.log_artifact(self._id, str(path), "pictures")

    def _tell(self, step: int, numbers: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_as_name(name), float(number), now, step) for name, number in numbers.items()]
        for start in range(0, len(metrics), _METRICS_A_CALL):
            self._client.log_batch(self._id, metrics=metrics[start : start + _METRICS_A_CALL])

    def state(self) -> dict[str, Any]:
        return {"run_id": self._id} if self._id is not None else {}

    def finish(self) -> None:
        self._ended_well = True

    def close(self) -> None:
        if self._client is not None and self._id is not None:
            self._client.set_terminated(self._id, "FINISHED" if self._ended_well else "FAILED")

    def result(self) -> tuple[str, str] | None:
        return ("mlflow", f"run {self._id} in {redact(self._address)}") if self._id is not None else None


def address_of(run: RunConfig) -> str:
    """Of the server, or of the file that stands for one."""
    tracking = run.tracking
    given = tracking.tracker_server or os.environ.get("MLFLOW_TRACKING_URI")
    if given and not tracking.tracker_offline:
        return given
    return f"sqlite:///{Path(tracking.tracker_dir).absolute() / 'mlflow.db'}"


def _as_name(name: str) -> str:
    """A name as MLflow takes it; it has its own mind about characters."""
    return "".join(one if one.isalnum() or one in _CHARACTERS else "_" for one in name)


TRACKER = Mlflow
