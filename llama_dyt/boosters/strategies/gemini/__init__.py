"""Gemini, the engine's chunk-based ZeRO-3 with offloading."""

from llama_dyt.boosters.strategies.gemini.strategy import STRATEGY as STRATEGY
