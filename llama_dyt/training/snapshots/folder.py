"""Where one machine keeps the snapshots of a run: a folder that outlives processes, in memory as it is given.

    /dev/shm/llama_dyt-snapshots-3f2a91c07be4/
        run.json                    whose they are, and all that a run must have alike to go on from them
        rank00003.0, …              slots (`slot.py`)
        steps00003                  the last step that the rank has done

Its name follows from the --save_dir and the user; no one else may enter it.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import socket
import stat
import struct
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from llama_dyt.core import files
from llama_dyt.core.errors import CheckpointError
from llama_dyt.core.processes import boot_id, start_time
from llama_dyt.core.store import Location, at
from llama_dyt.training.snapshots.record import read_run_id
from llama_dyt.training.snapshots.slot import Held, held_in, marker_path, slot_of

_PREFIX = "llama_dyt-snapshots-"
_RUN_FILE = "run.json"
_STEPS = "steps"
_STEP_AND_TIME = struct.Struct("<qd")
_GIB = 2.0**30


@dataclass(frozen=True)
class RunOfFolder:
    """Whose snapshots a folder holds.

    Attributes:
        id: of the course.
        save_dir: of the run.
        facts: name → what all ranks of it resolved alike (`training.agreement`).
        pid, started, boot: of a process that has taken them.
    """

    id: str
    save_dir: str
    facts: dict[str, str]
    pid: int
    started: int | None
    boot: str | None

    @classmethod
    def this_one(cls, id: str, save_dir: Location, facts: dict[str, str]) -> RunOfFolder:
        return cls(id, str(save_dir.absolute()), facts, os.getpid(), start_time(os.getpid()), boot_id())

    @property
    def lives(self) -> bool:
        """Whether the process is there."""
        return self.boot == boot_id() and self.started is not None and start_time(self.pid) == self.started


class MachineFolder:
    """The folder of a run on this machine; it need not be there.

    Attributes:
        path: of it.
    """

    def __init__(self, parent: str, save_dir: Location) -> None:
        key = sha256(f"{os.getuid()} {save_dir.absolute()}".encode()).hexdigest()[:12]
        self._parent = Path(parent)
        self.path = self._parent / f"{_PREFIX}{key}"

    @property
    def machine(self) -> tuple[str, str | None, int, int]:
        """Equal for processes that see the same folder."""
        found = os.stat(self._parent)
        return socket.gethostname(), boot_id(), found.st_dev, found.st_ino

    def make(self, run: RunOfFolder) -> None:
        """Have it, and this run's name in it.

        Raises:
            CheckpointError: somebody else made it.
            OSError: it cannot be made.
        """
        with suppress(FileExistsError):
            self.path.mkdir(0o700)
        if not _is_ours(self.path):
            raise CheckpointError(
                f"--snapshot_dir: {self.path} is there and not this user's alone; remove it, or give another folder"
            )
        files.write_text(self.path / _RUN_FILE, files.to_json(asdict(run)))

    def run(self) -> RunOfFolder | None:
        """Whose it is; None where it is not there, or cannot be read."""
        return _run_of(self.path) if _is_ours(self.path) else None

    def held(self) -> list[Held]:
        """What is whole in it."""
        return held_in(self.path) if _is_ours(self.path) else []

    def last_step(self) -> tuple[int, float] | None:
        """(the last step that a rank here has done, seconds since then); None where none is known."""
        found = []
        for path in self.path.glob(f"{_STEPS}*"):
            with suppress(OSError, struct.error):
                found.append(_STEP_AND_TIME.unpack(path.read_bytes()))
        step, when = max(found, default=(0, 0.0))
        return (step, max(time.time() - when, 0.0)) if step else None

    def remove_others(self, kept: Collection[str]) -> None:
        """Remove the slots that are not among `kept`, and their markers."""
        for path in self.path.iterdir():
            slot = slot_of(path.name)
            if slot is not None and slot not in kept:
                marker_path(self.path / slot).unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def require_room(self, sizes: dict[str, int], what: str) -> None:
        """Ask whether there is room for slots of these sizes, by name.

        Args:
            what: how the sizes come about, in words.

        Raises:
            CheckpointError: there is not; with the arithmetic.
        """
        there = {path.name: path.stat().st_blocks * 512 for path in self.path.iterdir() if slot_of(path.name)}
        needed = sum(max(size - there.get(name, 0), 0) for name, size in sizes.items())
        disk = os.statvfs(self.path)
        free, where = disk.f_bavail * disk.f_frsize, f"{self._parent} has room for"
        memory = _available_memory() if _is_memory(self.path) else None
        if memory is not None and memory < free:
            free, where = memory, "the memory that is left here is"
        if needed > free:
            others = "".join(f"; {line}" for line in left_behind(self._parent, self.path))
            raise CheckpointError(
                f"--snapshot_interval: snapshots take {_size(sum(sizes.values()))} on {socket.gethostname()} ({what}); "
                f"{_size(needed)} of it is not there yet, and {where} {_size(free)}: give it more (docker run "
                "--shm-size, mount -o remount,size=), give another --snapshot_dir, or leave snapshots out" + others
            )

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


class StepCounter:
    """The last step that a rank has done, where the processes that come after it can read it."""

    def __init__(self, folder: MachineFolder, rank: int) -> None:
        path = folder.path / f"{_STEPS}{rank:05d}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.truncate(descriptor, _STEP_AND_TIME.size)
            self._map = mmap.mmap(descriptor, _STEP_AND_TIME.size)
        finally:
            os.close(descriptor)

    def note(self, step: int) -> None:
        _STEP_AND_TIME.pack_into(self._map, 0, step, time.time())


def left_behind(parent: Path, own: Path) -> Iterator[str]:
    """See to the snapshots of other runs of this user that are gone: those that no run can go on from are removed. A
    line for each that was, or that is still there."""
    for path in sorted(parent.glob(f"{_PREFIX}*")):
        run = _run_of(path) if path != own and _is_ours(path) else None
        if run is None or run.lives:
            continue
        size = sum(file.stat().st_blocks * 512 for file in path.iterdir())
        try:
            counts = read_run_id(at(run.save_dir)) == run.id
        except Exception:  # of a store that is not there now
            counts = True
        if counts:
            yield (
                f"{path} holds {_size(size)}, snapshots of a run that is gone (--save_dir {run.save_dir}): start that "
                f"again with --load auto, or rm -r {path}"
            )
        else:
            shutil.rmtree(path, ignore_errors=True)
            yield f"removed {path} ({_size(size)}), snapshots that --save_dir {run.save_dir} knows nothing of any more"


def _run_of(path: Path) -> RunOfFolder | None:
    try:
        return RunOfFolder(**json.loads((path / _RUN_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _is_ours(path: Path) -> bool:
    """Whether a folder is this user's, and closed to others."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077


def _is_memory(path: Path) -> bool:
    """Whether a folder lies in a file system of memory."""
    best, kind = "", ""
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            _, point, name, *_ = line.split(" ")
            inside = point == "/" or f"{path}/".startswith(f"{point}/")
            if inside and len(point) >= len(best):
                best, kind = point, name
    return kind in ("tmpfs", "ramfs")


def _available_memory() -> int | None:
    """Of this machine, or of the container that this is; None where the system does not say."""
    found = []
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found.append(int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) * 1024)
    with suppress(OSError, ValueError, StopIteration):  # "max" where there is no limit
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = int(next(line for line in lines if line.startswith("inactive_file ")).split()[1])
        found.append(limit - used + cached)
    return min(found, default=None)


def _size(count: float) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB / 10 else f"{count / 2**20:.2f} MiB"
