"""Finding and reading checkpoints: which one `--load` means, whether it is whole, whether it fits the run.

Finding and checking need no process group, so a wrong path or a truncated file is reported before anything is started.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llama_dyt.boosters.interface import MOMENTS, TrainingState
from llama_dyt.errors import CheckpointError
from llama_dyt.models.tensor_files import StoredTensor, TensorFiles

from .checkpoint import MARKER

_STEP_FOLDER = re.compile(r"step_(\d+)$")


def complete_steps(save_dir: Path) -> list[Path]:
    """Complete checkpoints below `save_dir`, oldest first by step; each incomplete one is warned about and left out."""
    found = []
    folders = [p for p in save_dir.iterdir() if p.is_dir() and _STEP_FOLDER.match(p.name)] if save_dir.is_dir() else []
    for folder in sorted(folders, key=lambda p: int(_STEP_FOLDER.match(p.name).group(1))):
        fault = why_incomplete(folder)
        if fault is None:
            found.append(folder)
        else:
            warnings.warn(f"skipping incomplete checkpoint {folder}: {fault}", stacklevel=2)
    return found


def why_incomplete(folder: Path) -> str | None:
    """What is missing from a checkpoint folder; None if every file its marker lists is there in full size."""
    marker = folder / MARKER
    if not marker.is_file():
        return f"it has no {MARKER} marker, so the save was interrupted"
    try:
        sizes: dict[str, int] = json.loads(marker.read_text(encoding="utf-8"))
    except ValueError:
        return f"its {MARKER} marker is damaged"
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes, {size} were written"
    return None


def find_checkpoint(load: str, save_dir: Path) -> Path | None:
    """The checkpoint that `--load` means.

    Args:
        load: a step folder, a save_dir (its newest complete one), or "auto" (the newest complete one of this run's own
            save_dir, or None to start anew where there is none).

    Raises:
        CheckpointError: the path does not exist, or holds no complete checkpoint.
    """
    if load == "auto":
        steps = complete_steps(save_dir)
        return steps[-1] if steps else None
    path = Path(load)
    if not path.exists():
        raise CheckpointError(f"--load {load}: no such folder; give a checkpoint, the --save_dir of a run, or auto")
    if _STEP_FOLDER.match(path.resolve().name) or (path / "trainer_state.json").is_file():
        fault = why_incomplete(path)
        if fault is not None:
            raise CheckpointError(
                f"--load {load}: incomplete checkpoint, {fault}; load an earlier step, or --load {path.parent} for the "
                "newest complete one"
            )
        return path
    steps = complete_steps(path)
    if not steps:
        raise CheckpointError(
            f"--load {load}: no complete checkpoint (step_… folder with a {MARKER} marker) in it; give a folder "
            "that holds one"
        )
    return steps[-1]


class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: the step folder.
        trainer_state: step, tokens_seen, data position and RNG states as saved.
        schedule: what `lr_scheduler` holds.
        optimizer_scalars: Adam's step count and the loss scaler's state.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer_state = _read_json(path / "trainer_state.json")
        self.schedule = _read_json(path / "lr_scheduler")
        self.optimizer_scalars = _read_json(path / "optimizer" / "optimizer.json")

    @property
    def step(self) -> int:
        return int(self.trainer_state["step"])

    def check_fits(self, shapes: dict[str, torch.Size]) -> None:
        """Compare names and shapes with the model of the run.

        Raises:
            CheckpointError: naming the first parameter that differs, with both shapes.
        """
        with TensorFiles(self.path / "model") as files:
            saved = {name: shape for name, (shape, _) in files.shapes().items()}
        for name, shape in shapes.items():
            if name not in saved:
                raise CheckpointError(
                    f"checkpoint {self.path} has no parameter {name}, which this run's model has; give the --config "
                    f"and --norm it was trained with ({self.path / 'model' / 'config.json'})"
                )
            if saved[name] != tuple(shape):
                raise CheckpointError(
                    f"checkpoint {self.path} holds {name} of shape {list(saved[name])}, this run's model has "
                    f"{list(shape)}; give the -c/--config and --tokenizer it was trained with"
                )
        extra = sorted(set(saved) - set(shapes))
        if extra:
            raise CheckpointError(
                f"checkpoint {self.path} has parameter {extra[0]}, which this run's model lacks; give the --config "
                f"and --norm it was trained with ({self.path / 'model' / 'config.json'})"
            )

    @contextmanager
    def reader(self) -> Iterator[Callable[[str], dict[str, StoredTensor]]]:
        """A context that gives `read(name)`: "param", "exp_avg" and "exp_avg_sq" of a parameter, each to be indexed by
        slices: a rank reads its own part alone, straight from the mapped files, in fp32."""
        with TensorFiles(self.path / "model") as model, TensorFiles(self.path / "optimizer", "optimizer") as optimizer:

            def read(name: str) -> dict[str, StoredTensor]:
                moments = {moment: optimizer[f"{moment}.{name}"] for moment in MOMENTS}
                return {"param": model[name], **moments}

            yield read


def restore_counters(checkpoint: Checkpoint, state: TrainingState, scaler: Any) -> None:
    """Set Adam's step count and the loss scaler, once weights and moments were filled from `checkpoint.reader()`."""
    state.set_optimizer_steps(int(checkpoint.optimizer_scalars["steps"]))
    scaler.load_state_dict(checkpoint.optimizer_scalars["scaler"])


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; load an earlier checkpoint") from None
