"""Bookkeeping between the processes of a run: what they must agree on, what one computes for all, and how all end.

It goes over a gloo group of its own, whatever the device: the group that trains has a deadline that suits a step, and a
GPU need not be asked for what two hosts have to say to each other. Here a rank may be waited for as long as it lives
(`watch`). Tensors of a training step stay on the groups that train.

Every function here is collective, all ranks call it in the same order, but for `end`, `end_now`, `ending_status`,
`failed`, `keep_accounts`, `watch`, `busy`, `undoing` and `undo_at_end`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch.distributed as dist

from llama_dyt.core.console import say
from llama_dyt.core.errors import ConfigurationError, LlamaDytError
from llama_dyt.core.failure import Failure, linger, tell, told_failure
from llama_dyt.core.peers import kill_stopped_siblings
from llama_dyt.core.place import Place
from llama_dyt.core.processes import heed_no_more
from llama_dyt.core.rendezvous import NobodyListens, connect, connect_again, meet, ranks_in_words, who_is
from llama_dyt.core.standing import Phase, mine
from llama_dyt.core.store import Location
from llama_dyt.core.undoing import Undoing
from llama_dyt.core.watch import LOOK_SECONDS, Watch

T = TypeVar("T")

_NO_DEADLINE = timedelta(days=100)
"""Of the group's collectives: the watch ends a run whose ranks are gone or late, and knows which."""
_EARLY_SECONDS = 20.0
"""How long a rank that fails before it met the others tries to tell them."""
_SAME_ERROR_SECONDS = 2.0
"""What is wrong is nearly always wrong on all ranks; for so long the others leave it to rank 0 to say so."""
_TOLD_ELSEWHERE_SECONDS = 10.0


class RankFailure(LlamaDytError):
    """Another rank failed; the one it happened to tells of it."""


@dataclass
class _Run:
    """This process's part in a run of several."""

    place: Place
    watch: Watch
    group: dist.ProcessGroup | None = None


_run: _Run | None = None
_alone = Undoing()
"""Of a process that no other rank can end, but a signal can."""


def _undoing() -> Undoing:
    return _alone if _run is None else _run.watch.undoing


# --- coming together and leaving -----------------------------------------------------------------------------------


def join(place: Place, timeout: float, device: str) -> dist.Store:
    """Meet all ranks, and from then on end with them. A run of one process meets nobody.

    Args:
        timeout: seconds that ranks are waited for, here and later.
        device: "cuda" or "cpu", which must be the same on all.

    Returns:
        The store to make the process group with.

    Raises:
        TrainingError: some rank did not come.
        ConfigurationError: the ranks have different devices, or the port is taken.
    """
    global _run
    if place.world_size == 1:
        return dist.HashStore()
    store = connect(place, timeout)
    watch = Watch(connect_again(place, timeout), place, timeout)
    watch.start()
    _run = _Run(place, watch)
    meet(store, place, timeout, {"device": device})
    watch.all_came()
    if place.rank == 0:
        devices = [who_is(store, rank)["device"] for rank in range(place.world_size)]
        if len(set(devices)) > 1:
            raise ConfigurationError(
                f"ranks have different devices: {_who_has_what(devices)}; give all of them GPUs or none "
                "(CUDA_VISIBLE_DEVICES, the driver and the torch build of each machine)"
            )
    return dist.PrefixStore("groups", store)


def open_group() -> None:
    """Make the group of bookkeeping; right after the process group."""
    if _run is not None:
        _run.group = dist.new_group(backend="gloo", timeout=_NO_DEADLINE)


def leave() -> None:
    """Part from the others in good order; before the process group is destroyed. Without a run it does nothing."""
    global _run
    if _run is not None:
        _run.watch.leave()
        _run = None
    _alone.clear()


# --- what ranks tell each other ------------------------------------------------------------------------------------


def gather(value: T, what: str, group: dist.ProcessGroup | None = None) -> list[T]:
    """The value of every rank, in order.

    Args:
        value: what can be pickled, and small.
        what: the occasion in words, for whoever waits too long: "saving the random generators".
        group: return those of its ranks alone, in its order; still all ranks of the run call this.
    """
    values: list[Any] = [value]
    if _run is not None:
        values = [None] * _run.place.world_size
        with _run.watch.meeting(what):
            dist.all_gather_object(values, value, group=_run.group)
    return values if group is None else [values[rank] for rank in dist.get_process_group_ranks(group)]


