"""Finding and reading checkpoints: which one `--load` means, whether it is whole, whether it fits the run.

Finding and checking need no process group, so a wrong path or a truncated file is reported before anything is started.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from llama_dyt.boosters.training_state import MOMENTS, TrainingState
from llama_dyt.core.errors import CheckpointError
from llama_dyt.core.store import Location, at, store_of
from llama_dyt.models.adapters.peft_files import CONFIG_FILE
from llama_dyt.models.tensor_files import StoredTensor, TensorFiles
from llama_dyt.training.checkpoint.base import BASE_FILE, Base
from llama_dyt.training.checkpoint.contents import ADAPTER, FORWARD_CHECK, MODEL
from llama_dyt.training.checkpoint.marker import MARKER, step_of, why_incomplete
from llama_dyt.training.checkpoint.publishing import LATEST, find_steps, home_of, latest_step


def complete_steps(save_dir: Location) -> list[Location]:
    """Complete checkpoints below `save_dir`, oldest first by step; each incomplete one is warned about and left out."""
    whole, faults = _sort_out(save_dir)
    for folder, fault in faults.items():
        warnings.warn(f"skipping incomplete checkpoint {folder}: {fault}", stacklevel=2)
    return whole


def is_newest_of(folder: Location, save_dir: Location) -> bool:
    """Whether a checkpoint is the newest whole one of a --save_dir, so that a run from it leaves no course."""
    whole, _ = _sort_out(save_dir)
    return bool(whole) and home_of(whole[-1]).resolve() == home_of(folder).resolve()


def _sort_out(save_dir: Location) -> tuple[list[Location], dict[Location, str]]:
    """(whole checkpoints, fault of each other), both oldest first."""
    faults = {folder: why_incomplete(folder) for folder in find_steps(save_dir).values()}
    whole = [folder for folder, fault in faults.items() if fault is None]
    return whole, {folder: fault for folder, fault in faults.items() if fault is not None}


def find_checkpoint(load: str, save_dir: Location, flag: str = "--load") -> Location | None:
    """The checkpoint that `--load` means.

    Args:
        load: a step folder, a save_dir (its newest complete one), or "auto" (the newest complete one of this run's own
            save_dir, or None to start anew where there is none).
        flag: what the path was given by, for messages.

    Raises:
        CheckpointError: the path does not exist, or holds no complete checkpoint; or there are some and none is whole.
    """
    path = save_dir if load == "auto" else at(load, flag.removeprefix("--"))
    if load != "auto":
        if not path.exists():
            raise CheckpointError(f"{flag} {load}: no such folder; give a checkpoint, the --save_dir of a run, or auto")
        if step_of(path.resolve()) is not None or (path / "trainer_state.json").is_file():
            fault = why_incomplete(path)
            if fault is not None:
                raise CheckpointError(
                    f"{flag} {load}: incomplete checkpoint, {fault}; load an earlier step, or {flag} {path.parent} for "
                    "the newest complete one"
                )
            return path
    steps = complete_steps(path)
    if steps:
        _warn_if_behind(path, step_of(steps[-1]))
        return steps[-1]
    _, faults = _sort_out(path)
    if faults:
        folder, fault = list(faults.items())[-1]
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CheckpointError(
            f"{flag} {load}: no complete checkpoint in {path}: {folder.name}: {fault}{more}. Copy it there again; or "
            f"give another --save_dir to start anew, which in {path} would be over the files of that run"
        )
    if load == "auto":
        return None
    raise CheckpointError(
        f"{flag} {load}: no complete checkpoint (step_… folder with a {MARKER} marker) in it; give a folder "
        "that holds one"
    )


def _warn_if_behind(save_dir: Location, step: int) -> None:
    """A checkpoint that was whole once, and is not there: removed, lost, or not yet seen by this machine. Of one that
    is there and no longer whole it is told already."""
    named = latest_step(save_dir)
    if named is not None and named > step and named not in find_steps(save_dir):
        warnings.warn(
            f"{save_dir / LATEST} names step {named}, which is not there: step {step} is the newest that is",
            stacklevel=3,
        )


class Checkpoint:
    """A complete checkpoint.

    Attributes:
        path: the step folder.
        trainer_state: step, tokens_seen, data position and RNG states as saved.
        schedule: what `lr_scheduler` holds.
        optimizer_scalars: Adam's step count and the loss scaler's state.
        contents: what of the weights it holds: all, or an adapter.
        forward_check: what its weights compute (`forward_check.py`); None in those of earlier versions.
    """

    def __init__(self, path: Location) -> None:
        self.path = path
        self.trainer_state = _read_json(path / "trainer_state.json")
        self.schedule = _read_json(path / "lr_scheduler")
        self.optimizer_scalars = _read_json(path / "optimizer" / "optimizer.json")
        check = path / FORWARD_CHECK
        self.forward_check: dict[str, Any] | None = _read_json(check) if check.is_file() else None
        self.contents = ADAPTER if (path / ADAPTER.folder / CONFIG_FILE).is_file() else MODEL

    @property
    def step(self) -> int:
        return int(self.trainer_state["step"])

    def generators(self, rank: int, world_size: int) -> dict[str, Any] | None:
        """The random generators that a rank goes on with; None where another number of ranks saved theirs."""
        saved = self.trainer_state["rng"]
        return saved[rank] if len(saved) == world_size else None

    @property
    def in_words(self) -> str:
        """Which it is."""
        return f"{self.path}, step {self.step}"

    @property
    def holds_adapter(self) -> bool:
        """Whether an adapter is all that there is of the weights."""
        return self.contents is ADAPTER

    @property
    def base(self) -> Base:
        """The weights that its adapter was trained beside."""
        return Base.of_json(_read_json(self.path / ADAPTER.folder / BASE_FILE))

    @property
    def positions(self) -> int:
        """The longest sequence that the saved model says it was made for."""
        if self.holds_adapter:
            return self.base.positions
        return int(self.model_field("max_position_embeddings"))

    def model_field(self, name: str) -> Any:
        """A field of the saved model's config, where the whole model was saved."""
        return _read_json(self.path / "model" / "config.json")[name]

    def check_fits(self, shapes: dict[str, torch.Size]) -> None:
        """Compare names and shapes with the model of the run.

        Raises:
            CheckpointError: naming the first parameter that differs, with both shapes.
        """
        contents = self.contents
        with TensorFiles(self._local(f"{contents.folder}/") / contents.folder, contents.stem) as files:
            saved = {name.removeprefix(contents.prefix): shape for name, (shape, _) in files.shapes().items()}
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
        folder, contents = self._local(), self.contents
        weights = TensorFiles(folder / contents.folder, contents.stem)
        with weights as model, TensorFiles(folder / "optimizer", "optimizer") as optimizer:

            def read(name: str) -> dict[str, StoredTensor]:
                moments = {moment: optimizer[f"{moment}.{name}"] for moment in MOMENTS}
                return {"param": model[contents.prefix + name], **moments}

            yield read

    def _local(self, only: str = "") -> Path:
        try:
            return store_of(self.path).local(self.path, only)
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be read: {error.strerror or error}") from error


def restore_counters(checkpoint: Checkpoint, state: TrainingState, scaler: Any) -> None:
    """Set Adam's step count and the loss scaler, once weights and moments were filled from `checkpoint.reader()`."""
    state.set_optimizer_steps(int(checkpoint.optimizer_scalars["steps"]))
    scaler.load_state_dict(checkpoint.optimizer_scalars["scaler"])


def _read_json(path: Location) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; load an earlier checkpoint") from None
