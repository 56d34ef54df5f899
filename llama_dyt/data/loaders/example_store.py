"""Tokenized examples in a file without a name: of each a rank keeps twelve bytes in memory, and reads what it needs."""

from __future__ import annotations

import os
import tempfile
from array import array
from dataclasses import dataclass

import numpy as np

from llama_dyt.core.errors import DataError


@dataclass(frozen=True)
class Example:
    """The tokens of one example, cut at max_length, and which of them are learned: bool, as long."""

    tokens: np.ndarray
    learned: np.ndarray

    @classmethod
    def behind(cls, tokens: np.ndarray, num_prompt: int) -> Example:
        """[BOS] + prompt + completion + [EOS], of which the first `num_prompt` tokens are not learned."""
        return cls(tokens, np.arange(len(tokens)) >= num_prompt)

    @property
    def num_label_tokens(self) -> int:
        """Targets: what is learned, except a token that nothing precedes."""
        return int(self.learned[1:].sum())


class ExampleStore:
    """Examples that are appended once and then read by their number. Threads may share it.

    The file lies in the system's folder for temporary files (TMPDIR) and is gone with the process, however that ends.

    Raises:
        DataError: there is no room for it.
    """

    def __init__(self) -> None:
        try:
            self._file = tempfile.TemporaryFile(prefix="llama_dyt-")  # noqa: SIM115 - as long as the store
        except OSError as error:
            raise _no_room(error) from error
        self._stops = array("q", [0])  # in tokens
        self._num_targets = array("i")

    def __len__(self) -> int:
        return len(self._num_targets)

    def append(self, example: Example) -> None:
        try:
            # An id that is not learned is kept as its complement, below 0: the mask takes no room.
            tokens = example.tokens.astype(np.int32)
            self._file.write(np.where(example.learned, tokens, ~tokens).tobytes())
        except OSError as error:
            raise _no_room(error) from error
        self._stops.append(self._stops[-1] + len(example.tokens))
        self._num_targets.append(example.num_label_tokens)

    def finish(self) -> None:
        """What was appended can be read from here on."""
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from error

    def __getitem__(self, number: int) -> Example:
        start, stop = self._stops[number], self._stops[number + 1]
        data = os.pread(self._file.fileno(), 4 * (stop - start), 4 * start)
        kept = np.frombuffer(data, np.int32)
        return Example(np.where(kept < 0, ~kept, kept), kept >= 0)

    def sizes(self, numbers: np.ndarray) -> tuple[int, int]:
        """(tokens, targets) of some examples together; nothing is read for it."""
        stops, targets = np.frombuffer(self._stops, np.int64), np.frombuffer(self._num_targets, np.int32)
        return int((stops[numbers + 1] - stops[numbers]).sum()), int(targets[numbers].sum())

    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64."""
        return np.diff(np.frombuffer(self._stops, np.int64))


def _no_room(error: OSError) -> DataError:
    return DataError(
        f"{tempfile.gettempdir()}: the tokenized examples cannot be kept there ({error.strerror or error}); set TMPDIR "
        "to a folder with room for four bytes a token"
    )
