"""A stream whose files are divided into shares, of which a rank reads those alone that its rows come from.

Row r of each step's R is of share r * N // R, so a share gives R / N rows of every step, to whichever ranks have them:
what is in a step depends on N and R and not on the number of processes. No rank knows where the shares of others are,
so none ever ends: one that is through begins again. A checkpoint has the places of all, from those who know them
(`whole_position`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.order.packed_sequences import PackedSequences, SequencePlace


class SharedSequences:
    """The sequences of all shares, in the order of rows; those of others are gone past unread.

    Args:
        open_share: (number of a share, its state or None) → its sequences, without end.
        num_shares: N.
        num_rows: sequences of a step, over all ranks; a multiple of N (`check_shares`).
        own: the rows that are read here.
        state: of earlier ones, after whole steps, by `whole_position`.
    """

    ended = False

    def __init__(
        self,
        open_share: Callable[[int, dict | None], PackedSequences],
        num_shares: int,
        num_rows: int,
        own: slice,
        max_length: int,
        state: dict | None = None,
    ):
        self._rows_each, self._num_rows, self._length = num_rows // num_shares, num_rows, max_length
        self._states: list[dict | None] = list(state["shares"]) if state else [None] * num_shares
        mine = sorted({row // self._rows_each for row in range(num_rows)[own]})
        self._shares = {number: open_share(number, self._states[number]) for number in mine}
        self._row = 0

    @property
    def num_epochs_done(self) -> int:
        return min(share.num_epochs_done for share in self._shares.values())

    @property
    def num_bad_lines(self) -> int:
        return sum(share.num_bad_lines for share in self._shares.values())

    def advance(self) -> SequencePlace:
        share = self._shares.get(self._row // self._rows_each)
        self._row = (self._row + 1) % self._num_rows
        return share.advance() if share is not None else SequencePlace(self._length, None)

    def read(self, place: SequencePlace) -> np.ndarray:
        return place.where

    def state(self) -> dict:
        known = {number: share.state() for number, share in self._shares.items()}
        return {"shares": [known.get(number) for number in range(len(self._states))]}


def check_shares(num_shares: int, num_rows: int) -> None:
    """Raises ConfigurationError where shares do not divide the rows of a step."""
    if num_rows % num_shares:
        raise ConfigurationError(
            f"--stream_shares {num_shares} does not divide the global batch of {num_rows} sequences; give a divisor"
        )


def whole_position(position: dict | None, gather: Callable[[dict], Sequence[dict]]) -> dict | None:
    """A rank's position with what other ranks alone know, where there are shares; all ranks call it together.

    Args:
        gather: gives what every rank gave it.
    """
    sources = (position or {}).get("sources", {})
    if not any("shares" in source for source in sources.values()):
        return position
    there = gather(position)
    found = {}
    for name, source in sources.items():
        places = zip(*(other["sources"][name]["shares"] for other in there), strict=True)
        shares = [next(place for place in of_share if place is not None) for of_share in places]
        found[name] = {**source, "shares": shares, "epochs": min(share["epoch"] for share in shares)}
    bad_lines = sum(share["bad_lines"] for source in found.values() for share in source["shares"])
    return {**position, "sources": found, "bad_lines": bad_lines}
