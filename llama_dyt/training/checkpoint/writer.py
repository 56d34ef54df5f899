"""Writing checkpoints: made aside, complete or absent, the same files whichever plugin and layout wrote them.

    save_dir/step_00000100/
        model/            fp32 HuggingFace safetensors shards, config, tokenizer, modeling files
        adapter/          instead, of a run that trains one: it alone in peft's format, tokenizer, base.json (`base.py`)
        optimizer/        fp32 moments under the same names, `exp_avg.<name>` and `exp_avg_sq.<name>`; optimizer.json
        lr_scheduler      the schedule, JSON
        trainer_state.json
        forward_check.json    what the weights compute (`forward_check.py`)
        COMPLETE          written last: every other file with its size and SHA-256 (`marker.py`)
    save_dir/latest       after that: "step_00000100"

Reading them is `reader.py`. Where they are kept, and how half of one is never taken for a whole, is `core.store`.

Not torch.distributed.checkpoint's HuggingFaceStorageWriter: that takes twice as long, has no checksums and other names
(docs/experiments.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from llama_dyt.boosters.grid import Grid
from llama_dyt.boosters.training_state import MOMENTS, TrainingState
from llama_dyt.core import files, ranks
from llama_dyt.core.errors import CheckpointError, LlamaDytError
from llama_dyt.core.store import Location, Staging, store_of
from llama_dyt.launch.claim import Claim
from llama_dyt.training.checkpoint.contents import MODEL, Contents
from llama_dyt.training.checkpoint.marker import Written, described, marker_of, step_folder
from llama_dyt.training.checkpoint.publishing import clear_leftovers, point_to_latest, write_texts
from llama_dyt.training.checkpoint.retention import Keep
from llama_dyt.training.checkpoint.shards import shard_name
from llama_dyt.training.checkpoint.tensor_writer import save_tensors

T = TypeVar("T")

MAX_SHARD_BYTES = 2 * 1024**3


class CheckpointWriter:
    """Writes checkpoints of one run. Every method that writes is collective: all ranks call it together.

    Attributes:
        looks_for_finite: it looks itself whether what it writes is finite.
    """

    looks_for_finite = False

    def __init__(
        self,
        save_dir: Location,
        state: TrainingState,
        grid: Grid,
        save_model_files: Callable[[Path], None],
        max_shard_bytes: int = MAX_SHARD_BYTES,
        contents: Contents = MODEL,
        claim: Claim | None = None,
        nonce: str = "alone",
        say: Callable[[str], None] = lambda message: None,
        keep: Keep | None = None,
    ) -> None:
        """
        Args:
            save_model_files: writes config, tokenizer and modeling files into a folder; called on rank 0 alone.
            contents: what of the weights is held, and how.
            claim: rank 0's on `save_dir`; without it nothing that other runs left is touched.
            nonce: tells this run's unfinished folders from others'; the same on all ranks.
            say: takes a line about what was replaced or removed; called on rank 0 alone.
            keep: which checkpoints stay once one more is whole; None: all.
        """
        self.save_dir = save_dir
        self._state = state
        self._grid = grid
        self._save_model_files = save_model_files
        self._max_shard_bytes = max_shard_bytes
        self._contents = contents
        self._claim = claim
        self._say = say
        self._nonce = nonce
        self._keep = keep or Keep()
        self._begun: Location | None = None
        self._seconds = 0.0
        self.last_path: Location | None = None

    @property
    def seconds(self) -> float:
        """How long the last save took that is whole, from its beginning to its name."""
        return self._seconds

    def start(self) -> None:
        """Get ready, before the first step. Collective."""

    def conclude(self, wait: bool) -> Location | None:
        """The checkpoint that `save` began, once it is whole; the same on all ranks. Collective.

        Args:
            wait: for it.

        Returns:
            None: nothing was begun, or it is still being written.

        Raises:
            CheckpointError: it could not be written.
        """
        begun, self._begun = self._begun, None
        return begun

    def before_change(self) -> None:
        """Weights or moments are about to change: wait until a save that was begun has what it needs of them."""

    def close(self) -> None:
        """Nothing is saved any more; what was begun is finished."""

    def save(
        self,
        step: int,
        trainer_state: dict[str, Any],
        schedule: dict[str, Any],
        optimizer_scalars: dict[str, Any],
        beside: Mapping[str, Any] = MappingProxyType({}),
    ) -> Location:
        """Write the checkpoint of `step` and return its path; it is whole once `conclude` says so.

        Args:
            beside: name → content of further files, as JSON can hold it.

        Raises:
            CheckpointError: any rank could not write (disk full, no permission); the unfinished folder is removed and
                earlier checkpoints are untouched. Raised on all ranks.
        """
        final = step_folder(self.save_dir, step)
        began = time.monotonic()
        staging = store_of(final).stage(final, self._nonce)
        written: dict[str, Written] = {}
        errors: list[str] = []

        def attempt(action: Callable[[], Any]) -> None:
            """Run a local write; after a failure only take part in the collectives that are left."""
            if errors:
                return
            try:
                with ranks.busy(f"writing {final}"):
                    action()
            except Exception as error:  # any failure of one rank has to reach all of them, not hang them
                errors.append(f"rank {dist.get_rank()}: {_reason(error)}")

        def prepare() -> None:
            if self._claim is not None:
                self._claim.check()
                clear_leftovers(self.save_dir, self._say)
            staging.begin(self._say)
            self._save_model_files(staging.folder(self._contents.folder))
            write_texts(staging, texts_of(trainer_state, schedule, optimizer_scalars, beside))
            written.update(described(staging.folder()))
            staging.hand_over()

        def finish() -> None:
            sizes = {name: file.bytes for name, file in written.items()}
            written.update(write_texts(staging, self._indices(shards, sizes)))
            staging.hand_over()
            if self._claim is not None:
                self._claim.check()
            staging.publish(marker_of(written), self._say)
            point_to_latest(self.save_dir, step, self._say)
            self._keep.remove_others(self.save_dir, step, self._say)

        is_main = dist.get_rank() == 0
        with ranks.undoing(staging.discard):
            if is_main:
                attempt(prepare)
            self._raise_together(errors, final)
            shards = self._write_tensors(staging, attempt, written)
            self._raise_together(errors, final)
            for theirs in ranks.gather(written, f"gathering the checksums of {final}"):
                written.update(theirs)
            if is_main:
                attempt(finish)
            self._raise_together(errors, final)
        self.last_path = self._begun = final
        self._seconds = time.monotonic() - began
        return final

    def _write_tensors(
        self, staging: Staging, attempt: Callable[[Callable[[], Any]], None], written: dict[str, Written]
    ) -> list[list[str]]:
        """Each pipeline stage's writer writes its own shards; numbers run on over the stages. What this rank wrote is
        put into `written`.

        Returns:
            The parameters of every shard.
        """

        def write(tensors: dict[str, torch.Tensor], folder: str, stem: str, number: int) -> None:
            path = staging.folder(folder) / shard_name(stem, number, total)
            digest = save_tensors(tensors, path)
            written[f"{folder}/{path.name}"] = Written(path.stat().st_size, digest)
            staging.hand_over()

        contents = self._contents
        mine = self._plan_shards()
        stages = [mine]
        if self._grid.pp_group is not None and not contents.in_one_file:
            stages = ranks.gather(mine, "dividing a checkpoint into shards", self._grid.pp_group)
        total = sum(len(stage) for stage in stages)
        first = sum(len(stage) for stage in stages[: self._grid.pp_rank])
        for number, names in enumerate(mine, start=first):
            weights: dict[str, torch.Tensor] = {}
            moments: dict[str, torch.Tensor] = {}
            for name, tensors in self._state.gather(names):
                if tensors is None:
                    continue
                weights[contents.prefix + name] = tensors["param"]
                for moment in MOMENTS:
                    moments[f"{moment}.{name}"] = tensors[moment]
            if contents.in_one_file and self._grid.is_writer and self._grid.pp_group is not None:
                weights, moments = on_first_stage(weights, self._grid), on_first_stage(moments, self._grid)
            if weights:
                attempt(partial(write, weights, contents.folder, contents.stem, number))
                attempt(partial(write, moments, "optimizer", "optimizer", number))
        return [names for stage in stages for names in stage]

    def _plan_shards(self) -> list[list[str]]:
        """This stage's names in order, cut where a shard's fp32 weights would pass the limit."""
        if self._contents.in_one_file:
            return [list(self._state.sizes())]
        shards: list[list[str]] = []
        size = 0
        for name, num_bytes in self._state.sizes().items():
            if not shards or size + num_bytes > self._max_shard_bytes:
                shards.append([])
                size = 0
            shards[-1].append(name)
            size += num_bytes
        return shards

    def _indices(self, shards: list[list[str]], sizes: Mapping[str, int]) -> dict[str, str]:
        """Name in the checkpoint → HuggingFace's index of the shards in its folder; none where one file holds all.

        Args:
            sizes: of the files of tensors, in bytes.
        """
        if len(shards) < 2:
            return {}
        indices = {}
        moments = [f"{moment}." for moment in MOMENTS]
        for folder, stem, prefixes in (
            (self._contents.folder, self._contents.stem, [self._contents.prefix]),
            ("optimizer", "optimizer", moments),
        ):
            weight_map = {
                prefix + name: shard_name(stem, number, len(shards))
                for number, names in enumerate(shards)
                for name in names
                for prefix in prefixes
            }
            total = sum(sizes[f"{folder}/{name}"] for name in set(weight_map.values()))
            indices[f"{folder}/{stem}.safetensors.index.json"] = files.to_json(
                {"metadata": {"total_size": total}, "weight_map": weight_map}
            )
        return indices

    def _raise_together(self, errors: list[str], final: Location) -> None:
        """Make any rank's failure every rank's."""
        ranks.raise_together(self.failed(final, errors[0]) if errors else None, f"writing {final}")

    def failed(self, final: Location, reason: str) -> CheckpointError:
        """That a checkpoint could not be written, and what there is in its stead."""
        last = (
            f"the last complete checkpoint is {self.last_path}" if self.last_path else "no checkpoint was written yet"
        )
        return CheckpointError(f"could not write checkpoint {final}: {reason} ({last})")


def texts_of(
    trainer_state: dict[str, Any],
    schedule: dict[str, Any],
    optimizer_scalars: dict[str, Any],
    beside: Mapping[str, Any],
) -> dict[str, str]:
    """Name in the checkpoint → content of its files of JSON; arguments as of `CheckpointWriter.save`."""
    values = {"lr_scheduler": schedule, "optimizer/optimizer.json": optimizer_scalars}
    values |= {"trainer_state.json": trainer_state, **beside}
    return {name: files.to_json(value) for name, value in values.items()}


def on_first_stage(tensors: dict[T, torch.Tensor], grid: Grid) -> dict[T, torch.Tensor]:
    """Those of all pipeline stages together on the first of them, none on the others. Collective over the stages."""
    parts: list[dict[T, torch.Tensor]] | None = [{}] * grid.pp_size if grid.pp_rank == 0 else None
    dist.gather_object(tensors, parts, dst=dist.get_global_rank(grid.pp_group, 0), group=grid.pp_group)
    return {name: tensor for part in parts or () for name, tensor in part.items()}


def _reason(error: Exception) -> str:
    """What went wrong, and what to do where that is known."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError):
        return f"{text}; free space or take another --save_dir, and resume with --load auto"
    return text if isinstance(error, LlamaDytError) else f"{type(error).__name__}: {text}"
