"""Trackers as a user writes them, in one file: a table of losses with a setting of its own, and one that fails."""

from __future__ import annotations

import csv
from dataclasses import dataclass

from llama_dyt.config.options import option
from llama_dyt.core.store import store_of
from llama_dyt.training.trackers.tracker import TRACKERS, Tracker


@dataclass(frozen=True)
class TableSettings:
    """Flags of the tracker's own; a run has them as `run.table`."""

    table_digits: int = option(3, "table: decimals of a loss.", at_least=0)


class Table(Tracker):
    """Writes step and loss as CSV; a run that resumes goes on after the step it resumes from.

    Into a `Spool`, so that the --save_dir may be any store's.
    """

    name, settings = "table", TableSettings

    def open(self):
        folder = self.tracked.save_dir
        self.spool = store_of(folder).spool(folder, "losses.csv")
        path = self.spool.folder / "losses.csv"
        kept = list(csv.reader(path.open(newline=""))) if path.exists() else []
        kept = [row for row in kept[1:] if int(row[0]) <= self.tracked.start_step]
        self.file = path.open("w", newline="")
        self.rows = csv.writer(self.file)
        self.rows.writerows([["step", "loss"], *kept])

    def log(self, record):
        digits = self.tracked.run.table.table_digits
        self.rows.writerow([record["step"], f"{record['loss']:.{digits}f}"])
        self.file.flush()
        self.spool.sync(now=False)

    def log_validation(self, record):
        pass

    def close(self):
        self.file.close()
        self.spool.close()

    def result(self):
        return "table", self.tracked.save_dir / "losses.csv"


class Broken(Tracker):
    """Fails at every step, and when it is closed."""

    name = "broken"

    def log(self, record):
        raise ConnectionError("the server\nis away")

    def close(self):
        raise RuntimeError("still away")


TRACKERS.register(Table)
TRACKERS.register(Broken)
