"""TensorBoard: every number of a record as a scalar, where --tensorboard_dir says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_dyt.core.store import Spool, at, store_of
from llama_dyt.training.trackers.tracker import Record, Sample, Tracked, Tracker, scalars, share_right


class TensorBoard(Tracker):
    """A dict in a record (a value a norm, say) becomes one scalar each."""

    name, always_on, order = "tensorboard", True, 20

    def __init__(self, tracked: Tracked) -> None:
        super().__init__(tracked)
        self._folder = tracked.run.run.tensorboard_dir
        self._spool: Spool | None = None
        self._writer: Any = None

    def open(self) -> None:
        if self._folder is None:
            return
        folder = at(self._folder)
        self._spool = store_of(folder).spool(folder)
        self._begin(self.tracked.start_step)

    def _begin(self, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._spool.folder), purge_step=done + 1 if done else None)

    def went_back(self, step: int) -> None:
        if self._writer is not None:
            self._writer.close()
            self._begin(step)

    def log(self, record: Record) -> None:
        if self._writer is None:
            return
        for name, number in scalars(record):
            self._writer.add_scalar(name, number, record["step"])
        self._spool.sync(now=False)

    def log_samples(self, step: int, samples: Sequence[Sample], seconds: float) -> None:
        if self._writer is None:
            return
        rows = [[sample.prompt, sample.text, sample.expected or ""] for sample in samples]
        lines = ["| prompt | continuation | expected |", "| --- | --- | --- |"]
        lines += ["| " + " | ".join(_cell(text) for text in row) + " |" for row in rows]
        self._writer.add_text("samples", "\n".join(lines), step)
        if (right := share_right(samples)) is not None:
            self._writer.add_scalar("samples/right", right, step)
        self._spool.sync(now=False)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._spool.close()

    def result(self) -> tuple[str, str] | None:
        return ("tensorboard", f"tensorboard --logdir {at(self._folder)}") if self._folder is not None else None


def _cell(text: str) -> str:
    """A text as a cell of Markdown."""
    return text.replace("|", "\\|").replace("\n", "<br>")


TRACKER = TensorBoard
