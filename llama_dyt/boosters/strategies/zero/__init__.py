"""ZeRO: optimizer states, and gradients in stage 2, are cut over the data-parallel ranks."""

from llama_dyt.boosters.strategies.zero.strategy import STRATEGY as STRATEGY
