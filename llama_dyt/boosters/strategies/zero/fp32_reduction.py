"""Gradients of ZeRO in fp32 from the moment they leave the backward pass: summed over ranks, and added up over micro
batches, without being rounded to the working precision again."""

from __future__ import annotations

from llama_dyt.boosters.engine.upstream import replace

import torch
from colossalai.zero import LowLevelZeroOptimizer
from colossalai.zero.low_level.bookkeeping import BucketStore


def add_up_in_fp32(optimizer: LowLevelZeroOptimizer) -> None:
    """Have an engine's ZeRO widen every bucket of gradients before it is reduced; what it keeps of them is fp32 then.

    Upstream's `communication_dtype` would round the sum over ranks to the working precision, and add up micro batches
    in that. Each micro batch has to be reduced then, also under stage 1: the parameters' own `.grad` would round them.
    """
    for store in optimizer.pg_to_bucket_store.values():
        replace(store, "get_flatten_grad", _widened(store))


def _widened(store: BucketStore):
    upstream = store.get_flatten_grad

    def get_flatten_grad() -> torch.Tensor:
        return upstream().float()

    return get_flatten_grad