def from_first(compute: Callable[[], T], what: str) -> T:
    """A value that rank 0 computes, however long it takes, and all get; its failure is everyone's."""
    if _run is None:
        return compute()
    box: list[Any] = [None]
    if _run.place.rank == 0:
        try:
            with _run.watch.busy(what):
                box = [(compute(), None)]
        except Exception as error:
            _share([(None, _portable(error))], what)
            _shared(error)
            raise
    _share(box, what)
    value, error = box[0]
    if error is not None:
        raise _shared(error)
    return value


def _share(box: list[Any], what: str) -> None:
    with _run.watch.meeting(what):
        dist.broadcast_object_list(box, src=0, group=_run.group)


def raise_together(error: Exception | None, what: str) -> None:
    """Make the failure of any rank everyone's: a barrier at which all go on or none.

    Args:
        error: what went wrong here; None for nothing.

    Raises:
        LlamaDytError: the error of the lowest rank that had one, with a note of which that was; `RankFailure` in place
            of one that is no mistake of the user's.
        Exception: on the rank it happened to, the error itself.
    """
    if _run is None:
        if error is not None:
            raise error
        return
    found = gather((None, "") if error is None else (_portable(error), str(_run.place)), what)
    failed = [rank for rank, (theirs, _) in enumerate(found) if theirs is not None]
    if not failed:
        return
    shared, where = found[failed[0]]
    if failed[0] == _run.place.rank:
        shared = error
    if len({str(theirs) for theirs, _ in found}) > 1:
        shared.add_note(where)
    raise _shared(shared)


def together(action: Callable[[], T], what: str) -> T:
    """Something that every rank does for itself, however long it takes, and after which all go on or none.

    Args:
        action: talks to no other rank: one that had failed would not answer.

    Raises:
        LlamaDytError, Exception: as `raise_together`.
    """
    try:
        with busy(what):
            value = action()
    except Exception as error:
        raise_together(error, what)
        raise
    raise_together(None, what)
    return value


def _portable(error: Exception) -> LlamaDytError:
    """An error that another process can be given."""
    if isinstance(error, LlamaDytError):
        try:
            pickle.loads(pickle.dumps(error))
            return error
        except Exception:  # one with arguments of its own; its words are what counts
            return LlamaDytError(str(error))
    return RankFailure(f"{_run.place}: {type(error).__name__}: {error}")


def _shared(error: Exception) -> Exception:
    """The error, marked as one that all ranks have: the first of them tells of it."""
    error.all_ranks_have_it = isinstance(error, LlamaDytError)
    return error


@dataclass(frozen=True)
class Fact:
    """Something that must be the same on all ranks.

    Attributes:
        value: what is compared.
        where: what else helps to find the difference, a path say; not compared.
    """

    value: str
    where: str = ""

    def __str__(self) -> str:
        return f"{self.value} ({self.where})" if self.where else self.value


def agree(facts: Mapping[str, Fact], what: str = "comparing what ranks are about to do") -> None:
    """Compare what ranks know, or are about to do.

    Raises:
        ConfigurationError: a line for each fact that is not the same everywhere: which ranks have which value. It is
            raised on all ranks.
    """
    if _run is None:
        return
    values = {name: fact.value for name, fact in facts.items()}
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    if len(set(gather(digest, what))) == 1:
        return
    of_ranks = gather((dict(facts), socket.gethostname()), what)
    problems = []
    for name in dict.fromkeys(name for theirs, _ in of_ranks for name in theirs):
        found = [theirs.get(name, Fact("nothing")) for theirs, _ in of_ranks]
        if len({fact.value for fact in found}) > 1:
            problems.append(f"ranks disagree on {name}: {_who_has_what(found)}")
    hosts = [host for _, host in of_ranks]
    spread = f"; hosts: {_who_has_what(hosts)}" if len(set(hosts)) > 1 else ""
    remedy = (
        "all ranks must read the same files and be given the same flags (a folder on a node's own disk, a stale "
        f"network cache, an older copy of the code?){spread}"
    )
    raise _shared(ConfigurationError([*problems, remedy]))


