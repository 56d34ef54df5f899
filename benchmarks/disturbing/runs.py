"""Runs of several processes under torchrun that can be started, watched and ended, whatever was done to them."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import REPOSITORY

from llama_dyt.core.store import at, store_of
from llama_dyt.training.trackers.jsonl import METRICS_FILE, read_metrics

SAVE_INTERVAL = 6
TIMEOUT_SECONDS = 15
"""The runs' own --timeout: what a rank that is not heard of is given."""
MARK = "CHAOS_MARK"


@dataclass(frozen=True)
class Setting:
    """How the runs of a round are made.

    Attributes:
        storage: "disk" (a folder), "tmpfs" (a small disk that can be filled) or "s3".
        flags: more of the run's flags.
        snapshots: steps between snapshots in memory, 0 for none.
        memory: where they are kept.
    """

    plugin: str
    processes: int
    storage: str
    flags: tuple[str, ...] = ()
    snapshots: int = 0
    memory: Path = Path("/dev/shm")

    def __str__(self) -> str:
        taken = [f"snapshots every {self.snapshots}"] if self.snapshots else []
        return " ".join([f"{self.plugin} x {self.processes} on {self.storage}", *self.flags, *taken])

    def most_done_again(self, refused: bool) -> int:
        """Steps. With snapshots one more than between them, which is done while the newest becomes whole. An
        asynchronous save that is refused is on its way until it is given up, and at the longest until the next.

        Args:
            refused: since steps were made last, the run was kept from saving.
        """
        if self.snapshots:
            return min(self.snapshots + 1, SAVE_INTERVAL)
        return 2 * SAVE_INTERVAL if refused and "--async_save" in self.flags else SAVE_INTERVAL


class Start:
    """One start of a run's command, until all its processes are gone; leaving it as a context kills what is left."""

    def __init__(self, command: list[str], log: Path, environment: dict[str, str]) -> None:
        self._mark = uuid.uuid4().hex
        self._log = log
        with log.open("w", encoding="utf-8") as file:
            self.launcher = subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env={**os.environ, **environment, MARK: self._mark},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[int]:
        """Of all that came of this start, whoever their parent is now; those that have ended count no more."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self._mark.encode() in (folder / "environ").read_bytes():
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    found += [int(folder.name)] if state not in "ZX" else []
            except OSError:
                continue
        return found

    def workers(self) -> list[int]:
        """The ranks: what torchrun started itself."""
        children = Path(f"/proc/{self.launcher.pid}/task/{self.launcher.pid}/children")
        try:
            return [int(pid) for pid in children.read_text().split()]
        except OSError:
            return []

    def ended(self) -> bool:
        return self.launcher.poll() is not None

    def wait_until(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Whether it came true before the time, and before the run ended."""
        last = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > last or self.ended():
                return condition()
            time.sleep(0.02)
        return True

    def __enter__(self) -> Start:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        for pid in self.processes():
            send(pid, signal.SIGKILL)
        self.launcher.wait()

    def said(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


def send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


class Run:
    """A run of a setting, in a folder of its own."""

    def __init__(self, setting: Setting, folder: Path, corpus: tuple[Path, Path], steps: int, place: str) -> None:
        self.setting = setting
        self.folder = folder
        folder.mkdir(parents=True)
        self.place = place
        self.steps = steps
        self.witness = folder / "witness"
        self._starts = 0
        mixture, tokenizer = corpus
        self._flags = ["--hidden_width", "32", "--num_layers", "2", "--num_heads", "4", "--intermediate_size", "64"]
        self._flags += ["-d", str(mixture), "--tokenizer", str(tokenizer), "-l", "64", "-b", "2", "-x", "fp32"]
        self._flags += ["-p", setting.plugin, "--load", "auto", "-t", "none", "-s", "2", "-i", str(SAVE_INTERVAL)]
        self._flags += ["--log_interval", "1", "--validation_freq", str(SAVE_INTERVAL), "--validation_batches", "1"]
        self._flags += ["--validation_fraction", "0.1", "--shuffle_buffer", "50", "--max_steps", str(steps)]
        self._flags += ["--timeout", str(TIMEOUT_SECONDS), "-o", place, *setting.flags]
        self._flags += ["--import", "disturbing.witness", "--callback", "witness"]
        if setting.snapshots:
            self._flags += ["--snapshot_interval", str(setting.snapshots), "--snapshot_dir", str(setting.memory)]

    def start(self, environment: dict[str, str]) -> Start:
        self._starts += 1
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        command += [str(self.setting.processes), "pretrain.py", *self._flags]
        own = {
            "CHAOS_WITNESS": str(self.witness),
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "OMP_NUM_THREADS": "1",
            "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "30",
        }
        return Start(command, self.folder / f"start_{self._starts}.log", {**environment, **own})

    def trained(self) -> list[int]:
        """Every step that was trained, in order, those done again again."""
        return [int(line) for line in self.witness.read_text().split()] if self.witness.exists() else []

    def is_saving(self) -> bool:
        folder = Path(self.place)
        return folder.is_dir() and any(name.startswith(".step_") for name in os.listdir(folder))

    def result(self, environment: dict[str, str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
        """(records, file → hash of the last checkpoint's weights and moments)."""
        before = dict(os.environ)
        os.environ.update(environment)
        try:
            place = at(self.place)
            local = store_of(place).local(place)
            last = local / f"step_{self.steps:08d}"
            files = [file for part in ("model", "optimizer") for file in sorted((last / part).iterdir())]
            hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
            return read_metrics(local / METRICS_FILE), hashes
        finally:
            os.environ.clear()
            os.environ.update(before)
