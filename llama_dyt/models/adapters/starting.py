"""The first values of an adapter: with them the model gives what it gave without, and they follow from the seed alone.

As peft has them: A uniform within 1/√in (Kaiming's with a = √5), B zero; of an embedding A zero, B standard normal; a
magnitude the length of the weight's row. Each is a function of (seed, name), so that every rank has the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from llama_dyt.models.adapters.adapter import MAGNITUDE, owner_of

ReadBase = Callable[[str], Mapping[str, Any]]
"""Name of a parameter of the model → "param", which gives parts of it in fp32."""


class StartingAdapter:
    """The starting values of a new adapter, as `boosters.Boosted` reads them.

    Args:
        shapes: name → whole shape of every parameter of the model with its adapter.
        base: reads the model's own.
        seed: of the run.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], base: ReadBase, seed: int) -> None:
        self._shapes, self._base, self._seed = shapes, base, seed

    def read(self, name: str) -> Mapping[str, Any]:
        found = owner_of(name)
        if found is None:
            return self._base(name)
        owner, part = found
        if part == MAGNITUDE:
            embedding = f"{owner}.lora_embedding_A" in self._shapes
            return {"param": _RowLengths(self._base(f"{owner}.weight")["param"], by_column=embedding)}
        return {"param": _Drawn(name, part, self._shapes[name], self._seed)}


class _Drawn:
    """A or B, drawn whole where a part of it is asked for: an adapter is small."""

    def __init__(self, name: str, part: str, shape: Sequence[int], seed: int) -> None:
        self._name, self._part, self._shape, self._seed = name, part, tuple(shape), seed

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        return starting_values(self._name, self._part, self._shape, self._seed)[index]


class _RowLengths:
    """Lengths of the rows of a stored weight, or of the columns of an embedding."""

    def __init__(self, weight: Any, by_column: bool) -> None:
        self._weight, self._by_column = weight, by_column

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        (rows,) = index if isinstance(index, tuple) else (index,)
        part = self._weight[:, rows] if self._by_column else self._weight[rows, :]
        return torch.linalg.vector_norm(part.double(), dim=0 if self._by_column else 1).float()


def starting_values(name: str, part: str, shape: Sequence[int], seed: int) -> Tensor:
    """The values of A or B, fp32 on the CPU.

    Args:
        name: of the parameter.
        part: the last of it, see `adapter.owner_of`.
    """
    if part in ("lora_B.weight", "lora_embedding_A"):
        return torch.zeros(shape)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    if part == "lora_embedding_B":
        return torch.empty(shape).normal_(generator=generator)
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
