"""Where the processes of a run find each other: one key-value store, and a wait for all of them that is never silent.

The store is rank 0's, or torchrun's where that has one. Everything else that ranks say to each other goes through it or
through groups that are made with it.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from llama_dyt.core import standing
from llama_dyt.core.connections import connections, give_up_after
from llama_dyt.core.console import say
from llama_dyt.core.errors import ConfigurationError, TrainingError
from llama_dyt.core.peers import STOPPED_AT_START_SECONDS, StoppedFor, stopped_in_words, stopped_siblings
from llama_dyt.core.place import Place
from llama_dyt.core.processes import boot_id, pid_namespace, start_time

SAY_AFTER_SECONDS = 30.0
"""How long a wait for other ranks stays silent; it is told again whenever it has lasted twice as long."""
_FIRST_POLL_SECONDS = 0.01
_LONGEST_POLL_SECONDS = 0.5
_PROBE_SECONDS = 5.0
_LOOK_SECONDS = 1.0


class NobodyListens(TrainingError):
    """Rank 0 could not be reached, so it can be told nothing either."""


class Waiting:
    """The patience of one wait: when to say that it lasts, and when it has lasted too long."""

    def __init__(self, place: Place, timeout: float) -> None:
        self._place = place
        self._timeout = timeout
        self._start = self._looked = time.monotonic()
        self._say_at = SAY_AFTER_SECONDS
        self._stopped = StoppedFor()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    @property
    def is_over(self) -> bool:
        return self.seconds >= self._timeout

    @property
    def is_worth_saying(self) -> bool:
        """True once after SAY_AFTER_SECONDS, after twice as long, and so on."""
        if self.seconds < self._say_at:
            return False
        self._say_at *= 2
        return True

    def look_for_stopped(self) -> None:
        """Whether a rank of this machine is stopped, so that the wait is for nothing; looks once a second.

        Raises:
            TrainingError: one has been for too long.
        """
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        patience = min(STOPPED_AT_START_SECONDS, self._timeout)
        stopped = self._stopped.for_so_many(round(patience / _LOOK_SECONDS), stopped_siblings(self._place))
        if stopped:
            raise TrainingError(stopped_in_words(stopped, patience))


def connect(place: Place, timeout: float, quiet: bool = False) -> dist.Store:
    """A connection of its own to the store of the run, which rank 0 opens by this.

    Args:
        timeout: seconds to wait for rank 0 to listen.
        quiet: say nothing of the wait.

    Raises:
        ConfigurationError: the port is taken.
        NobodyListens: rank 0 did not in time.
        TrainingError: a rank of this machine is stopped.
    """
    if place.hosts:
        store = _listen(place, timeout)
    else:
        _wait_for_listener(place, timeout, quiet)
        store = _client(place, timeout)
    return _of_this_start(store)


def connect_again(place: Place, timeout: float) -> dist.Store:
    """A second connection, for a thread: calls on one wait for each other."""
    return _of_this_start(_client(place, timeout))


def _of_this_start(store: dist.Store) -> dist.Store:
    # torchrun's store outlives workers that it starts again; what the earlier ones left in it is not theirs.
    return dist.PrefixStore(f"llama_dyt/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _client(place: Place, timeout: float) -> dist.Store:
    before = connections()
    store = dist.TCPStore(
        place.address, place.port, is_master=False, timeout=timedelta(seconds=timeout), wait_for_workers=False
    )
    for number in connections() - before:
        give_up_after(number, timeout)
    return store


def _listen(place: Place, timeout: float) -> dist.Store:
    try:
        return dist.TCPStore(
            place.address, place.port, is_master=True, timeout=timedelta(seconds=timeout), wait_for_workers=False
        )
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ConfigurationError(
            f"port {place.port} of {socket.gethostname()} is taken, so rank 0 cannot listen there: give another "
            "(--master_port of the launcher, or MASTER_PORT), or end what holds it"
        ) from None


def _wait_for_listener(place: Place, timeout: float, quiet: bool) -> None:
    waiting, poll = Waiting(place, timeout), _FIRST_POLL_SECONDS
    while True:
        left = timeout - waiting.seconds
        try:
            socket.create_connection((place.address, place.port), timeout=max(min(_PROBE_SECONDS, left), 0.1)).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
        where = f"rank 0 at {place.address}:{place.port}"
        if waiting.is_over:
            raise NobodyListens(
                f"{place} waited {timeout:g} s (--timeout) for {where} ({reason}): start rank 0 too, see what it "
                "printed, and check that its address can be reached from here (MASTER_ADDR, MASTER_PORT)"
            )
        if waiting.is_worth_saying and not quiet and place.speaks_without_first:
            say(
                f"{place} has waited {waiting.seconds:.0f} s for {where} ({reason}); it gives up after {timeout:g} s "
                "(--timeout)"
            )
        waiting.look_for_stopped()
        time.sleep(poll)
        poll = min(poll * 1.5, _LONGEST_POLL_SECONDS)


def meet(store: dist.Store, place: Place, timeout: float, about: dict[str, Any]) -> None:
    """Come together: returns once every rank has come here. `about`: what the others shall know of this one.

    Raises:
        TrainingError: some have not within `timeout` seconds; it says which. Or one of this machine is stopped.
    """
    store.set(f"here/{place.rank}", json.dumps({"host": socket.gethostname(), **_process(), **about}))
    if store.add("here", 1) == place.world_size:
        store.set("all here", "")
    waiting, poll = Waiting(place, timeout), _FIRST_POLL_SECONDS
    while not store.check(["all here"]):
        if waiting.is_over:
            raise TrainingError(
                f"waited {timeout:g} s (--timeout) for {_missing(store, place)} of {place.world_size} at "
                f"{place.address}:{place.port}: see what {'they' if place.world_size > 2 else 'it'} printed, start as "
                "many processes as were announced (WORLD_SIZE, --nproc_per_node, --ntasks), or give a longer --timeout"
            )
        if waiting.is_worth_saying and _is_lowest(store, place):
            say(
                f"{place} has waited {waiting.seconds:.0f} s for {_missing(store, place)} of {place.world_size} to "
                f"come to {place.address}:{place.port}; it gives up after {timeout:g} s (--timeout)"
            )
        waiting.look_for_stopped()
        time.sleep(poll)
        poll = min(poll * 1.5, _LONGEST_POLL_SECONDS)


def _process() -> dict[str, Any]:
    """Who this process is to others of its machine; the machine is None where they could not look."""
    boot, namespace = boot_id(), pid_namespace()
    machine = None if boot is None or namespace is None else f"{boot} {namespace}"
    return {"machine": machine, "pid": os.getpid(), "started": start_time(os.getpid()), "board": standing.share()}


def who_is(store: dist.Store, rank: int) -> dict[str, Any]:
    """What a rank told of itself when it came."""
    return json.loads(store.get(f"here/{rank}"))


def _is_lowest(store: dist.Store, place: Place) -> bool:
    """Whether this is the one of those who came that speaks for them."""
    return not any(store.check([f"here/{rank}"]) for rank in range(place.rank))


def _missing(store: dist.Store, place: Place) -> str:
    return ranks_in_words([rank for rank in range(place.world_size) if not store.check([f"here/{rank}"])])


def ranks_in_words(ranks: Sequence[int]) -> str:
    """[0, 2, 3, 4] as "ranks 0, 2-4"."""
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][-1] + 1:
            runs[-1].append(rank)
        else:
            runs.append([rank])
    words = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
    return f"rank{'s' if len(ranks) > 1 else ''} {words}"
