"""Plain data parallelism: every rank holds the whole model."""

from llama_dyt.boosters.strategies.ddp.strategy import STRATEGY as STRATEGY
