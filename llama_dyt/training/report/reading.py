"""Reports of runs that have ended, or are on another machine: from what stands in a --save_dir."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from llama_dyt.config.yaml_file import load_mapping
from llama_dyt.core.errors import DataError
from llama_dyt.core.store import Location
from llama_dyt.training.report.page import embedded
from llama_dyt.training.report.run_data import RunData
from llama_dyt.training.trackers.events import read_events
from llama_dyt.training.trackers.jsonl import CONFIG_FILE, METRICS_FILE, read_metrics

REPORT_FILE = "report.html"


def read_run(folder: Location, name: str | None = None) -> RunData:
    """A run by its --save_dir.

    Raises:
        DataError: there are no metrics in it.
    """
    records = read_metrics(folder / METRICS_FILE)
    if not records:
        raise DataError(f"{folder}: no {METRICS_FILE} with records in it; give the --save_dir of a run", about=folder)
    config: dict[str, Any] = {}
    if (folder / CONFIG_FILE).is_file():
        config, _ = load_mapping((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    run = RunData(name or folder.name or str(folder), _about(folder), config)
    for record in records:
        run.add(record)
    run.add_events(read_events(folder))
    return run


def _about(folder: Location) -> dict[str, Any]:
    """What an earlier report of the run, and status.json, say of it."""
    about: dict[str, Any] = {}
    with suppress(OSError):
        for run in embedded((folder / REPORT_FILE).read_text(encoding="utf-8"))[:1]:
            about |= run.get("about", {})
    with suppress(OSError, ValueError, KeyError, TypeError):
        about["state"] = json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"]
    return about


def distinct_names(folders: Sequence[Location]) -> list[str]:
    """Short names of folders that tell them apart: as many last parts of their paths as that takes."""
    for count in range(1, 10):
        names = ["/".join(str(folder).rstrip("/").split("/")[-count:]) for folder in folders]
        if len(set(names)) == len(names):
            break
    return names
