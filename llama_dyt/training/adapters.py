"""What a run that trains an adapter does otherwise: it refers to its base, saves the adapter alone, may merge it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from llama_dyt.core import ranks
from llama_dyt.core.store import Location, at, store_of
from llama_dyt.models.adapters import merge
from llama_dyt.training.checkpoint.base import Base, describe_base
from llama_dyt.training.checkpoint.contents import ADAPTER, MODEL, Contents
from llama_dyt.training.checkpoint.model_files import save_adapter_files, save_model_files
from llama_dyt.training.plan import Plan

MERGED = "merged"
"""The folder in a --save_dir that --merge_adapter writes."""


def base_of(plan: Plan) -> Base:
    """The weights that stay as they are. All ranks call it.

    Raises:
        CheckpointError: the run resumes a checkpoint, and they are not the ones that it was made with.
    """
    named = plan.run.model.model_path
    path = str(plan.weights_folder.absolute()) if at(named).expanduser().is_dir() else named
    positions = plan.model_config.max_position_embeddings
    base = describe_base(plan.weights_folder, path, positions, plan.environment, plan.run.run.verify)
    if plan.checkpoint is not None:
        base.require_same(plan.checkpoint.base, plan.checkpoint.path)
    return base


def contents_of(plan: Plan, base: Base | None) -> tuple[Contents, Callable[[Path], None]]:
    """(what of a run's weights its checkpoints hold, what writes all but the tensors beside them)."""
    if base is None:
        return MODEL, partial(save_model_files, plan.model_config, plan.tokenizer)
    return ADAPTER, partial(save_adapter_files, plan.adapter, base, plan.tokenizer)


def merge_at_end(plan: Plan, checkpoint: Location, save_dir: Location) -> Location:
    """Write the base with the adapter of a checkpoint in it, beside the checkpoints. All ranks call it.

    Returns:
        The folder.
    """

    def write() -> None:
        adapter = store_of(checkpoint).local(checkpoint, f"{ADAPTER.folder}/") / ADAPTER.folder
        merge(plan.weights_folder, adapter, Path(str(save_dir)) / MERGED, anew=True)

    ranks.from_first(write, "merging the adapter")
    return save_dir / MERGED
