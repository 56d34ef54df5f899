"""Which part of every parameter a rank holds under tensor and pipeline parallelism, as arithmetic on shapes.

It needs no processes, so the memory estimate and the dry run have it of models that no machine at hand could hold; a
test compares it with what the policy really cuts.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from llama_dyt.models.adapters.adapter import cut_of
from llama_dyt.models.spec import ModelSpec

VOCABULARY_MULTIPLE = 64
"""The padded vocabulary is a multiple of this times the tensor-parallel size (the engine's default; faster kernels)."""


def padded_vocabulary(vocab_size: int, tp_size: int) -> int:
    """Rows of the embedding and head over all tensor-parallel ranks, padding included."""
    multiple = VOCABULARY_MULTIPLE * tp_size
    return -(-vocab_size // multiple) * multiple


@dataclass(frozen=True)
class StagePart:
    """What one rank of a pipeline stage holds; every tensor-parallel rank of the stage holds tensors of these shapes.

    Attributes:
        layer_numbers: of its decoder layers, in order.
        shapes: name → local shape, padding of the vocabulary included.
        num_parameters: numbers held by one rank.
        num_replicated: those of them that every tensor-parallel rank holds alike (norms, embedding scale).
        num_padding: rows of padding over all tensor-parallel ranks of the stage, in numbers.
        num_copied: numbers held here a second time: a head tied to an embedding on another stage.
        spread: names of experts' parameters, where ranks share experts.
        ep_size: how many share them.
        trained: those of the shapes whose parameters are trained; None: all of them.
    """

    layer_numbers: tuple[int, ...]
    shapes: dict[str, tuple[int, ...]]
    num_parameters: int
    num_replicated: int
    num_padding: int
    num_copied: int = 0
    trained: Mapping[str, tuple[int, ...]] | None = None
    spread: frozenset[str] = frozenset()
    ep_size: int = 1

    @property
    def trained_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Name → local shape of what has gradients and optimizer states."""
        return self.shapes if self.trained is None else self.trained

    @property
    def num_trained(self) -> int:
        """Numbers of one rank that are trained."""
        return sum(map(math.prod, self.trained_shapes.values()))

    def num_distinct(self, tp_size: int) -> int:
        """Numbers of the model that the stage's tensor-parallel ranks hold together, with those that share their
        experts, each counted once."""
        cut = self.num_parameters - self.num_replicated - self.num_copied
        of_experts = sum(math.prod(self.shapes[name]) for name in self.spread)
        return (cut + of_experts * (self.ep_size - 1)) * tp_size + self.num_replicated - self.num_padding


def layers_of_stages(num_layers: int, pp_size: int, chunks: int = 1, zigzag: bool = False) -> list[tuple[int, ...]]:
    """The decoder layers of each stage: equal runs, what is left over going to those in the middle (the engine's rule).

    Args:
        chunks: runs a stage holds.
        zigzag: the runs go down the stages and up again (zbv), not round and round (interleaved).
    """
    runs = pp_size * chunks
    sizes = [num_layers // runs] * runs
    left_over = num_layers % runs
    first = runs // 2 - left_over // 2
    for run in range(first, first + left_over):
        sizes[run] += 1
    stages: list[list[int]] = [[] for _ in range(pp_size)]
    start = 0
    for run, size in enumerate(sizes):
        turn, place = divmod(run, pp_size)
        stage = pp_size - 1 - place if zigzag and turn % 2 else place
        stages[stage] += range(start, start + size)
        start += size
    return [tuple(layers) for layers in stages]


def partition(
    shapes: Mapping[str, Sequence[int]],
    family: ModelSpec,
    tp_size: int = 1,
    pp_size: int = 1,
    chunks: int = 1,
    zigzag: bool = False,
    tied: bool = False,
    trained: Collection[str] | None = None,
    ep_size: int = 1,
) -> list[StagePart]:
    """The parts of a model, one for each pipeline stage.

    Args:
        shapes: name → whole shape of every parameter of a causal LM.
        family: what is cut, and how.
        chunks, zigzag: as for `layers_of_stages`.
        tied: the head is the embedding, and not among `shapes`; on a stage of its own it is held again.
        trained: names of the parameters that are trained; None: all.
        ep_size: data-parallel ranks that share the experts of each layer.
    """
    layer_prefix = family.layer_prefix
    numbers = {int(name.removeprefix(layer_prefix).split(".")[0]) for name in shapes if name.startswith(layer_prefix)}
    stages = layers_of_stages(len(numbers), pp_size, chunks, zigzag)
    stage_of_layer = {layer: stage for stage, layers in enumerate(stages) for layer in layers}
    last = 0 if zigzag else pp_size - 1
    held: list[dict[str, tuple[int, ...]]] = [{} for _ in range(pp_size)]
    replicated, padding = [0] * pp_size, [0] * pp_size
    for name, whole in shapes.items():
        if name.startswith(layer_prefix):
            stage = stage_of_layer[int(name.removeprefix(layer_prefix).split(".")[0])]
        else:
            stage = 0 if name.startswith(f"{family.decoder}.{family.embedding}.") else last
        local, copies = _local_shape(name, tuple(whole), family, tp_size), tp_size
        if ep_size > 1 and family.is_of_experts(name):
            local, copies = (local[0] // ep_size, *local[1:]), tp_size * ep_size
        held[stage][name] = local
        if local == tuple(whole):
            replicated[stage] += math.prod(local)
        else:
            padding[stage] += math.prod(local) * copies - math.prod(whole)
    copied = [0] * pp_size
    if tied and last:
        copy = held[0][f"{family.decoder}.{family.embedding}.weight"]
        held[last][f"{family.head}.weight"] = copy
        copied[last] = math.prod(copy)
    return [
        StagePart(
            layers,
            of_stage,
            sum(map(math.prod, of_stage.values())),
            replicated[stage],
            padding[stage],
            copied[stage],
            None if trained is None else {name: shape for name, shape in of_stage.items() if name in trained},
            frozenset(name for name in of_stage if ep_size > 1 and family.is_of_experts(name)),
            ep_size,
        )
        for stage, (layers, of_stage) in enumerate(zip(stages, held, strict=True))
    ]


def _local_shape(name: str, whole: tuple[int, ...], family: ModelSpec, tp_size: int) -> tuple[int, ...]:
    if tp_size == 1:
        return whole
    cut, dimension = cut_of(name, family)
    if cut is None:
        return whole
    size = padded_vocabulary(whole[dimension], tp_size) if cut == "vocabulary" else whole[dimension]
    return (*whole[:dimension], size // tp_size, *whole[dimension + 1 :])