def _who_has_what(values: Sequence[Any]) -> str:
    """ "ranks 0, 2-3: a; rank 1: b"."""
    ranks: dict[str, list[int]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(str(value), []).append(rank)
    return "; ".join(f"{ranks_in_words(having)}: {value}" for value, having in ranks.items())


# --- of one rank alone ---------------------------------------------------------------------------------------------


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Work of this rank that others wait for however long it takes, as long as it lives: a save, a download."""
    with nullcontext() if _run is None else _run.watch.busy(what):
        yield


@contextmanager
def undoing(action: Callable[[], Any]) -> Iterator[None]:
    """Do `action` if what is inside fails: on this rank, or on another whose failure ends this process too."""
    try:
        with _undoing().holding(action):
            yield
    except BaseException:
        action()
        raise


def undo_at_end(action: Callable[[], Any]) -> None:
    """Do `action` if another rank's failure, or `end_now`, ends this process, at any time from here on."""
    _undoing().add(action)


def watch() -> Watch | None:
    """That of this process; None where a run is of one process."""
    return None if _run is None else _run.watch


def ending_status() -> int | None:
    """While what was begun is undone: the status that this process is about to end with."""
    return _undoing().ending_status


def end_now(message: str, status: int) -> NoReturn:
    """End this process and all others, from any thread and whatever the main one is in; what was begun is undone.

    Args:
        message: printed by the first rank that ends so.
    """
    if _run is None:
        _alone.ending_status = status
        _alone.undo()
        _say_and_exit(message, status, Place())
    failure = Failure(_run.place.rank, message, status)
    with suppress(dist.DistError):
        _run.watch.tell_of_gone_peers()  # a launcher asks all to end as soon as one has died
        if _run.watch.tell(failure):
            say(message)
    _run.watch.end_process(failure)


def end(message: str, status: int, place: Place, error: BaseException | None = None) -> NoReturn:
    """End this process after a failure, and all others with it; one of them prints its message.

    Args:
        message: what to print; empty for nothing.
        place: of this process, which need not have met the others yet.
        error: what happened. One that another rank tells of (`raise_together`, `from_first`), and one that only says
            that another rank is no longer there, wait for that rank's word.
    """
    sys.stdout.flush()
    if place.world_size == 1:
        _say_and_exit(message, status, place)
    try:
        watch = _run.watch if _run is not None else None
        if watch is None and (not message or isinstance(error, NobodyListens)):
            _say_and_exit(message, status, place)
        store = None if watch else connect(place, _EARLY_SECONDS, quiet=True)
        failed(error)
        read = (lambda: told_failure(store)) if watch is None else watch.failure
        deadline = time.monotonic() + _patience(message, place, error)
        while (told := read()) is None and time.monotonic() < deadline:
            time.sleep(0.05)
        failure, first = told or _failure(message, status, place, error), False
        if told is None:
            first = tell(store, failure) if watch is None else watch.tell(failure)
            failure = failure if first else read() or failure
        if first and message:
            alone = place.rank > 0 and not getattr(error, "all_ranks_have_it", False)
            say(f"{message}\n  ({place})" if alone else message)
        message, status = "", failure.status
        if watch is None:
            linger(store, place, _EARLY_SECONDS)
        else:
            watch.end_process(failure, first)
    except (dist.DistError, LlamaDytError, OSError):
        # Nobody can be told. Where the store was lost on the way, the watch is about to say so and end this process.
        time.sleep(2 * LOOK_SECONDS if _run is not None else 0)
    _say_and_exit(message, status, place)


def failed(error: BaseException | None) -> None:
    """This rank has failed with that: what is done from here on is no part of where it stood, and it says what there is
    to say whatever its launcher, which has seen another one end, asks of it."""
    if _run is not None:
        heed_no_more()
        _run.watch.failed(error)


def keep_accounts(folder: Location) -> None:
    """In which --save_dir a file is to be written, when a rank fails, of where all stood."""
    if _run is not None:
        _run.watch.accounts_folder = folder


def _failure(message: str, status: int, place: Place, error: BaseException | None) -> Failure:
    """What the others are told. Where each stood is of use unless a person is to put something right before a step."""
    plain = isinstance(error, LlamaDytError)
    accounts = bool(message) and not (plain and mine().phase is Phase.START)
    fate = "" if error is None or _is_lost_connection(message, error) else "raised"
    return Failure(place.rank, message, status, accounts, fate, plain)


def _patience(message: str, place: Place, error: BaseException | None) -> float:
    """How long to leave it to others to tell."""
    has_note = isinstance(error, RankFailure) or (place.rank > 0 and getattr(error, "all_ranks_have_it", False))
    if has_note or _is_lost_connection(message, error):
        return _TOLD_ELSEWHERE_SECONDS
    return _SAME_ERROR_SECONDS if place.rank > 0 else 0.0


def _is_lost_connection(message: str, error: BaseException | None) -> bool:
    text = message.lower()
    return not isinstance(error, LlamaDytError) and any(word in text for word in ("gloo", "nccl", "c10d", "connection"))


def _say_and_exit(message: str, status: int, place: Place) -> NoReturn:
    if message:
        say(message)
    kill_stopped_siblings(place)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
