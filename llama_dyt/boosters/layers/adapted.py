"""An adapter (`models/adapters/modules.py`) in modules that tensor parallelism has cut.

    by outputs (q, k, v, gate, up, head)   B is cut as the weight is, A is whole: from each rank comes a part of the
                                           gradient of what A gives, (…, rank) numbers, which is summed over the ranks
    by inputs (o, down)                    A is cut as the weight is, B is whole: what the parts of A give is summed
    by the vocabulary (embedding)          likewise; A has the vocabulary's entries

Under split_gather blocks see to their inputs and to the sum of its gradient themselves, and what comes out is a slice
of the sequences: there the gradients of what is whole are summed over the ranks as those of the norms are.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from functools import cache
from typing import Any

import torch.distributed as dist
from colossalai.shardformer.layer._operation import (
    reduce_backward,
    reduce_forward,
    reducescatter_forward_gather_backward,
)
from colossalai.shardformer.layer.utils import SeqParallelUtils
from colossalai.tensor.d_tensor.api import shard_colwise, shard_rowwise, sharded_tensor_to_existing_param
from torch import Tensor, nn

from llama_dyt.boosters.layers.parallel_linear import LENGTH
from llama_dyt.models.adapters.modules import LoraEmbedding, LoraLinear, attached, with_lora


class ColumnLora(LoraLinear):
    """B is this rank's rows."""

    def take_over(self, native: LoraLinear) -> None:
        """Take the adapter of the layer that this one stands for, and cut it."""
        self.place, self.lora_A, self.lora_B = native.place, native.lora_A, native.lora_B
        _cut(self.lora_B.weight, 0, self.process_group)
        if self.place.use_dora:
            self.lora_magnitude_vector = native.lora_magnitude_vector
            _cut(self.lora_magnitude_vector, 0, self.process_group)

    def _to_low(self, inputs: Tensor) -> Tensor:
        return reduce_backward(super()._to_low(inputs), self.process_group)


class WholeInputColumnLora(ColumnLora):
    """The same in a block that sees to its input."""

    def take_over(self, native: LoraLinear) -> None:
        super().take_over(native)
        SeqParallelUtils.marked_as_sp_partial_derived_param(self.lora_A.weight)

    def _to_low(self, inputs: Tensor) -> Tensor:
        return LoraLinear._to_low(self, inputs)


class HeadLora(ColumnLora):
    """The same of a head, whose rows are vocabulary entries, some of them padding that its output has not."""

    def take_over(self, native: LoraLinear) -> None:
        _pad(native.lora_B.weight, 0, self.new_num_embeddings)
        if native.place.use_dora:
            _pad(native.lora_magnitude_vector, 0, self.new_num_embeddings)
        super().take_over(native)

    def _from_low(self, low: Tensor) -> Tensor:
        return super()._from_low(low)[..., : self.num_valid_embeddings_local]

    def _bias_of_output(self) -> Tensor:
        return self.bias[: self.num_valid_embeddings_local]

    def _ratio(self) -> Tensor:
        # Padding has length 0: divided by, it would give its magnitude a gradient of nan.
        rows = slice(self.num_valid_embeddings_local)
        return self.lora_magnitude_vector[rows] / self._squared_norms()[rows].sqrt().to(
            self.lora_magnitude_vector.dtype
        )


class WholeInputHeadLora(HeadLora, WholeInputColumnLora):
    """Of a head that sees to its input."""


class RowLora(LoraLinear):
    """A is this rank's columns."""

    def take_over(self, native: LoraLinear) -> None:
        """Take the adapter of the layer that this one stands for, and cut it."""
        self.place, self.lora_A, self.lora_B = native.place, native.lora_A, native.lora_B
        _cut(self.lora_A.weight, 1, self.process_group)
        if self.place.use_dora:
            self.lora_magnitude_vector = native.lora_magnitude_vector

    def _to_low(self, inputs: Tensor) -> Tensor:
        return reduce_forward(super()._to_low(inputs), self.process_group)

    def _squared_norms(self) -> Tensor:
        return _summed(super()._squared_norms(), self.process_group)


class SlicedRowLora(RowLora):
    """The same where each rank gets a slice of the output."""

    def take_over(self, native: LoraLinear) -> None:
        super().take_over(native)
        for parameter in (self.lora_B.weight, *([self.lora_magnitude_vector] if self.place.use_dora else [])):
            SeqParallelUtils.marked_as_sp_partial_derived_param(parameter)

    def _to_low(self, inputs: Tensor) -> Tensor:
        return reducescatter_forward_gather_backward(LoraLinear._to_low(self, inputs), self.process_group, LENGTH)


class VocabularyLora(LoraEmbedding):
    """A is this rank's entries of the vocabulary."""

    def take_over(self, native: LoraEmbedding) -> None:
        """Take the adapter of the embedding that this one stands for, and cut it."""
        self.place = native.place
        self.lora_embedding_A, self.lora_embedding_B = native.lora_embedding_A, native.lora_embedding_B
        _pad(self.lora_embedding_A, 1, self.num_embeddings)
        _cut(self.lora_embedding_A, 1, self.process_group)
        if self.place.use_dora:
            self.lora_magnitude_vector = native.lora_magnitude_vector

    def _to_low(self, input_ids: Tensor) -> Tensor:
        elsewhere = (input_ids < self.vocab_start_index) | (input_ids >= self.vocab_end_index)
        found = super()._to_low((input_ids - self.vocab_start_index).masked_fill(elsewhere, 0))
        return reduce_forward(found.masked_fill(elsewhere[..., None], 0), self.process_group)

    def _squared_norms(self) -> Tensor:
        return _summed(super()._squared_norms(), self.process_group)


@cache
def keeping_adapter(parallel: type[nn.Module], lora: type[nn.Module]) -> type[nn.Module]:
    """A replacement for the engine's sharding: `parallel`, and where the layer it stands for has an adapter, with it.

    The engine's `from_native_module` takes weight and bias alone, and would drop an adapter without a word.
    """

    def from_native_module(module: nn.Module, process_group: Any, **options: Any) -> nn.Module:
        cut = parallel.from_native_module(module, process_group, **options)
        if attached(module) is not None:
            cut.__class__ = with_lora(type(cut), lora)
            cut.take_over(module)
        return cut

    return type(parallel.__name__, (parallel,), {"from_native_module": staticmethod(from_native_module)})


def _cut(parameter: nn.Parameter, dimension: int, group: dist.ProcessGroup) -> None:
    shard = shard_rowwise if dimension == 0 else shard_colwise
    sharded_tensor_to_existing_param(shard(parameter.data, group), parameter)


def _pad(parameter: nn.Parameter, dimension: int, size: int) -> None:
    """Make a parameter without values longer."""
    shape = list(parameter.shape)
    shape[dimension] = size
    parameter.data = parameter.data.new_empty(shape)


def _summed(squares: Tensor, group: dist.ProcessGroup) -> Tensor:
    dist.all_reduce(squares, group=group)
    return squares
