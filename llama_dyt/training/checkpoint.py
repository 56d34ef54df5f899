"""Writing checkpoints: made aside, complete or absent, the same files whichever plugin and layout wrote them.

    save_dir/step_00000100/
        model/            fp32 HuggingFace safetensors shards, config, tokenizer, modeling files
        optimizer/        fp32 moments under the same names, `exp_avg.<name>` and `exp_avg_sq.<name>`; optimizer.json
        lr_scheduler      the schedule, JSON
        trainer_state.json
        COMPLETE          written last: every other file with its size

Reading them is `restore.py`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.interface import MOMENTS, TrainingState
from llama_dyt.errors import CheckpointError

MARKER = "COMPLETE"
MAX_SHARD_BYTES = 2 * 1024**3


def step_folder(save_dir: Path, step: int) -> Path:
    return save_dir / f"step_{step:08d}"


class CheckpointWriter:
    """Writes checkpoints of one run. Every method that writes is collective: all ranks call it together."""

    def __init__(
        self,
        save_dir: Path,
        state: TrainingState,
        grid: Grid,
        save_model_files: Callable[[Path], None],
        max_shard_bytes: int = MAX_SHARD_BYTES,
    ) -> None:
        """`save_model_files(folder)` writes config, tokenizer and modeling files; called on rank 0 alone."""
        self.save_dir = save_dir
        self._state = state
        self._grid = grid
        self._save_model_files = save_model_files
        self._max_shard_bytes = max_shard_bytes
        self.last_path: Path | None = None

    def save(
        self, step: int, trainer_state: dict[str, Any], schedule: dict[str, Any], optimizer_scalars: dict[str, Any]
    ) -> Path:
        """Write the checkpoint of `step` and return its path.

        Raises:
            CheckpointError: any rank could not write (disk full, no permission); the unfinished folder is removed and
                earlier checkpoints are untouched. Raised on all ranks.
        """
        final = step_folder(self.save_dir, step)
        aside = self.save_dir / f".{final.name}.unfinished"
        errors: list[str] = []

        def attempt(action: Callable[[], Any]) -> None:
            """Run a local write; after a failure only take part in the collectives that are left."""
            if errors:
                return
            try:
                action()
            except Exception as error:  # any failure of one rank has to reach all of them, not hang them
                errors.append(f"rank {dist.get_rank()}: {_reason(error)}")

        def prepare() -> None:
            clear_leftovers(self.save_dir)
            (aside / "model").mkdir(parents=True)
            (aside / "optimizer").mkdir()
            self._save_model_files(aside / "model")
            _write_json(aside / "lr_scheduler", schedule)
            _write_json(aside / "optimizer" / "optimizer.json", optimizer_scalars)
            _write_json(aside / "trainer_state.json", trainer_state)

        def finish() -> None:
            files = sorted(p for p in aside.rglob("*") if p.is_file())
            _write_json(aside / MARKER, {str(p.relative_to(aside)): p.stat().st_size for p in files})
            _publish(aside, final)

        is_main = dist.get_rank() == 0
        if is_main:
            attempt(prepare)
        self._raise_together(errors, aside, final)
        self._write_tensors(aside, attempt)
        self._raise_together(errors, aside, final)
        if is_main:
            attempt(finish)
        self._raise_together(errors, aside, final)
        self.last_path = final
        return final

    def _write_tensors(self, aside: Path, attempt: Callable[[Callable[[], Any]], None]) -> None:
        """Each pipeline stage's writer writes its own shards; numbers run on over the stages."""
        mine = self._plan_shards()
        stages = [mine]
        if self._grid.pp_group is not None:
            stages = [[] for _ in range(self._grid.pp_size)]
            dist.all_gather_object(stages, mine, group=self._grid.pp_group)
        total = sum(len(stage) for stage in stages)
        first = sum(len(stage) for stage in stages[: self._grid.pp_rank])
        for number, names in enumerate(mine, start=first):
            weights: dict[str, torch.Tensor] = {}
            moments: dict[str, torch.Tensor] = {}
            for name, tensors in self._state.gather(names):
                if tensors is None:
                    continue
                weights[name] = tensors["param"]
                for moment in MOMENTS:
                    moments[f"{moment}.{name}"] = tensors[moment]
            if weights:
                attempt(partial(_save_shard, weights, aside / "model" / shard_name("model", number, total)))
                attempt(partial(_save_shard, moments, aside / "optimizer" / shard_name("optimizer", number, total)))
        if dist.get_rank() == 0 and total > 1:
            names = [names for stage in stages for names in stage]
            attempt(lambda: _write_index(aside / "model", "model", names, [""]))
            attempt(lambda: _write_index(aside / "optimizer", "optimizer", names, [f"{m}." for m in MOMENTS]))

    def _plan_shards(self) -> list[list[str]]:
        """This stage's names in order, cut where a shard's fp32 weights would pass the limit."""
        shards: list[list[str]] = []
        size = 0
        for name, num_bytes in self._state.sizes().items():
            if not shards or size + num_bytes > self._max_shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += num_bytes
        return shards

    def _raise_together(self, errors: list[str], aside: Path, final: Path) -> None:
        """Make any rank's failure every rank's: a barrier that carries the messages."""
        gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(gathered, errors)
        messages = [message for of_rank in gathered for message in of_rank]
        if not messages:
            return
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        last = (
            f"the last complete checkpoint is {self.last_path}" if self.last_path else "no checkpoint was written yet"
        )
        raise CheckpointError(
            f"could not write checkpoint {final}: {messages[0]}; free space or take another --save_dir, and resume "
            f"with --load auto ({last})"
        )


def shard_name(kind: str, number: int, total: int) -> str:
    """HuggingFace's name of shard `number` (from 0) of `total`."""
    return f"{kind}.safetensors" if total == 1 else f"{kind}-{number + 1:05d}-of-{total:05d}.safetensors"


def _save_shard(tensors: dict[str, torch.Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    # safetensors makes files for their owner alone; a checkpoint is shared as everything else beside it is.
    path.chmod(path.parent.stat().st_mode & 0o666)
    _sync(path)


def _write_index(folder: Path, kind: str, shards: list[list[str]], prefixes: list[str]) -> None:
    weight_map = {
        prefix + name: shard_name(kind, number, len(shards))
        for number, names in enumerate(shards)
        for name in names
        for prefix in prefixes
    }
    total = sum(path.stat().st_size for path in folder.glob(f"{kind}-*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / f"{kind}.safetensors.index.json", index)


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    _sync(path)


def _sync(path: Path) -> None:
    """Have the file on the disk, not in a cache, before the marker says it is complete."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _publish(aside: Path, final: Path) -> None:
    """Rename the finished folder into place; an older checkpoint of the same step goes only after that."""
    if final.exists():
        old = final.with_name(f".{final.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        os.rename(final, old)
        os.rename(aside, final)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.rename(aside, final)
    _sync(final.parent)


def clear_leftovers(save_dir: Path) -> None:
    """Remove what runs left that were killed while saving. A checkpoint that was about to be replaced, and was not,
    gets its name back."""
    for unfinished in save_dir.glob(".step_*.unfinished"):
        shutil.rmtree(unfinished, ignore_errors=True)
    for old in save_dir.glob(".step_*.replaced"):
        home = old.with_name(old.name.removeprefix(".").removesuffix(".replaced"))
        if home.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, home)


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if isinstance(error, OSError) else f"{type(error).__name__}: {text}"
