"""The picture of a run: loss, learning rate and speed over the steps, as `loss.png` beside metrics.jsonl."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from llama_dyt.core import files
from llama_dyt.core.store import Location, store_of
from llama_dyt.training.trackers.jsonl import METRICS_FILE, read_metrics
from llama_dyt.training.trackers.tracker import Tracker

PICTURE_FILE = "loss.png"


class Picture(Tracker):
    """Drawn once, from metrics.jsonl, when the run has ended well."""

    name, always_on, order = "picture", True, 15
    _drawn: Location | None = None

    def finish(self) -> tuple[str, Path] | None:
        folder = self.tracked.save_dir
        records = read_metrics(folder / METRICS_FILE)
        if not any(record.get("loss") is not None for record in records):
            return None
        path = folder / PICTURE_FILE
        try:
            spool = store_of(folder).spool(folder)
            draw(records, spool.folder / PICTURE_FILE, self.tracked.title, self.tracked.vocab_size)
            spool.close()
            self._drawn = path
            return "loss", spool.folder / PICTURE_FILE
        except OSError as error:
            self.tracked.say(f"warning: no picture, {path} cannot be written ({error.strerror or error})")
            return None

    def result(self) -> tuple[str, Location] | None:
        return None if self._drawn is None else ("picture", self._drawn)


def draw(metrics: list[dict[str, Any]], path: Path, title: str, vocab_size: int) -> None:
    """Draw three panels from the records of metrics.jsonl and write a PNG, made aside and renamed.

    Args:
        metrics: one record a logged step with step, loss, lr, tokens_per_second; and those of validations.
        vocab_size: draws the loss of a uniform guess, ln(vocab_size), as the line to beat.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    validations = [record for record in metrics if "validation_loss" in record]
    metrics = [record for record in metrics if record.get("loss") is not None]
    steps = [record["step"] for record in metrics]
    figure, (loss_axis, lr_axis, speed_axis) = pyplot.subplots(
        3, 1, figsize=(8, 8), sharex=True, height_ratios=(3, 1, 1), layout="constrained"
    )
    loss_axis.set_title(title)
    losses = [record["loss"] for record in metrics]
    smooth = _running_mean(losses, window=max(1, len(losses) // 40))
    loss_axis.plot(steps, losses, color="tab:blue", linewidth=0.8, alpha=0.3 if len(losses) > 40 else 1.0)
    loss_axis.plot(steps, smooth, color="tab:blue", linewidth=1.6, label="training")
    uniform = math.log(vocab_size)
    if max(losses) > 0.6 * uniform:
        loss_axis.axhline(uniform, color="grey", linestyle=":", linewidth=1)
        loss_axis.annotate(f"uniform guess, ln {vocab_size}", (steps[-1], uniform), ha="right", va="bottom", fontsize=8)
    loss_axis.annotate(
        f"{smooth[-1]:.3f}", (steps[-1], smooth[-1]), textcoords="offset points", xytext=(4, 0), va="center", fontsize=9
    )
    names = dict.fromkeys(name for record in validations for name in record["validation_loss"])
    for number, name in enumerate(names, start=1):
        points = [(r["step"], r["validation_loss"][name]) for r in validations if name in r["validation_loss"]]
        colour = f"C{number}"  # C0 is that of training
        loss_axis.plot(
            *zip(*points), color=colour, marker="o", markersize=3, linewidth=1.2, label=f"validation: {name}"
        )
    if validations:
        loss_axis.legend(loc="upper right", fontsize=8)
    loss_axis.set_ylabel("loss (nats/token)")
    lr_axis.plot(steps, [record["lr"] for record in metrics], color="tab:orange", linewidth=1.2)
    lr_axis.set_ylabel("learning rate")
    lr_axis.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    speed_axis.plot(steps, [record["tokens_per_second"] for record in metrics], color="tab:green", linewidth=1.2)
    speed_axis.set_ylabel("tokens/s")
    speed_axis.set_ylim(bottom=0)
    speed_axis.set_xlabel("step")
    speed_axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in (loss_axis, lr_axis, speed_axis):
        axis.grid(alpha=0.25)
    with files.written_whole(path) as aside:
        figure.savefig(aside, format="png", dpi=120)
    pyplot.close(figure)


def _running_mean(values: list[float], window: int) -> list[float]:
    """Mean of each value and up to `window - 1` before it: the trend under the noise of small batches."""
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]


TRACKER = Picture
