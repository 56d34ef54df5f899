"""One run a folder: a record of who writes there, from which others see whether that one still lives.

    save_dir/.claim.3       the holder in one line of JSON, and a counter that it raises every BEAT_SECONDS

The system's locks do not do. A forked child keeps flock after its owner's death, one close of the file loses lockf, and
network file systems may keep either to one machine. What every file system does is to let one of many make a file
(O_EXCL), and most stores let one put it. So a claim is the record with the highest number: who finds the records there
dead makes the next one, which only one can, and holds the folder if nobody else has come up meanwhile. A record is dead

- at once where its process can be looked for, on the same machine, and is not there;
- at once where it is of the same job (Slurm's, torchrun's) before its last restart;
- else once its counter has stood still for STALE_SECONDS by the reader's own clock.

A holder that was stopped, or cut off, for longer than that learns it from `Claim.check`, which is to be asked right
before anything is published. Between the two lies an instant that no file system closes.
"""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace

from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.core.processes import start_time
from llama_dyt.core.store import Location, Records, store_of
from llama_dyt.launch.holder import Holder

BEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
_LOOK_SECONDS = 0.5

_held: list[Claim] = []


class Claim:
    """A folder held by this process, until `release` or its end. Made by `take`."""

    def __init__(self, folder: Location, records: Records, number: int, holder: Holder) -> None:
        self.folder = folder
        self.holder = holder
        self._records = records
        self._number = number
        self._pid = os.getpid()
        self._released = threading.Event()
        # Forks do not have the thread, so a child never beats for a parent that is gone.
        self._thread = threading.Thread(target=self._beat, name="llama_dyt-claim", daemon=True)
        self._thread.start()
        _held.append(self)

    @property
    def nonce(self) -> str:
        return self.holder.nonce

    def check(self) -> None:
        """Ask whether the folder is still this run's; right before publishing anything in it.

        Raises:
            CheckpointError: another run has taken it over, or the record was removed.
        """
        require_held(self.folder, self._records, self._number, self.nonce)

    @property
    def number(self) -> int:
        """Of its record."""
        return self._number

    def name_writer(self, pid: int) -> None:
        """Say in the record that a process of this one's writes in the folder too, and may outlive it for a while.

        Raises:
            OSError: it cannot be written.
        """
        self.holder = replace(self.holder, writer=(pid, start_time(pid) or 0))
        self._records.rewrite(self.holder.to_line() + _counter(0))

    def release(self) -> None:
        """Give the folder free; nothing in a forked child, nothing the second time. A writer that was named and still
        works keeps it: the record stays, for the next run to wait."""
        if os.getpid() != self._pid or self._released.is_set():
            return
        self._released.set()
        self._thread.join(_LOOK_SECONDS)  # it may hang in a file system that does
        _held.remove(self)
        if self.holder.writer_lives(self.holder):
            return
        with suppress(OSError):
            found = Holder.read(self._records.read(self._number) or b"")
            if found is not None and found.nonce == self.nonce:
                self._records.remove(self._number)
        if not self._thread.is_alive():
            self._records.close()
        self._records.tidy()  # a folder made for nothing goes again

    def _beat(self) -> None:
        """Raise the counter in the record this process made, whatever has become of its name: never in another's."""
        count = 0
        while not self._released.wait(BEAT_SECONDS):
            count += 1
            with suppress(OSError):  # others will find it stale; `check` tells this process
                self._records.rewrite(self.holder.to_line() + _counter(count))


def require_held(folder: Location, records: Records, number: int, nonce: str) -> None:
    """Ask whether a claim still stands, also of a process that was told of it.

    Raises:
        CheckpointError: another run has taken the folder over, or the record was removed.
    """
    above = [other for other in records.numbers() if other > number]
    mine = Holder.read(records.read(number) or b"")
    if not above and mine is not None and mine.nonce == nonce:
        return
    other = Holder.read(records.read(max(above)) or b"") if above else None
    how = f"{other} took it over" if other else f"its record {records.name(number)} is gone from there"
    raise CheckpointError(
        f"{folder} is no longer this run's: {how}, as happens to one that gives no sign of life for "
        f"{STALE_SECONDS:g} s (stopped, or cut off from the files); nothing more is written there. Go on with "
        "--load auto once nobody else writes there"
    )


def wait_for_writer(folder: Location, name: str = "claim") -> None:
    """Wait while the writing process of a run that is gone, on this machine, finishes a checkpoint there: before what
    to resume from is looked for. Changes nothing, and a folder that is not there is no error."""
    if not folder.is_dir():
        return
    me = Holder.this_process("", {})
    records = store_of(folder).records(folder, name)
    said = False
    while True:
        found = [Holder.read(records.read(number) or b"") for number in records.numbers()]
        writing = [one for one in found if one and not one.lives(me) and one.writer_lives(me)]
        if not writing:
            return
        if not said:
            said = True
            print(_waits_for(folder, writing[-1]), file=sys.stderr, flush=True)
        time.sleep(_LOOK_SECONDS)


