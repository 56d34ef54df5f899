"""Which short examples share a sequence: put together once, so that every epoch shuffles whole sequences."""

from __future__ import annotations

import numpy as np


class Packs:
    """Examples by the sequence they are in.

    Best fit decreasing: the longest example first, each into the fullest sequence that has room. An example more is
    wasted in eleven ninths of the fewest sequences at worst (Johnson 1974), far less where short ones are many.

    Args:
        lengths: tokens of each example, int64, none above `room`.
        room: tokens of a sequence.
    """

    def __init__(self, lengths: np.ndarray, room: int) -> None:
        rows: list[list[int]] = []
        with_space: dict[int, list[int]] = {}  # tokens left → rows with just so many
        spaces = 0  # bit n: some row has n tokens left
        for number in np.argsort(-lengths, kind="stable").tolist():
            length = int(lengths[number])
            enough = spaces >> length
            if enough:
                space = length + (enough & -enough).bit_length() - 1
                row = with_space[space].pop()
                if not with_space[space]:
                    spaces &= ~(1 << space)
                rows[row].append(number)
            else:
                space, row = room, len(rows)
                rows.append([number])
            with_space.setdefault(space - length, []).append(row)
            spaces |= 1 << (space - length)
        self._order = np.array([number for row in rows for number in row], np.int64)
        self._stops = np.cumsum([0, *map(len, rows)])

    def __len__(self) -> int:
        return len(self._stops) - 1

    def __getitem__(self, number: int) -> np.ndarray:
        """The examples of a sequence, int64."""
        return self._order[self._stops[number] : self._stops[number + 1]]
