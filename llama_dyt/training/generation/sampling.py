"""How the next token is chosen, and when a text ends: what generate.py and samples in the course of a run are told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from llama_dyt.core.problem import Problem

LEAST_TEMPERATURE = 0.001
"""Logits are divided by it in fp32, and must stay finite."""


@dataclass(frozen=True)
class Sampling:
    """
    Attributes:
        max_new_tokens: longest continuation.
        temperature: 0 takes the likeliest token, and then nothing is drawn.
        top_k: draw from so many likeliest tokens; 0 from all.
        top_p: draw from the likeliest tokens that together have this probability.
        repetition_penalty: the logits of tokens that were there before are divided by it, negative ones multiplied
            (Keskar et al. 2019, CTRL); 1 leaves them.
        stop: texts before which a continuation ends.
    """

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()

    @property
    def draws(self) -> bool:
        return self.temperature > 0

    def problems(self) -> Iterator[Problem]:
        """What is wrong with them, by the flags of generate.py."""
        if self.max_new_tokens < 1:
            yield Problem("max_new_tokens", self.max_new_tokens, "give 1 or more")
        if self.temperature != 0 and not LEAST_TEMPERATURE <= self.temperature < math.inf:
            reason = f"give 0 (the likeliest token) or a number of {LEAST_TEMPERATURE} or more"
            yield Problem("temperature", str(self.temperature), reason)
        if self.top_k < 1:
            yield Problem("top_k", self.top_k, "give 1 or more")
        if not 0 < self.top_p <= 1:
            yield Problem("top_p", self.top_p, "give more than 0 and at most 1")
        if not 0 < self.repetition_penalty < math.inf:
            yield Problem("repetition_penalty", self.repetition_penalty, "give a number above 0; 1 is no penalty")
        for text in self.stop:
            if not text:
                yield Problem("stop", repr(text), "an empty text is everywhere; give one to stop before")
