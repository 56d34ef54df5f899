"""Ranks that wait, each for something of its own, and may agree to wait no longer.

Nobody can be made to come: a rank that has what it waited for goes on, into collectives that others are to join. So all
may stay only if all are seen to wait, and what was decided first holds: the last to come has them all stay, unless one
that was here has gone on before.
"""

from __future__ import annotations

from llama_dyt.core import ranks

_ASKED = "standstill/asked"


class Standstill:
    """A place that every rank of a run comes by; asked in a rank's own time, not collectively.

    Args:
        name: of the place; no other of the run has it.
    """

    def __init__(self, name: str) -> None:
        self._watch = ranks.watch()
        self._here, self._decided = f"standstill/{name}/here", f"standstill/{name}/decided"
        if self._watch is not None:
            self._watch.add(self._here, 1)

    def all_stay(self) -> bool:
        """Whether all ranks are here, and none of them goes on."""
        if self._watch is None:
            return True
        if self._watch.add(self._here, 0) < self._watch.place.world_size:
            return False
        return self._watch.settle(self._decided, "stay") == "stay"

    def may_go(self) -> bool:
        """Whether this rank goes on, and no rank will be told to stay; False where they were."""
        return self._watch is None or self._watch.settle(self._decided, "go") == "go"


def asked_anywhere(here: bool) -> bool:
    """Whether this rank, or one that has called this before, was asked to end."""
    watch = ranks.watch()
    return here if watch is None else watch.add(_ASKED, int(here)) > 0
