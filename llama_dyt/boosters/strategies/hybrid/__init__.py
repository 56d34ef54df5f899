"""Tensor, pipeline and sequence parallelism, with or without ZeRO over the data-parallel ranks."""

from llama_dyt.boosters.strategies.hybrid.strategy import STRATEGY as STRATEGY
