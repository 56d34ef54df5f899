"""What a run leaves to look at: the progress bar, metrics.jsonl, TensorBoard, config.yaml and the picture.

Only the first rank writes; on the others `Tracker` does nothing, so the loop needs no rank checks.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from llama_dyt.errors import TrainingError

if TYPE_CHECKING:
    from .validation import Figures

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "config.yaml"
PICTURE_FILE = "loss.png"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Records of a metrics.jsonl; an unfinished last line (the run was killed while writing it) is left out."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                records.append(json.loads(line))
            except ValueError:
                break
    return records


class Tracker:
    """Writes the metrics of one run.

    Records beyond the step a run resumes from belong to work that was lost: they are removed, so that metrics.jsonl
    tells one story without repetition.
    """

    def __init__(
        self,
        enabled: bool,
        save_dir: Path | None = None,
        tensorboard_dir: Path | None = None,
        config_yaml: str = "",
        start_step: int = 0,
        total_steps: int = 0,
        description: str = "",
    ) -> None:
        self._enabled = enabled
        self.save_dir = save_dir
        self._tensorboard_dir = tensorboard_dir
        self._config_yaml = config_yaml
        self._start_step = start_step
        self._writer = None
        self._metrics = None
        self._bar = None
        self._shown: dict[str, str] = {}
        if enabled and total_steps:
            self._bar = tqdm(
                total=total_steps,
                initial=start_step,
                desc=description,
                unit="step",
                dynamic_ncols=True,
                mininterval=0.5 if sys.stderr.isatty() else 10.0,  # a log file needs no animation
            )

    def open(self) -> None:
        """Make the files. Called when the first batch is there: data that cannot be read leaves nothing behind."""
        if not self._enabled:
            return
        if self.save_dir is not None:
            with _writing("metrics", self.save_dir):
                self.save_dir.mkdir(parents=True, exist_ok=True)
                (self.save_dir / CONFIG_FILE).write_text(self._config_yaml, encoding="utf-8")
                self._metrics = self._open_metrics(self.save_dir / METRICS_FILE, self._start_step)
        if self._tensorboard_dir is not None:
            from torch.utils.tensorboard import SummaryWriter

            purge = self._start_step + 1 if self._start_step else None
            with _writing("TensorBoard's files", self._tensorboard_dir):
                self._writer = SummaryWriter(str(self._tensorboard_dir), purge_step=purge)

    @staticmethod
    def _open_metrics(path: Path, start_step: int):
        kept = [record for record in read_metrics(path) if record["step"] <= start_step]
        aside = path.with_name(f".{path.name}.tmp")
        aside.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        aside.replace(path)
        return path.open("a", encoding="utf-8")

    def advance(self) -> None:
        """One optimizer step is done."""
        if self._bar is not None:
            self._bar.update()

    def log(self, record: dict[str, Any]) -> None:
        """Write one record; nested dicts (values a site) become one TensorBoard scalar each.

        Floats keep full precision, so that two runs can be compared to the last bit.

        Raises:
            TrainingError: a file cannot be written.
        """
        if not self._enabled:
            return
        self._write(record)
        self._show(loss=f"loss {record['loss']:.4f}", speed=f"{record['tokens_per_second']:,.0f} tokens/s")

    def log_validation(self, step: int, figures: Mapping[str, Figures], seconds: float) -> None:
        """Write a record of a validation, and print it; in the record every figure is a dict by the set's name.

        Raises:
            TrainingError: a file cannot be written.
        """
        if not self._enabled:
            return
        record = {
            "step": step,
            "validation_loss": {name: found.loss for name, found in figures.items()},
            "validation_perplexity": {name: found.perplexity for name, found in figures.items()},
            "validation_tokens": {name: found.num_tokens for name, found in figures.items()},
            "validation_seconds": seconds,
        }
        self._write(record)
        self._show(validation=f"validation {next(iter(figures.values())).loss:.4f}")
        for name, found in figures.items():
            self.say(
                f"step {step}: validation loss {found.loss:.4f}, perplexity {found.perplexity:,.2f} on {name} "
                f"({found.num_tokens:,} tokens)"
            )

    def _show(self, **figures: str) -> None:
        """Put figures beside the progress bar, in the place of those of the same name."""
        self._shown |= figures
        if self._bar is not None:
            self._bar.set_postfix_str(", ".join(self._shown.values()), refresh=False)

    def _write(self, record: dict[str, Any]) -> None:
        if self._metrics is not None:
            with _writing("metrics", self.save_dir):
                self._metrics.write(json.dumps(record) + "\n")
                self._metrics.flush()
        if self._writer is not None:
            with _writing("TensorBoard's files", self._tensorboard_dir):
                self._add_scalars(record)

    def _add_scalars(self, record: dict[str, Any]) -> None:
        for key, value in record.items():
            if isinstance(value, dict):
                for site, number in value.items():
                    self._writer.add_scalar(f"{key}/{site}", number, record["step"])
            elif key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(f"train/{key}", value, record["step"])

    def say(self, message: str) -> None:
        """Print a line without tearing the progress bar."""
        if self._enabled:
            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        # A file that cannot be written was told of when it happened, or lacks its last record at most.
        with suppress(OSError):
            if self._writer is not None:
                self._writer.close()
        with suppress(OSError):
            if self._metrics is not None:
                self._metrics.close()

    def draw(self, title: str, vocab_size: int) -> Path | None:
        """Draw loss.png from metrics.jsonl; None where there is nothing to draw."""
        if not self._enabled or self.save_dir is None:
            return None
        records = read_metrics(self.save_dir / METRICS_FILE)
        if not any("loss" in record for record in records):
            return None
        from .picture import draw

        path = self.save_dir / PICTURE_FILE
        try:
            draw(records, path, title, vocab_size)
        except OSError as error:
            self.say(f"warning: no picture, {path} cannot be written ({error.strerror})")
            return None
        return path


@contextmanager
def _writing(what: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TrainingError(
            f"could not write {what} in {folder} ({error.strerror}); free space or take another folder, and resume "
            "with --load auto"
        ) from error
