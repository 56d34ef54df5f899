"""What a run of ours leaves (a --save_dir, a step folder, its `model/`), and a folder as it stands in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llama_dyt.convert.formats.hf import HuggingFace
from llama_dyt.core import marker
from llama_dyt.core.errors import CheckpointError

if TYPE_CHECKING:
    from llama_dyt.convert.source import Opened

_MODEL = "model"
_PART = f"{_MODEL}/"


class Ours(HuggingFace):
    name, in_words, order = "ours", "a checkpoint of ours", 0
    files = "a --save_dir, a step folder or its model/"
    dtype = "fp32"
    as_on_the_hub = False

    def matches(self, path: Path) -> bool:
        return _step_folder(path) is not None

    @contextmanager
    def open(self, path: Path, config: str | None) -> Iterator[Opened]:
        step = _step_folder(path)
        if step is None:  # a folder that was converted to ours, or one taken out of its checkpoint
            with super().open(path, config) as opened:
                yield opened
            return
        if (fault := marker.why_incomplete(step)) is not None:
            raise CheckpointError(f"{step}: incomplete checkpoint, {fault}; give an earlier step")
        written = marker.read_marker(step)
        damaged = marker.damaged_files(step, [name for name in written if name.startswith(_PART)])
        if damaged:
            raise CheckpointError(
                f"checkpoint {step} is damaged: {'; '.join(damaged)}; copy it again, or give an earlier step"
            )
        with super().open(step / _MODEL, config) as opened:
            yield replace(opened, run=step.parent, step=marker.step_of(step.resolve()))


def _step_folder(path: Path) -> Path | None:
    """The checkpoint that a path means; of a --save_dir its newest whole one.

    Raises:
        CheckpointError: a --save_dir that has checkpoints, and none of them is whole.
    """
    if path.name == _MODEL and (path.parent / marker.MARKER).is_file():
        return path.parent
    if (path / _MODEL / "config.json").is_file():
        return path
    steps = marker.find_steps(path) if path.is_dir() else {}
    if not steps:
        return None
    whole = [folder for folder in steps.values() if marker.is_whole(folder)]
    if not whole:
        newest = list(steps.values())[-1]
        raise CheckpointError(
            f"{path}: none of its checkpoints is complete; {newest.name}: {marker.why_incomplete(newest)}"
        )
    return whole[-1]


SOURCE = TARGET = Ours()
