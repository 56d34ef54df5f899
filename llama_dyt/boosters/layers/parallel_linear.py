"""Linear layers of tensor parallelism, where attention or MLP as a whole sees to their common input.

The engine's `Linear1D_Col` and `Linear1D_Row` stay in use where nothing here is needed: with plain tensor parallelism
and a pipeline that computes all gradients at once. Under split_gather those gather their own inputs, so q, k and v
gather the same tensor three times and each keep a copy for the backward pass, out of gradient checkpointing's reach;
under zbv gradients are lost (see `zero_bubble.py`). With frozen weights those compute gradients that nobody wants.
"""

from __future__ import annotations

import llama_dyt.boosters.engine  # noqa: F401

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from colossalai.shardformer.layer import Linear1D_Col, Linear1D_Row, VocabParallelLMHead1D
from colossalai.shardformer.layer._operation import (
    gather_forward_reducescatter_backward,
    reduce_backward,
    reduce_forward,
    reducescatter_forward_gather_backward,
)
from torch import nn
from torch.nn import functional as F

from llama_dyt.boosters.layers.zero_bubble import deferred_linear

LENGTH = 1
"""The dimension of hidden states (batch, length, hidden size) that sequence parallelism cuts."""


def whole_input(hidden: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The whole of hidden states from every rank's slice; backward sums each rank's share of the gradient and cuts it
    again."""
    return gather_forward_reducescatter_backward(hidden, group, LENGTH)


def input_of_all(hidden: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """Hidden states as they are; backward sums what each rank adds to their gradient."""
    return reduce_backward(hidden, group)


def gather_input(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Let a module see `whole_input` of its first argument."""
    _before(module, lambda hidden: whole_input(hidden, group))


def sum_input_gradient(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Let a module see `input_of_all` of its first argument."""
    _before(module, lambda hidden: input_of_all(hidden, group))


def _before(module: nn.Module, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    module.register_forward_pre_hook(lambda _, inputs: (change(inputs[0]), *inputs[1:]))


class WholeInputColumnLinear(Linear1D_Col):
    """Column-parallel linear layer in a module under `gather_input` or `sum_input_gradient`."""

    @staticmethod
    def from_native_module(module: nn.Linear, process_group: Any, **kwargs: Any) -> nn.Module:
        return _as(WholeInputColumnLinear, Linear1D_Col.from_native_module(module, process_group, **kwargs))

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        return (deferred_linear if self.use_zbv else F.linear)(input_, self.weight, self.bias)


class WholeInputHead(VocabParallelLMHead1D):
    """The same for a head, whose rows are vocabulary entries, some of them padding."""

    @staticmethod
    def from_native_module(module: nn.Linear, process_group: Any, **kwargs: Any) -> nn.Module:
        return _as(WholeInputHead, VocabParallelLMHead1D.from_native_module(module, process_group, **kwargs))

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        logits = (deferred_linear if self.use_zbv else F.linear)(input_, self.weight, self.bias)
        return logits[..., : self.num_valid_embeddings_local]


class FrozenColumnLinear(Linear1D_Col):
    """Column-parallel linear layer whose weight is not trained; the engine's computes its gradient all the same."""

    @staticmethod
    def from_native_module(module: nn.Linear, process_group: Any, **kwargs: Any) -> nn.Module:
        return _as(FrozenColumnLinear, Linear1D_Col.from_native_module(module, process_group, **kwargs))

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        return F.linear(input_of_all(input_, self.process_group), self.weight, self.bias)


class FrozenHead(VocabParallelLMHead1D):
    """The same for a head."""

    @staticmethod
    def from_native_module(module: nn.Linear, process_group: Any, **kwargs: Any) -> nn.Module:
        return _as(FrozenHead, VocabParallelLMHead1D.from_native_module(module, process_group, **kwargs))

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        logits = F.linear(input_of_all(input_, self.process_group), self.weight, self.bias)
        return logits[..., : self.num_valid_embeddings_local]


class OwnRowLinear(Linear1D_Row):
    """Row-parallel linear layer that leaves its weight's gradient for later, under zbv, or out where it is frozen."""

    @staticmethod
    def from_native_module(module: nn.Linear, process_group: Any, **kwargs: Any) -> nn.Module:
        return _as(OwnRowLinear, Linear1D_Row.from_native_module(module, process_group, **kwargs))

    def forward(self, input_: torch.Tensor) -> torch.Tensor:
        share = (deferred_linear if self.use_zbv else F.linear)(input_, self.weight, None)
        if self.seq_parallel_mode is None:
            output = reduce_forward(share, self.process_group)
        else:
            output = reducescatter_forward_gather_backward(share, self.process_group, LENGTH)
        return output if self.bias is None else output + self.bias


def _as(kind: type[nn.Module], module: nn.Module) -> nn.Module:
    """The engine's constructors name their own class."""
    module.__class__ = kind
    return module