def _waits_for(folder: Location, holder: Holder) -> str:
    return (
        f"{folder}: {holder} is gone, and its process {holder.writer[0]} is still writing a checkpoint there; waiting "
        "for it to finish"
    )


def take(
    folder: Location,
    program: str,
    flag: str = "--save_dir",
    name: str = "claim",
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] | None = None,
) -> Claim:
    """Claim a folder for this process. What the same process claimed before ends.

    Args:
        folder: is made where it is not there, and removed by `release` where nothing came into it.
        program: what this is, for others' messages.
        flag: by which the user named the folder.
        name: of the records; claims of different names do not know of each other.
        environment: of the launcher; the process's own when None.
        say: for a line about a wait, or about whose claim was taken over; stderr when None.

    Raises:
        ConfigurationError: somebody who lives holds it, or it cannot be written. May take STALE_SECONDS.
    """
    environment = os.environ if environment is None else environment
    say = say or (lambda message: print(message, file=sys.stderr, flush=True))
    me = Holder.this_process(program, environment)
    try:
        records = store_of(folder).records(folder, name)
        records.prepare()
        return _Taker(folder, records, me, flag, say).take()
    except OSError as error:
        raise ConfigurationError(
            f"{flag} {folder} cannot be written ({error.strerror or error}); make room or mend that, or give another"
        ) from error


def release_all() -> None:
    """Give free all that this process holds; for the end of a program."""
    for claim in list(_held):
        claim.release()


class _Taker:
    """One attempt to get a folder."""

    def __init__(self, folder: Location, records: Records, me: Holder, flag: str, say: Callable[[str], None]) -> None:
        self._folder, self._records, self._me, self._flag, self._say = folder, records, me, flag, say
        self._seen: dict[int, tuple[bytes, float]] = {}  # number → (record, since when it has been the same)
        self._waits = False

    def take(self) -> Claim:
        while True:
            try:
                looks = {number: self._look(number) for number in self._records.numbers()}
                dead = {number: record for number, record in looks.items() if record is not None}
                claim = self._make_record(dead) if len(dead) == len(looks) else None
            except FileNotFoundError:  # somebody who had made the folder for nothing removed it
                self._records.prepare()
                continue
            if claim is not None:
                return claim
            time.sleep(random.uniform(0, _LOOK_SECONDS))

    def _look(self, number: int) -> bytes | None:
        """The record if it is a dead one's; None if that is not known yet, or it has just gone.

        Raises:
            ConfigurationError: its maker lives.
        """
        record = self._records.read(number)
        if record is None:
            return None
        holder = Holder.read(record)
        if holder is not None:
            lives = holder.lives(self._me)
            if self._me.follows(holder) or lives is False or (lives and holder.pid == self._me.pid):
                if holder.pid == self._me.pid or not holder.writer_lives(self._me):
                    return record
                if not self._waits:
                    self._waits = True
                    self._say(_waits_for(self._folder, holder))
                return None
            if lives and holder.inode != self._records.identity(number):
                return record  # a copy of a folder in which a run goes on
            if lives:
                raise self._refusal(holder)
        before, since = self._seen.get(number, (None, 0.0))
        if record != before:
            if holder is not None and before is not None and Holder.read(before) == holder:
                raise self._refusal(holder)
            self._seen[number] = record, time.monotonic()
            if not self._waits:
                self._waits = True
                who = holder or f"somebody whose record {self._records.name(number)} cannot be read"
                self._say(
                    f"{self._folder} is claimed by {who}; waiting up to {STALE_SECONDS:g} s for a sign of life of it"
                )
            return None
        return record if time.monotonic() - since >= STALE_SECONDS else None

    def _refusal(self, holder: Holder) -> ConfigurationError:
        return ConfigurationError(
            f"{self._flag} {self._folder} is being written by {holder}: wait for its end or stop it, or give another "
            f"{self._flag}"
        )

    def _make_record(self, dead: Mapping[int, bytes]) -> Claim | None:
        """The claim; None where another was quicker, or came up besides."""
        mine = max(dead, default=0) + 1

        def content(identity: int) -> bytes:
            self._me = replace(self._me, inode=identity)
            return self._me.to_line() + _counter(0)

        if not self._records.make(mine, content):
            return None
        try:
            others = [number for number in self._records.numbers() if number != mine]
            if any(self._records.read(other) not in (None, dead.get(other)) for other in others):
                self._records.remove(mine)
                self._records.close()
                return None
        except BaseException:
            self._records.remove(mine)
            self._records.close()
            raise
        for other in others:
            self._records.remove(other)
            holder = Holder.read(dead.get(other, b""))
            if holder is None or holder.pid != self._me.pid or holder.host != self._me.host:
                self._say(f"{self._folder} is taken over from {holder or 'somebody unknown'}, which is gone")
        return Claim(self._folder, self._records, mine, self._me)


def _counter(count: int) -> bytes:
    return b"%012d\n" % count  # of one length: a record is never seen half changed
