"""The progress bar on stderr, with the newest figures beside it."""

from __future__ import annotations

import sys

from llama_dyt.training.trackers.tracker import Record, Tracked, Tracker


class ProgressBar(Tracker):
    """tqdm's; a log file gets a line every ten seconds."""

    name, always_on, order = "progress", True, 0

    def __init__(self, tracked: Tracked) -> None:
        from tqdm import tqdm

        super().__init__(tracked)
        self._shown: dict[str, str] = {}
        self._bar = tqdm(
            total=tracked.total_steps,
            initial=tracked.start_step,
            desc=tracked.describe,
            unit="step",
            dynamic_ncols=True,
            mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file needs no animation
        )

    def advance(self) -> None:
        self._bar.update()

    def went_back(self, step: int) -> None:
        self._bar.n = step
        self._bar.refresh()

    def log(self, record: Record) -> None:
        loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
        self._show(loss=f"loss {loss}", speed=f"{record['tokens_per_second']:,.0f} tokens/s")

    def log_validation(self, record: Record) -> None:
        self._show(validation=f"validation {next(iter(record['validation_loss'].values())):.4f}")

    def _show(self, **figures: str) -> None:
        """Put figures beside the bar, in the place of those of the same name."""
        self._shown |= figures
        self._bar.set_postfix_str(", ".join(self._shown.values()), refresh=False)

    def close(self) -> None:
        self._bar.close()


TRACKER = ProgressBar
