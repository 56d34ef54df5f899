"""metrics.jsonl: one JSON object a logged step; it tells one story without repetition however often a run resumes."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from llama_dyt.core import files
from llama_dyt.core.errors import TrainingError
from llama_dyt.core.secrets import redact
from llama_dyt.core.store import Location, Spool, store_of
from llama_dyt.training.trackers.tracker import Record, Sample, Tracked, Tracker, share_right

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"


def read_metrics(path: Location) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; an unfinished last line (the run was killed while writing it) is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class JsonLines(Tracker):
    """metrics.jsonl in the --save_dir, and the run's config.yaml beside it.

    Floats keep full precision, so that two runs can be compared to the last bit. Records beyond the step a run resumes
    from belong to work that was lost: they are removed.
    """

    name, always_on, order = "jsonl", True, 10
    needed = True  # what a run leaves has its metrics, or the run says why and ends

    def __init__(self, tracked: Tracked) -> None:
        super().__init__(tracked)
        self._spool: Spool | None = None
        self._file: TextIO | None = None
        self._validated_step: int | None = None

    def open(self) -> None:
        folder = self.tracked.save_dir
        with self._writing():
            self._spool = store_of(folder).spool(folder, METRICS_FILE)
            files.write_text(self._spool.folder / CONFIG_FILE, redact(self.tracked.run.to_yaml()))
            self._file = self._open_metrics(self._spool.folder / METRICS_FILE, self.tracked.start_step)
            self._spool.sync()

    def went_back(self, step: int) -> None:
        with self._writing():
            self._file.close()
            self._file = self._open_metrics(self._spool.folder / METRICS_FILE, step)

    def _open_metrics(self, path: Path, done: int) -> TextIO:
        found = read_metrics(path)
        kept = [record for record in found if record["step"] <= done]
        if found and not kept:
            # A new run where there are records, and no checkpoint: it may be all that is left of a long one.
            folder, numbers = self.tracked.save_dir, itertools.count(1)
            names = (f"{path.stem}.{number}{path.suffix}" for number in numbers)
            old = next(name for name in names if not (folder / name).exists())
            path.replace(path.with_name(old))
            self.tracked.say(f"{folder / METRICS_FILE} of a run without a checkpoint is kept as {old}")
        files.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))
        validated = (record["step"] for record in reversed(kept) if "validation_loss" in record)
        self._validated_step = next(validated, None)
        return path.open("a", encoding="utf-8")

    def log(self, record: Record) -> None:
        with self._writing():
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
            self._spool.sync(now=False)

    def log_validation(self, record: Record) -> None:
        # Of the step that is resumed from it may be made up for a second time, by the same weights.
        if record["step"] != self._validated_step:
            self.log(record)
        self._validated_step = record["step"]

    def log_samples(self, step: int, samples: Sequence[Sample], seconds: float) -> None:
        held = [asdict(sample) for sample in samples]
        right = share_right(samples)
        share = {"samples_right": right} if right is not None else {}
        self.log({"step": step, **share, "samples_seconds": seconds, "samples": held})

    def close(self) -> None:
        # A file that cannot be written was told of when it happened, or lacks its last record at most.
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
        if self._spool is not None:
            with suppress(OSError):
                self._spool.close()

    def result(self) -> tuple[str, Location]:
        return "metrics", self.tracked.save_dir / METRICS_FILE

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"could not write metrics in {self.tracked.save_dir} ({error.strerror or error}); free space or take "
                "another folder, and resume with --load auto"
            ) from error


TRACKER = JsonLines
