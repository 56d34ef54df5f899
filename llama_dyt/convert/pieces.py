"""Tensors put together from pieces in several files, as tensor-parallel programs leave them.

A recipe says of which tensor in each file one of ours is made, and how. All are judged by the files' headers before one
is read. A piece is cut from a mapped file and copied to its place: what is held is the one tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llama_dyt.convert.weights import Stored, Weights
from llama_dyt.core.errors import CheckpointError


@dataclass(frozen=True)
class File:
    """What one rank left: a file, or several that are read as one.

    Attributes:
        name: of it, for messages.
    """

    name: str
    tensors: Mapping[str, Tensor]


def _as_it_is(piece: Tensor) -> Tensor:
    return piece


@dataclass(frozen=True)
class Recipe:
    """How a tensor is made.

    Attributes:
        source: what it is made of is called in every file.
        shape: of that over all files, as the figures have it.
        dim: along which it is divided among the files; None: each holds all of it.
        take: the part of a file's piece that is a piece of ours, or that piece rearranged.
    """

    source: str
    shape: tuple[int, ...]
    dim: int | None
    take: Callable[[Tensor], Tensor] = _as_it_is


def put_together(
    config: Any,
    recipes: Mapping[str, Recipe],
    files: Sequence[File],
    figures: str,
    ignored: Callable[[str], bool] = lambda name: False,
) -> Weights:
    """Weights that are read by recipes, by our names.

    Args:
        files: of all ranks, in order.
        figures: the file that the config was read from, for messages.
        ignored: names in the files that no model has a place for: what is computed.

    Raises:
        CheckpointError: a tensor is missing, of another shape or dtype than the figures or its neighbours have, or
            there is one that no recipe takes.
    """
    stored = {name: _judged(recipe, files, figures) for name, recipe in recipes.items()}
    used = {recipe.source for recipe in recipes.values()}
    for file in files:
        for name in file.tensors:
            if name not in used and not ignored(name):
                raise CheckpointError(
                    f"{file.name}: {name} has no place in the model that {figures} tells of; is it of another family?"
                )

    def read(name: str) -> Tensor:
        recipe, expected = recipes[name], stored[name]
        if recipe.dim is None:
            return _copied(recipe, files)
        whole = torch.empty(expected.shape, dtype=expected.dtype)
        begin = 0
        for file in files:
            piece = recipe.take(file.tensors[recipe.source])
            whole.narrow(recipe.dim, begin, piece.shape[recipe.dim]).copy_(piece)
            begin += piece.shape[recipe.dim]
        return whole

    return Weights(config, stored, read)


def _judged(recipe: Recipe, files: Sequence[File], figures: str) -> Stored:
    expected = list(recipe.shape)
    if recipe.dim is not None:
        if expected[recipe.dim] % len(files):
            raise CheckpointError(
                f"{files[0].name}: {recipe.source} has {expected[recipe.dim]} rows or columns by {figures}, which do "
                f"not divide among {len(files)} files; are all files there, and no others?"
            )
        expected[recipe.dim] //= len(files)
    dtype = None
    for file in files:
        piece = file.tensors.get(recipe.source)
        if piece is None:
            raise CheckpointError(
                f"{file.name}: {recipe.source} is missing; copy it again, or is it of another family?"
            )
        if list(piece.shape) != expected:
            raise CheckpointError(
                f"{file.name}: {recipe.source} has shape {list(piece.shape)} where {figures} makes it {expected} in "
                f"each of {len(files)} files"
            )
        if piece.dtype != (dtype := dtype or piece.dtype):
            raise CheckpointError(f"{file.name}: {recipe.source} is {piece.dtype}, and {dtype} in {files[0].name}")
    taken = list(recipe.take(torch.empty(expected, device="meta")).shape)
    if recipe.dim is not None:
        taken[recipe.dim] *= len(files)
    return Stored(tuple(taken), dtype, f"{files[0].name}: {recipe.source}")


def _copied(recipe: Recipe, files: Sequence[File]) -> Tensor:
    first, *others = files
    for other in others:
        if not torch.equal(first.tensors[recipe.source], other.tensors[recipe.source]):
            raise CheckpointError(
                f"{other.name}: {recipe.source} differs from that in {first.name}, and every rank must hold the same; "
                "are the files of one checkpoint?"
            )
    return recipe.take(first.tensors[recipe.source]).clone()
