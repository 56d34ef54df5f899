"""The other ranks of this machine: whether they are there, are stopped, where they stand, and how those end that cannot
end themselves.

A process that is stopped (SIGSTOP, Ctrl-Z) neither beats nor heeds a launcher's SIGTERM: torchrun waits half a minute
for it. So the ranks that end kill it, and nothing but processes of this very run: known by pid and time of beginning.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llama_dyt.core.environment import read_environment
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.place import Place
from llama_dyt.core.processes import began_with, children, kill, start_time, state
from llama_dyt.core.standing import Board, Standing

STOPPED_SECONDS = 15.0
"""How long a rank may be stopped before the run ends, where --timeout is not less: a job that is suspended as a whole
stops and goes on at once, and who stops one rank of many by hand has ended the run."""
STOPPED_AT_START_SECONDS = 5.0
"""The same before the first meeting, of which nothing is lost: who waits there has taken its time to come."""
_STOPPED = "T"
_NAMES_OF_A_RUN = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "WORLD_SIZE",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_RESTART_COUNT",
    "SLURM_JOB_ID",
    "SLURM_STEP_ID",
    "SLURM_STEP_NUM_TASKS",
)
"""Variables that all ranks of a run on one machine have alike, and no two runs with one parent."""


@dataclass(frozen=True)
class Peer:
    """Another rank of this machine.

    Attributes:
        started: as of `processes.Process`; pid and it are one process for good.
    """

    rank: int
    pid: int
    started: int

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {socket.gethostname()})"

    @property
    def is_gone(self) -> bool:
        return start_time(self.pid) != self.started

    @property
    def is_stopped(self) -> bool:
        return state(self.pid, self.started) == _STOPPED

    @property
    def fate(self) -> str:
        """Why it cannot speak; empty where it can."""
        return "gone" if self.is_gone else "stopped" if self.is_stopped else ""

    def kill(self) -> None:
        kill(self.pid, self.started)


class Peers:
    """Those that came to the run, with a board each."""

    def __init__(self, abouts: Mapping[int, dict[str, Any]]) -> None:
        """`abouts`: by rank, what each has told of itself (`rendezvous.who_is`)."""
        self._all = [Peer(rank, about["pid"], about["started"]) for rank, about in sorted(abouts.items())]
        self._boards = {rank: Board(about["pid"], about.get("board")) for rank, about in abouts.items()}
        self._stopped = StoppedFor()

    def __iter__(self) -> Iterator[Peer]:
        return iter(self._all)

    def gone(self) -> list[Peer]:
        """Those that are no longer there."""
        return [peer for peer in self._all if peer.is_gone]

    def stopped_for(self, looks: int) -> list[Peer]:
        """Those that were stopped whenever this was called, so many times; to be called once a look."""
        return self._stopped.for_so_many(looks, [peer for peer in self._all if peer.is_stopped])

    def standing(self, peer: Peer) -> Standing | None:
        """Where it stands, or stood last."""
        return self._boards[peer.rank].read()

    def kill(self, ranks: Iterable[int] = ()) -> None:
        """End those that are stopped, and those of `ranks`."""
        for peer in self._all:
            if peer.is_stopped or (peer.rank in ranks and not peer.is_gone):
                peer.kill()


class StoppedFor:
    """For how many looks on end processes have been stopped."""

    def __init__(self) -> None:
        self._looks: dict[Peer, int] = {}

    def for_so_many(self, looks: int, stopped: Iterable[Peer]) -> list[Peer]:
        """Count those that are stopped now; those for whom it is the `looks`th time on end, or a later one."""
        self._looks = {peer: self._looks.get(peer, 0) + 1 for peer in stopped}
        return [peer for peer, count in self._looks.items() if count >= looks]


def stopped_siblings(place: Place) -> list[Peer]:
    """Ranks that the launcher started on this machine beside this one and that are stopped, whether they have come to
    the run or not: the children of its parent with a rank of the same run."""
    if place.world_size == 1:
        return []
    own, found = began_with(os.getpid()), []
    run = {name: own.get(name) for name in _NAMES_OF_A_RUN}
    for pid in children(of=os.getppid()):
        started = start_time(pid)
        if pid == os.getpid() or started is None or state(pid, started) != _STOPPED:
            continue
        theirs = began_with(pid)
        try:
            there = read_environment(theirs).place
        except ConfigurationError:
            continue
        if {name: theirs.get(name) for name in run} == run and there.rank != place.rank and there.world_size > 1:
            found.append(Peer(there.rank, pid, started))
    return found


def kill_stopped_siblings(place: Place) -> None:
    """End those: this process ends, and they could not be told."""
    for sibling in stopped_siblings(place):
        sibling.kill()


def stopped_in_words(peers: Iterable[Peer], seconds: float) -> str:
    """Why the run ends."""
    named = list(peers)
    has, it = ("has", "it") if len(named) == 1 else ("have", "they")
    return (
        f"{', '.join(map(str, named))} {has} been stopped for {seconds:.0f} s at least (by SIGSTOP or a terminal's "
        f"Ctrl-Z): the others cannot go on without, so {it} will be ended with them"
    )
