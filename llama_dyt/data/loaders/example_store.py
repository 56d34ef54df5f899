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
    """[BOS] + prompt + completion + [EOS], cut at max_length; the first `num_prompt` tokens carry no loss."""

    tokens: np.ndarray
    num_prompt: int

    @property
    def num_label_tokens(self) -> int:
        """Targets: the completion's tokens, except one that nothing precedes."""
        return len(self.tokens) - max(self.num_prompt, 1)


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
        self._num_prompt = array("i")

    def __len__(self) -> int:
        return len(self._num_prompt)

    def append(self, example: Example) -> None:
        try:
            self._file.write(example.tokens.astype(np.int32).tobytes())
        except OSError as error:
            raise _no_room(error) from error
        self._stops.append(self._stops[-1] + len(example.tokens))
        self._num_prompt.append(example.num_prompt)

    def finish(self) -> None:
        """What was appended can be read from here on."""
        try:
            self._file.flush()
        except OSError as error:
            raise _no_room(error) from error

    def __getitem__(self, number: int) -> Example:
        start, stop = self._stops[number], self._stops[number + 1]
        data = os.pread(self._file.fileno(), 4 * (stop - start), 4 * start)
        return Example(np.frombuffer(data, np.int32), self._num_prompt[number])

    def sizes(self, numbers: np.ndarray) -> tuple[int, int]:
        """(tokens, targets) of some examples together; nothing is read for it."""
        stops, prompts = np.frombuffer(self._stops, np.int64), np.frombuffer(self._num_prompt, np.int32)
        tokens = int((stops[numbers + 1] - stops[numbers]).sum())
        return tokens, tokens - int(np.maximum(prompts[numbers], 1).sum())


def _no_room(error: OSError) -> DataError:
    return DataError(
        f"{tempfile.gettempdir()}: the tokenized examples cannot be kept there ({error.strerror or error}); set TMPDIR "
        "to a folder with room for four bytes a token"
    )
