"""Which checkpoints of a run stay: the newest few, and those of round steps. Imports no torch: the writing process of
an asynchronous save does it too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from llama_dyt.core.marker import find_steps, is_whole
from llama_dyt.core.store import Location, store_of


@dataclass(frozen=True)
class Keep:
    """
    Attributes:
        last: so many of the newest; None for all.
        every: those whose step is a multiple of it stay as well; None for none.
    """

    last: int | None = None
    every: int | None = None

    def remove_others(self, save_dir: Location, step: int, say: Callable[[str], None]) -> None:
        """Remove what is not to stay, now that the checkpoint of `step` is whole. Only for who holds the folder.

        What is not whole is left alone, and so are later steps: they are another course of the run.
        """
        if self.last is None:
            return
        # By name first: of a store far away each look at a marker is a request.
        steps = {number: folder for number, folder in find_steps(save_dir).items() if number <= step}
        whole = [number for number, folder in sorted(steps.items(), reverse=True) if is_whole(folder)]
        for number in sorted(whole[self.last :]):
            if self.every is None or number % self.every:
                store_of(save_dir).remove(steps[number])
                say(f"removed {steps[number]} (--keep_last {self.last})")
