"""A thread in every process of a run that knows whether the others live, and ends this one when one of them fails.

A rank in a collective cannot be told anything: it waits for what will not come. So each rank writes a beat to the
run's store every second, with what it is about, and looks there whether a rank has told of a failure. Rank 0 looks at
all beats, the others at rank 0's. A beat that stops means that a process is stopped or gone; of those on its own
machine (`peers`) a rank knows that at once. When the run fails, all say where they stood before they end (`accounts`).

Seconds are counted in looks, not on the clock: a machine that was suspended has not waited.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch.distributed as dist

from llama_dyt.core import accounts, rendezvous
from llama_dyt.core.accounts import Account, account_of, own_account
from llama_dyt.core.console import say
from llama_dyt.core.device_wait import DeviceWait
from llama_dyt.core.failure import Failure, linger, tell, told_failure
from llama_dyt.core.peers import STOPPED_SECONDS, Peer, Peers, kill_stopped_siblings, stopped_in_words
from llama_dyt.core.place import Place
from llama_dyt.core.processes import heed_no_more
from llama_dyt.core.rendezvous import ranks_in_words, who_is
from llama_dyt.core.standing import Phase, Standing, mine
from llama_dyt.core.store import Location
from llama_dyt.core.undoing import Undoing

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
        step, phase: as of `Standing`.
    """

    number: int = 0
    meetings: int = 0
    waits_in: str | None = None
    busy_with: str | None = None
    left: bool = False
    step: int = 0
    phase: int = 0

    @property
    def inside(self) -> str:
        """What it does that is not a step's, in words."""
        return self.waits_in or self.busy_with or ""


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
        self.undoing = Undoing()
        self._peers = Peers({})
        self._device_wait = DeviceWait()
        self._error: BaseException | None = None  # what the main thread ended with
        self.accounts_folder: Location | None = None
        self._last: dict[int, Beat] = {}
        self._silent: dict[int, int] = {}  # looks since a rank's last new beat
        self._late: tuple[int, list[int]] = (0, [])
        self._late_looks = 0
        self._beat()

    # --- for the main thread ---------------------------------------------------------------------------------------

    def all_came(self) -> None:
        """From now on every rank is expected to live."""
        self._peers = Peers(self._abouts_of_this_machine())
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

    def failed(self, error: BaseException | None) -> None:
        """The main thread has ended with this: where it was then is where this rank stood."""
        self._error = self._error or error

    def tell(self, failure: Failure) -> bool:
        """Tell all ranks that the run has failed.

        Returns:
            Whether this rank was the first to; only that one prints its message.
        """
        with self._lock:
            self._told = True
            return tell(self._store, failure)

    def failure(self) -> Failure | None:
        """What a rank has told of a failure."""
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
            standing = mine()
            self._mine.number += 1
            self._mine.step, self._mine.phase = standing.step, standing.phase
            self._store.set(f"beat/{self.place.rank}", json.dumps(vars(self._mine)))

    def _all_beats(self) -> dict[int, Beat]:
        ranks = range(self.place.world_size)
        with self._lock:
            beats = self._store.multi_get([f"beat/{rank}" for rank in ranks])
        return {rank: Beat(**json.loads(beat)) for rank, beat in zip(ranks, beats, strict=True)}

    def _look(self) -> None:
        gone = self._peers.gone()
        failure = self.failure()
        if failure is not None:
            if not self._told:
                self.end_process(failure)
            return
        self._look_at_own_work()
        if not self._together:
            return
        self.tell_of_gone_peers(gone)
        self._look_for_stopped()
        if self.place.rank == 0:
            beats = self._all_beats()
        else:
            with self._lock:
                beats = {0: Beat(**json.loads(self._store.get("beat/0")))}
        beats.pop(self.place.rank, None)
        self._look_for_silence(beats)
        if self.place.rank == 0:
            self._look_for_laggards({**beats, 0: self._mine})

    def _look_at_own_work(self) -> None:
        """Whether what the others wait for, this process being alive, waits itself for a disk that is not."""
        if self._mine.busy_with is None and mine().phase is not Phase.DATA:
            self._device_wait.forget()
            return
        looks = self._device_wait.look()
        if looks * LOOK_SECONDS >= self._timeout:
            kernel = f" ({where} of the kernel)" if (where := self._device_wait.where()) else ""
            self._fail(
                f"{self.place} has waited {self._timeout:g} s (--timeout) for a disk or a file system that does not "
                f"answer{kernel}, in: {self._mine.busy_with or Phase.DATA}; see dmesg and the mounts there",
                fate="held up",
            )
        if self._is_worth_saying(looks):
            say(
                f"{self.place} has waited {looks * LOOK_SECONDS:.0f} s for a disk or a file system that does not answer"
            )

    def tell_of_gone_peers(self, gone: Sequence[Peer] | None = None) -> None:
        """End the run, from any thread, if ranks of this machine are no longer there and nobody has told of a failure.

        Args:
            gone: those that were not there before it was looked whether somebody has; None: look now.
        """
        if gone is None:
            gone = self._peers.gone()
            if self.failure() is not None:
                return
        missed = [peer for peer in gone if not self._beat_of(peer.rank).left]
        if missed:
            are, were = ("is", "was") if len(missed) == 1 else ("are", "were")
            has, it = ("has", "it") if len(missed) == 1 else ("have", "they")
            self._fail(
                f"{', '.join(map(str, missed))} {are} gone and {has} said nothing: {it} {were} killed from outside, "
                "most often for want of memory (dmesg tells), or crashed",
            )

    def _look_for_stopped(self) -> None:
        patience = min(STOPPED_SECONDS, self._timeout)
        stopped = self._peers.stopped_for(round(patience / LOOK_SECONDS))
        if stopped:
            self._fail(stopped_in_words(stopped, patience))

    def _look_for_silence(self, beats: dict[int, Beat]) -> None:
        for rank, beat in beats.items():
            same = rank in self._last and beat.number == self._last[rank].number and not beat.left
            self._silent[rank] = self._silent.get(rank, 0) + 1 if same else 0
        self._last = beats
        looks = max(self._silent.values(), default=0)
        if looks * LOOK_SECONDS >= self._timeout:
            self._fail(
                f"{self._in_words(self._silent_for(looks))} gave no sign of life for {self._timeout:g} s (--timeout): "
                "lost with its machine or the network, or stopped",
                self._silent_for(looks),
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

    def _abouts_of_this_machine(self) -> dict[int, dict[str, Any]]:
        """What the other ranks of this machine, whose numbers follow each other, have told of themselves."""
        with self._lock:
            mine = who_is(self._store, self.place.rank)["machine"]
            found: dict[int, dict[str, Any]] = {}
            for ranks in (range(self.place.rank + 1, self.place.world_size), range(self.place.rank - 1, -1, -1)):
                for rank in ranks:
                    about = who_is(self._store, rank)
                    if not mine or about["machine"] != mine:
                        break
                    found[rank] = about
            return found

    def _beat_of(self, rank: int) -> Beat:
        with self._lock:
            return Beat(**json.loads(self._store.get(f"beat/{rank}")))

    def _fail(self, message: str, silent: Sequence[int] = (), fate: str = "") -> NoReturn:
        """The run fails; `silent` and `fate` as of `Failure`."""
        failure = Failure(self.place.rank, message, FAILED_STATUS, accounts=True, fate=fate, silent=list(silent))
        if self.tell(failure):
            say(f"error: {message}")
            self.end_process(failure, first=True)
        self.end_process(self.failure() or failure)

    def _without_store(self, error: Exception) -> NoReturn:
        """The process with the store is gone, so nobody can be asked any more."""
        message = (
            f"{self.place} lost {self.place.address}:{self.place.port}, over which the ranks talk "
            f"({str(error).splitlines()[0][:200]}): the process there, or its machine, is gone"
        )
        if self.place.speaks_without_first and not self._told:
            say(f"error: {message}")
            accounts.tell_all(message, [self._own_account(), *self._accounts_of_peers()], self.accounts_folder)
        self.end_process(Failure(self.place.rank, message, FAILED_STATUS))

    def end_process(self, failure: Failure, first: bool = False) -> NoReturn:
        """End at once: the main thread may be in a collective that never ends. The first of both threads does it.

        Args:
            first: this rank is the one that has told of the failure, and printed it.
        """
        self._ending.acquire()
        self.undoing.ending_status = failure.status
        heed_no_more()
        with suppress(dist.DistError), self._lock:
            if failure.accounts:
                self._give_accounts(failure)
                self._tell_accounts(failure) if first else accounts.wait_until_told(self._store)
        self._peers.kill(failure.silent)
        kill_stopped_siblings(self.place)
        self.undoing.undo()
        self.linger()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(failure.status)

    # --- where ranks stood -----------------------------------------------------------------------------------------

    def _own_account(self, fate: str = "") -> Account:
        return own_account(self.place.rank, self._mine.inside, self._error, fate)

    def _accounts_of_peers(self) -> list[Account]:
        """Where the other ranks of this machine stand, by their boards alone."""
        host = socket.gethostname()
        return [
            account_of(peer.rank, host, peer.pid, self._peers.standing(peer), peer.fate, "") for peer in self._peers
        ]

    def _give_accounts(self, failure: Failure) -> None:
        """Tell of this rank, and of those of its machine that cannot."""
        own = self._own_account(failure.fate if failure.rank == self.place.rank else "")
        accounts.give(self._store, own)
        for account in self._accounts_of_peers():
            beat = self._beat_of(account.rank)
            if (account.fate or account.rank in failure.silent) and not beat.left:
                fate = account.fate or "no sign of life"
                accounts.give(self._store, replace(account, fate=fate, inside=beat.inside))

    def _tell_accounts(self, failure: Failure) -> None:
        """Gather what all have told, and print it; of those that have not, what their last beats said."""
        found = accounts.gather(self._store, self.place.world_size, failure.silent)
        for rank in set(range(self.place.world_size)) - set(found):
            about, beat = who_is(self._store, rank), self._beat_of(rank)
            standing = Standing(beat.step, Phase(beat.phase), self._silent.get(rank, 0) * LOOK_SECONDS)
            fate = "heard of last in" if rank in failure.silent else "has not said more than"
            found[rank] = account_of(rank, about["host"], about["pid"], standing, fate, beat.inside)
        accounts.tell_all(failure.message, list(found.values()), self.accounts_folder, failure.plain)
        accounts.say_that_it_is_told(self._store)
