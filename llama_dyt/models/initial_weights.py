"""The weights a model starts from, each a function of (seed, parameter name) and nothing else.

A sharded initialisation needs them without a model: any range of any parameter can be drawn alone, so a rank fills its
own slice, and every layout starts from the same model.

Which number fills a parameter, or how wide the normal is that it is drawn from, the family's config says. The
normal is truncated as the authors have it: their `trunc_normal_(std=0.02)` leaves torch's bounds of -2 and 2, which are
absolute: 100 standard deviations, so the truncation exists but is never felt.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import torch
from torch import Tensor

TRUNCATION = 2.0

# Elements that share one generator. A slice is drawn from the blocks it touches, and blocks are drawn in parallel: one
# generator a parameter would make a rank draw a whole 70B to keep its part. Changing this changes every model.
BLOCK_ELEMENTS = 2**22


class Starts(Protocol):
    """What is asked of a config here."""

    def starting_value(self, name: str) -> float | None:
        """The number that fills the parameter `name`, or None where it is drawn at random."""

    def starting_std(self, name: str) -> float:
        """Standard deviation of the normal that the parameter `name` is drawn from."""


def initial_range(
    name: str, shape: Sequence[int], config: Starts, seed: int, start: int = 0, stop: int | None = None
) -> Tensor:
    """Elements [start, stop) of the flattened parameter `name`, in fp32 on the CPU.

    Args:
        name: the full name, as in the causal LM's state dict.
        shape: of the whole parameter, not of the slice.
        config: the model's.
        seed: of the run. `stop` None: to the end.
    """
    numel = math.prod(shape)
    stop = numel if stop is None else stop
    constant = config.starting_value(name)
    if constant is not None:
        return torch.full((stop - start,), constant, dtype=torch.float32, device="cpu")
    std = config.starting_std(name)
    values = torch.empty(stop - start, dtype=torch.float32, device="cpu")

    def fill(block: int) -> None:
        block_start = block * BLOCK_ELEMENTS
        block_stop = min(block_start + BLOCK_ELEMENTS, numel)
        first, last = max(block_start, start), min(block_stop, stop)
        whole = (first, last) == (block_start, block_stop)
        drawn = values[first - start : last - start] if whole else values.new_empty(block_stop - block_start)
        _truncated_normal_(drawn, std, _generator(seed, name, block))
        if not whole:
            values[first - start : last - start] = drawn[first - block_start : last - block_start]

    blocks = range(start // BLOCK_ELEMENTS, -(-stop // BLOCK_ELEMENTS))
    if len(blocks) > 1:
        # normal_ runs in one thread and lets go of the interpreter's lock.
        with ThreadPoolExecutor(max_workers=torch.get_num_threads()) as pool:
            list(pool.map(fill, blocks))
    elif blocks:
        fill(blocks[0])
    return values


def initial_tensor(name: str, shape: Sequence[int], config: Starts, seed: int) -> Tensor:
    """The whole parameter `name`, of `shape`, in fp32 on the CPU."""
    return initial_range(name, shape, config, seed).view(*shape)


class InitialTensor:
    """The starting values of one parameter, drawn where they are asked for: `values[2:4]`, `values[:, 8:16]`.

    Indexed by slices as a safetensors slice is, and gives fp32 tensors on the CPU. Rows alone are drawn; columns are
    cut from whole rows.
    """

    def __init__(self, name: str, shape: Sequence[int], config: Starts, seed: int) -> None:
        self._name, self._shape, self._config, self._seed = name, tuple(shape), config, seed

    def __getitem__(self, index: slice | tuple[slice, ...]) -> Tensor:
        rows, *others = index if isinstance(index, tuple) else (index,)
        first, last, _ = rows.indices(self._shape[0])
        last = max(first, last)
        row = math.prod(self._shape[1:])
        values = initial_range(self._name, self._shape, self._config, self._seed, first * row, last * row)
        return values.view(last - first, *self._shape[1:])[(slice(None), *others)]


class InitialWeights:
    """All starting weights of a model, as `boosters.Boosted` reads them.

    Args:
        shapes: name → whole shape of every parameter.
    """

    def __init__(self, shapes: Mapping[str, Sequence[int]], config: Starts, seed: int) -> None:
        self._shapes, self._config, self._seed = shapes, config, seed

    def read(self, name: str) -> dict[str, InitialTensor]:
        return {"param": InitialTensor(name, self._shapes[name], self._config, self._seed)}


def draw_seed() -> int:
    """A seed from torch's global generator: what a model uses that was given none."""
    return int(torch.randint(2**62, (), dtype=torch.int64, device="cpu"))


def _generator(seed: int, name: str, block: int) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{name}:{block}".encode()).digest()
    generator = torch.Generator(device="cpu")
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator


def _truncated_normal_(tensor: Tensor, std: float, generator: torch.Generator) -> None:
    """Fill with a normal of mean 0, values beyond ±TRUNCATION drawn anew.

    Not torch's `trunc_normal_`, which draws other numbers for one seed from one release of torch to the next.
    """
    tensor.normal_(0.0, std, generator=generator)
    while tensor.numel() and max(-tensor.amin(), tensor.amax()) > TRUNCATION:
        outside = tensor.abs() > TRUNCATION
        tensor[outside] = torch.empty(int(outside.sum()), device="cpu").normal_(0.0, std, generator=generator)
