"""Where each rank stood when one of them failed: what ranks tell of themselves then, and of those that cannot speak.

The rank that tells of the failure prints the short of it under its message and writes the whole, with everyone's stack,
into a file. The others stay until it has: a launcher ends all as soon as one has gone.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

import torch.distributed as dist

from llama_dyt.core.console import say
from llama_dyt.core.rendezvous import ranks_in_words
from llama_dyt.core.secrets import redact
from llama_dyt.core.stacks import doing
from llama_dyt.core.standing import Standing, mine
from llama_dyt.core.store import Location, store_of

FOLDER = "failures"
"""In a --save_dir, where the files are."""
GATHER_SECONDS = 4.0
"""How long the one that tells waits for the others' accounts; they look for a failure every second."""
_WRITE_SECONDS = 3.0
"""What the file is given: a disk may be what has failed."""
_MOST_LINES = 12


@dataclass(frozen=True)
class Account:
    """Where a rank stood.

    Attributes:
        rank, host, pid: whose it is.
        step, phase, seconds: as of `Standing`; -1, "" and 0 where nothing is known.
        fate: what is to be said of it before that: "raised", "gone", "stopped" and such; empty for nothing.
        inside: work that takes as long as it takes, or a collective of bookkeeping, in words.
        collective, short, whole: as of `stacks.Doing`.
    """

    rank: int
    host: str = ""
    pid: int = 0
    step: int = -1
    phase: str = ""
    seconds: float = 0.0
    fate: str = ""
    inside: str = ""
    collective: str = ""
    short: str = ""
    whole: str = ""

    @property
    def place(self) -> tuple[str, ...]:
        """What ranks that are told of in one line have alike."""
        return self.fate, self._stood(), self.inside, self.collective, self.short

    def _stood(self) -> str:
        if self.step < 0:
            return "nothing is known of it"
        return f"step {self.step}, {self.phase}" if self.step else self.phase

    def in_words(self) -> str:
        """The place in a line: "gone; step 41, backward for 0.2 s, in all_reduce #83 of group 0; loop.py:81 fit"."""
        stood = self._stood() if self.step < 0 else f"{self._stood()} for {self.seconds:.1f} s"
        inside = ", ".join(filter(None, [self.inside, self.collective]))
        return "; ".join(filter(None, [self.fate, f"{stood}, in {inside}" if inside else stood, self.short]))


def own_account(rank: int, inside: str, error: BaseException | None, fate: str) -> Account:
    """Of this process, from any thread.

    Args:
        inside: as of `Account`.
        error: what its main thread ended with, if anything.
        fate: as of `Account`.
    """
    standing, now = mine(), doing(error)
    return Account(
        rank,
        socket.gethostname(),
        os.getpid(),
        standing.step,
        str(standing.phase),
        standing.seconds,
        fate,
        inside,
        now.collective,
        now.short,
        now.whole,
    )


def account_of(rank: int, host: str, pid: int, standing: Standing | None, fate: str, inside: str) -> Account:
    """Of a rank that cannot speak, as others know it; the arguments as of `Account`."""
    known = (
        {} if standing is None else {"step": standing.step, "phase": str(standing.phase), "seconds": standing.seconds}
    )
    return Account(rank, host, pid, **known, fate=fate, inside=inside, whole="it could not be asked for its stack\n")


def give(store: dist.Store, account: Account) -> None:
    """Put an account where the one that tells looks; the first of a rank counts."""
    content = json.dumps(asdict(account))
    if store.compare_set(f"account/{account.rank}", "", content) == content.encode():
        store.add("accounts", 1)


def gather(store: dist.Store, world_size: int, silent: Collection[int]) -> dict[int, Account]:
    """The accounts that come in time, by rank. `silent`: ranks that are not waited for."""
    deadline = time.monotonic() + GATHER_SECONDS
    while store.add("accounts", 0) < world_size - len(silent) and time.monotonic() < deadline:
        time.sleep(0.05)
    found = {}
    for rank in range(world_size):
        if store.check([f"account/{rank}"]):
            found[rank] = Account(**json.loads(store.get(f"account/{rank}")))
    return found


def say_that_it_is_told(store: dist.Store) -> None:
    """Let the others go."""
    store.set("accounts are told", "")


def wait_until_told(store: dist.Store) -> None:
    """Stay until the one that tells has done so, or cannot."""
    deadline = time.monotonic() + GATHER_SECONDS + _WRITE_SECONDS + 1
    while not store.check(["accounts are told"]) and time.monotonic() < deadline:
        time.sleep(0.2)


def tell_all(message: str, accounts: Collection[Account], folder: Location | None, plain: bool = False) -> None:
    """Print where ranks stood, and write the whole of it.

    Args:
        message: why the run ended; in the file alone.
        folder: the --save_dir that the file is to be in; None for nowhere.
        plain: the message says all that there is to say where all ranks stood alike: then no file is written, and
            before the first step nothing is printed.
    """
    account = next(iter(accounts))
    if plain and {(one.step, one.phase) for one in accounts} == {(account.step, account.phase)}:
        if account.step > 0:
            say(f"  all ranks: step {account.step}, {account.phase}")
        return
    groups: dict[tuple[str, ...], list[Account]] = {}
    for account in accounts:
        groups.setdefault(account.place, []).append(account)
    file = None if folder is None else _write(message, accounts, folder)
    title = "where each rank stood" + (f" (all of it: {file})" if file is not None else "")
    lines = []
    for alike in sorted(groups.values(), key=lambda group: (not group[0].fate, len(group), group[0].rank)):
        longest = max(alike, key=lambda account: account.seconds)
        where = f" ({alike[0].host})" if len({account.host for account in accounts}) > 1 and len(alike) == 1 else ""
        lines.append(f"  {ranks_in_words([account.rank for account in alike])}{where}: {longest.in_words()}")
    more = [f"  and {len(lines) - _MOST_LINES} lines more"] if len(lines) > _MOST_LINES else []
    say("\n".join([f"{title}:", *lines[:_MOST_LINES], *more]))


def _write(message: str, accounts: Collection[Account], folder: Location) -> str | None:
    """Write the file, in a thread that is not waited for longer than a disk may take; its name, once it is there."""
    now = datetime.now(UTC)
    parts = [f"{now:%Y-%m-%d %H:%M:%S} UTC", message]
    for account in sorted(accounts, key=lambda account: (not account.fate, account.rank)):
        head = f"=== rank {account.rank}, process {account.pid} on {account.host}: {account.in_words()}"
        parts.append(f"{head}\n\n{account.whole}")
    place, ended = folder / FOLDER / f"{now:%Y%m%d_%H%M%S}.txt", threading.Event()
    written: list[str] = []

    def write() -> None:
        with suppress(Exception):  # why the run ended has been said; the disk may be that
            store_of(folder).write_text(place, redact("\n\n".join(parts)))
            written.append(str(place))
        ended.set()

    threading.Thread(target=write, name="llama_dyt-accounts", daemon=True).start()
    ended.wait(_WRITE_SECONDS)
    return next(iter(written), None)
