"""Fully sharded data parallelism over PyTorch's FSDP2."""

from llama_dyt.boosters.strategies.fsdp.strategy import STRATEGY as STRATEGY
