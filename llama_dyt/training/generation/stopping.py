"""Where a continuation ends and how it is shown while it grows: by texts, which tokens may cut anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

_UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are no character yet."""

Decode = Callable[[int, list[int]], str]
"""(row, its new tokens) → their text."""


def cut_at(text: str, stops: Sequence[str]) -> str:
    """What of a text is before the first of `stops`."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(places)] if places else text


def settled(text: str, stops: Sequence[str]) -> str:
    """What of a growing text can be shown: not a character's first bytes, nor what may yet become a stop."""
    text = text.rstrip(_UNFINISHED)
    longest = max((len(stop) for stop in stops), default=0)
    for size in range(min(longest - 1, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return text[:-size]
    return text


class StopAtTexts(StoppingCriteria):
    """Ends each row of a batch when its continuation holds one of some texts.

    Args:
        prompt_length: tokens of a row before its continuation, padding included.
    """

    def __init__(self, stops: Sequence[str], prompt_length: int, decode: Decode) -> None:
        self._stops, self._prompt_length, self._decode = tuple(stops), prompt_length, decode
        self._found: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs) -> torch.Tensor:
        for row, ids in enumerate(input_ids[:, self._prompt_length :].tolist()):
            if row not in self._found and any(stop in self._decode(row, ids) for stop in self._stops):
                self._found.add(row)
        done = [row in self._found for row in range(len(input_ids))]
        return torch.tensor(done, device=input_ids.device)


class RepetitionPenalty(LogitsProcessor):
    """As transformers' own, but padding on the left, which is EOS here, counts for nothing.

    Args:
        padding: how many tokens of each row are padding, (batch,).
    """

    def __init__(self, penalty: float, padding: torch.Tensor) -> None:
        self._penalty, self._padding = penalty, padding

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        there = torch.zeros_like(scores, dtype=torch.bool)
        for row, padding in enumerate(self._padding.tolist()):
            there[row, input_ids[row, padding:]] = True
        penalised = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        return torch.where(there, penalised, scores)


class TextStream(BaseStreamer):
    """Hands on the text of one continuation as it grows, in whole characters, up to where it stops.

    Args:
        decode: new tokens → their text, up to the end of the document.
        show: takes what was added.
    """

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str], show: Callable[[str], None]) -> None:
        self._decode, self._stops, self._show = decode, tuple(stops), show
        self._ids: list[int] | None = None
        self._shown = 0

    def put(self, value: torch.Tensor) -> None:
        if self._ids is None:  # the prompt comes first
            self._ids = []
            return
        self._ids += value.flatten().tolist()
        whole = cut_at(self._decode(self._ids), self._stops)
        self._add(settled(whole, self._stops))

    def end(self) -> None:
        self._add(cut_at(self._decode(self._ids or []), self._stops))

    def _add(self, text: str) -> None:
        if len(text) > self._shown:
            self._show(text[self._shown :])
            self._shown = len(text)
