"""What disturbs a run: signals to its processes, a disk that can be filled, an object store that can fail."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from common import REPOSITORY

from disturbing.runs import Start, send

ALWAYS = ("kill", "stop", "launcher", "term")
OF_STORAGE = {"disk": (), "tmpfs": ("disk",), "s3": ("store", "hiccups")}
REFUSING = ("disk", "store")
"""Which keep a run from saving."""
MOMENTS = ("start", "step", "save")


class World:
    """What can be disturbed beside the processes: a disk that can be filled, a store that can fail.

    Attributes:
        storages: kinds of storage that this machine has.
        memory: folder for snapshots.
        environment: for the runs, where they use the store.
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.environment: dict[str, str] = {}
        self.storages = ["disk"]
        self._s3 = None
        memory = Path("/dev/shm")
        self.memory = Path(tempfile.mkdtemp(prefix="chaos_", dir=memory if memory.is_dir() else folder))
        stack.callback(shutil.rmtree, self.memory, ignore_errors=True)
        self._disk = folder / "small_disk"
        self._disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "chaos", str(self._disk)]
        if shutil.which("mount") and subprocess.run(mount, capture_output=True, check=False).returncode == 0:
            stack.callback(subprocess.run, ["umount", "-l", str(self._disk)], check=False)
            self.storages.append("tmpfs")
        else:
            print("no disk is filled: a tmpfs can be mounted by root alone")
        try:
            import boto3  # noqa: F401
            import moto.server  # noqa: F401
        except ImportError:
            print("no object store fails: pip install -r requirements-dev.txt for moto's server")
        else:
            sys.path.insert(0, str(REPOSITORY))
            from tests.s3_server import BUCKET, Fault, serving

            self._s3, self._bucket, self._fault = stack.enter_context(serving()), BUCKET, Fault
            self.environment = {**self._s3.environment, "XDG_CACHE_HOME": str(folder / "cache")}
            self.storages.append("s3")

    def place(self, storage: str, folder: Path) -> str:
        """The --save_dir of a run."""
        if storage == "s3":
            return f"s3://{self._bucket}/{folder.parent.name}/{folder.name}"
        return str((self._disk if storage == "tmpfs" else folder) / f"{folder.name}_saved")

    def clear(self, storage: str) -> None:
        """Make room on the small disk for the next run."""
        if storage == "tmpfs":
            for saved in self._disk.iterdir():
                shutil.rmtree(saved)

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Nothing more can be written."""
        ballast = self._disk / "ballast"
        try:
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(65536))
                except OSError:
                    pass
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def failing_store(self, kind: str, times: int | None) -> Iterator[None]:
        """The next requests fail so; None for all while inside."""
        fault = self._fault(".", kind, times)
        self._s3.faults.append(fault)
        try:
            yield
        finally:
            self._s3.faults.remove(fault)


def disturb(kind: str, start: Start, world: World, stack: ExitStack, numbers: random.Random) -> bool:
    """Do it; whether the run has to end of it. What has to be undone is, when the stack closes."""
    if kind in ("kill", "stop"):
        ranks = start.workers()
        if not ranks:
            return False
        send(numbers.choice(ranks), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
    elif kind == "launcher":
        send(start.launcher.pid, signal.SIGKILL)
    elif kind == "term":
        send(start.launcher.pid, signal.SIGTERM)
    elif kind == "disk":
        stack.enter_context(world.full_disk())
    elif kind == "store":
        stack.enter_context(world.failing_store(numbers.choice(["internal_error", "expired", "cut"]), None))
    elif kind == "hiccups":
        hiccup = numbers.choice(["internal_error", "slow_down", "cut", "lost", "half"])
        stack.enter_context(world.failing_store(hiccup, numbers.randint(1, 3)))
        return False
    return True
