"""A thread in every process of a run that knows whether the others live, and ends this one when one of them fails.

A rank in a collective cannot be told anything: it waits for what will not come. So each rank writes a beat to the
run's store every second, with what it is about, and looks there whether a rank has told of a failure. Rank 0 looks at
all beats, the others at rank 0's. A beat that stops means that a process is stopped or gone; of one on its own machine
a rank knows that at once.

Seconds are counted in looks, not on the clock: a machine that was suspended has not waited.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch.distributed as dist

from llama_dyt.core import rendezvous
from llama_dyt.core.console import say
from llama_dyt.core.place import Place
from llama_dyt.core.processes import start_time
from llama_dyt.core.rendezvous import ranks_in_words, who_is

LOOK_SECONDS = 1.0
LINGER_SECONDS = 5.0
"""How long the process with the store waits for all to have read of a failure before it takes the store away."""
FAILED_STATUS = 1


@dataclass
class Beat:
    """What a rank tells of itself.

    Attributes:
        number: grows with every beat.
        meetings: collectives of bookkeeping that it has come to, the one it is in included.
        waits_in: the one it is in; None outside of one.
        busy_with: work that takes as long as it takes, which others wait for while it beats; None for none.
        left: it is done, and no longer waited for.
    """

    number: int = 0
    meetings: int = 0
    waits_in: str | None = None
    busy_with: str | None = None
    left: bool = False


class Watch(threading.Thread):
    """The thread. Everything but `run` and what it calls is for the main thread."""

    def __init__(self, store: dist.Store, place: Place, timeout: float) -> None:
        """`store`: a connection that nobody else uses."""
        super().__init__(name="llama_dyt-ranks", daemon=True)
        self.place = place
        self._store = store
        self._timeout = timeout
        self._mine = Beat()
        self._lock = threading.RLock()  # the store's connection and the beat
        self._closed = threading.Event()
        self._ending = threading.Lock()
        self._together = False
        self._told = False  # of a failure, by this rank
        self.ending_status: int | None = None
        self._to_undo: list[Callable[[], Any]] = []
        self._neighbour: tuple[int, dict[str, Any]] | None = None
        self._last: dict[int, Beat] = {}
        self._silent: dict[int, int] = {}  # looks since a rank's last new beat
        self._late: tuple[int, list[int]] = (0, [])
        self._late_looks = 0
        self._beat()

    # --- for the main thread ---------------------------------------------------------------------------------------

    def all_came(self) -> None:
        """From now on every rank is expected to live."""
        self._neighbour = self._find_neighbour()
        self._together = True

    @contextmanager
    def meeting(self, what: str) -> Iterator[None]:
        """This rank is in a collective of bookkeeping."""
        with self._lock:
            self._mine.meetings += 1
            self._mine.waits_in = what
        yield  # after an exception this rank is not expected anywhere any more
        self._mine.waits_in = None

    @contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """This rank does what others wait for however long it takes; its beat says that it lives."""
        before, self._mine.busy_with = self._mine.busy_with, what
        try:
            yield
        finally:
            self._mine.busy_with = before

    @contextmanager
    def undoing(self, action: Callable[[], Any]) -> Iterator[None]:
        """What to do if this process is ended while it is inside."""
        self._to_undo.append(action)
        try:
            yield
        finally:
            self._to_undo.remove(action)

    def undo_at_end(self, action: Callable[[], Any]) -> None:
        """What to do if this process is ended at any time from here on."""
        self._to_undo.append(action)

    def tell(self, message: str, status: int) -> bool:
        """Tell all ranks that the run has failed.

        Returns:
            Whether this rank was the first to; only that one prints its message.
        """
        with self._lock:
            self._told = True
            return tell(self._store, self.place.rank, message, status)

    def failure(self) -> dict[str, Any] | None:
        """What a rank has told of a failure: its "rank", "message" and "status"."""
        with self._lock:
            return told_failure(self._store)

    def add(self, key: str, amount: int) -> int:
        """Add to a number that all ranks have; gives what it is then."""
        with self._lock:
            return self._store.add(key, amount)

    def settle(self, key: str, value: str) -> str:
        """Decide something for all ranks; gives what was decided first."""
        with self._lock:
            return self._store.compare_set(key, "", value).decode()

    def linger(self) -> None:
        """Before this process ends after a failure: let all read of it."""
        with suppress(dist.DistError):
            linger(self._store, self.place, LINGER_SECONDS)

    def leave(self) -> None:
        """End the watch in good order. The process with the store waits until all have, or one has failed."""
        self._mine.left = True
        with suppress(dist.DistError):
            self._beat()
            deadline = time.monotonic() + self._timeout
            while self.place.hosts and time.monotonic() < deadline:
                if all(beat.left for beat in self._all_beats().values()):
                    break
                time.sleep(LOOK_SECONDS / 20)
        self._closed.set()
        self.join()

    # --- the thread ------------------------------------------------------------------------------------------------

    def run(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            try:
                self._beat()
                self._look()
            except dist.DistError as error:
                if not self._closed.is_set():
                    self._without_store(error)

    def _beat(self) -> None:
        with self._lock:
            self._mine.number += 1
            self._store.set(f"beat/{self.place.rank}", json.dumps(vars(self._mine)))

    def _all_beats(self) -> dict[int, Beat]:
        ranks = range(self.place.world_size)
        with self._lock:
            beats = self._store.multi_get([f"beat/{rank}" for rank in ranks])
        return {rank: Beat(**json.loads(beat)) for rank, beat in zip(ranks, beats, strict=True)}

    def _look(self) -> None:
        gone = self._together and self._neighbour_is_gone()
        failure = self.failure()
        if failure is not None:
            if not self._told:
                self.end_process(failure["status"])
            return
        if gone:
            rank, about = self._neighbour
            self._fail(
                f"rank {rank} (process {about['pid']} on {about['host']}) is gone and has said nothing: it was killed "
                "from outside, most often for want of memory (dmesg tells), or crashed"
            )
        if not self._together:
            return
        if self.place.rank == 0:
            beats = self._all_beats()
        else:
            with self._lock:
                beats = {0: Beat(**json.loads(self._store.get("beat/0")))}
        beats.pop(self.place.rank, None)
        self._look_for_silence(beats)
        if self.place.rank == 0:
            self._look_for_laggards({**beats, 0: self._mine})

    def _look_for_silence(self, beats: dict[int, Beat]) -> None:
        for rank, beat in beats.items():
            same = rank in self._last and beat.number == self._last[rank].number and not beat.left
            self._silent[rank] = self._silent.get(rank, 0) + 1 if same else 0
        self._last = beats
        looks = max(self._silent.values(), default=0)
        if looks * LOOK_SECONDS >= self._timeout:
            self._fail(
                f"{self._in_words(self._silent_for(looks))} gave no sign of life for {self._timeout:g} s (--timeout): "
                "lost with its machine or the network, or stopped"
            )
        if self.place.rank <= 1 and self._is_worth_saying(looks):
            say(
                f"{self.place} has had no sign of life of {self._in_words(self._silent_for(looks))} for "
                f"{looks * LOOK_SECONDS:.0f} s; it gives up after {self._timeout:g} s (--timeout)"
            )

    def _silent_for(self, looks: int) -> list[int]:
        return [rank for rank, count in self._silent.items() if count == looks]

    def _look_for_laggards(self, beats: dict[int, Beat]) -> None:
        """Whether some wait in a collective of bookkeeping to which others have not come."""
        here = {rank: beat for rank, beat in beats.items() if beat.waits_in is not None}
        top = max((beat.meetings for beat in here.values()), default=0)
        late = [rank for rank, beat in beats.items() if not beat.left and beat.meetings < top]
        if any(beats[rank].busy_with is not None for rank in late):
            late = []
        self._late_looks = self._late_looks + 1 if late and self._late == (top, late) else 0
        self._late = top, late
        seconds = self._late_looks * LOOK_SECONDS
        what = next((beat.waits_in for beat in here.values() if beat.meetings == top), "")
        if late and seconds >= self._timeout:
            self._fail(
                f"{self._in_words(late)} did not come to where the others waited {self._timeout:g} s (--timeout) for "
                f"it: {what}"
            )
        if late and self._is_worth_saying(self._late_looks):
            say(
                f"waiting for {self._in_words(late)} since {seconds:.0f} s: {what}; giving up after "
                f"{self._timeout:g} s (--timeout)"
            )

    def _is_worth_saying(self, looks: int) -> bool:
        first = max(round(rendezvous.SAY_AFTER_SECONDS / LOOK_SECONDS), 1)
        times = looks // first
        return looks % first == 0 and times > 0 and times & (times - 1) == 0  # 1, 2, 4, 8 times as long

    def _in_words(self, ranks: list[int]) -> str:
        words = ranks_in_words(ranks)
        with self._lock:
            hosts = {who_is(self._store, rank)["host"] for rank in ranks[:8]}
        return f"{words} ({', '.join(sorted(hosts))})"

    def _find_neighbour(self) -> tuple[int, dict[str, Any]] | None:
        """The next rank of this machine, counted round: so that each is looked at by one."""
        with self._lock:
            mine = who_is(self._store, self.place.rank)["machine"]
            after = self.place.rank + 1
            if after < self.place.world_size and (found := who_is(self._store, after))["machine"] == mine:
                return (after, found) if mine else None
            first = None
            for rank in range(self.place.rank - 1, -1, -1):
                found = who_is(self._store, rank)
                if not mine or found["machine"] != mine:
                    break
                first = rank, found
            return first

    def _neighbour_is_gone(self) -> bool:
        if self._neighbour is None:
            return False
        rank, about = self._neighbour
        if start_time(about["pid"]) == about["started"]:
            return False
        with self._lock:
            return not json.loads(self._store.get(f"beat/{rank}"))["left"]

    def _fail(self, message: str) -> NoReturn:
        if self.tell(message, FAILED_STATUS):
            say(f"error: {message}")
        self.end_process(FAILED_STATUS)

    def _without_store(self, error: Exception) -> NoReturn:
        """The process with the store is gone, so nobody can be asked any more."""
        if self.place.speaks_without_first and not self._told:
            say(
                f"error: {self.place} lost {self.place.address}:{self.place.port}, over which the ranks talk "
                f"({str(error).splitlines()[0][:200]}): the process there, or its machine, is gone"
            )
        self.end_process(FAILED_STATUS)

    def end_process(self, status: int) -> NoReturn:
        """End at once: the main thread may be in a collective that never ends. The first of both threads does it."""
        self._ending.acquire()
        self.ending_status = status
        for action in reversed(self._to_undo):
            with suppress(Exception):
                action()
        self.linger()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def tell(store: dist.Store, rank: int, message: str, status: int) -> bool:
    """Put a failure where all ranks look; False if one was there already."""
    mine = json.dumps({"rank": rank, "message": message, "status": status})
    return store.compare_set("failure", "", mine) == mine.encode()


def told_failure(store: dist.Store) -> dict[str, Any] | None:
    return json.loads(store.get("failure")) if store.check(["failure"]) else None


def linger(store: dist.Store, place: Place, seconds: float) -> None:
    """Say that this process has read of the failure; the one with the store waits, for so long, until all have."""
    seen = store.add("failure seen", 1)
    deadline = time.monotonic() + seconds
    while place.hosts and seen < place.world_size and time.monotonic() < deadline:
        time.sleep(0.1)
        seen = store.add("failure seen", 0)
