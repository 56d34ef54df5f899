"""Starting the entries as a user does: a command line, a launcher, a working directory, and what came of it.

Its own file because every test here starts programs, and none should say how again.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.forks import ROOT, ForkedProgram

MODEL_SIZE = shlex.split(
    "--hidden_width 32 --num_layers 2 --num_heads 4 --num_key_value_heads 2 --intermediate_size 64"
)
LIMIT_SECONDS = 420
"""For one program; only a rank that hangs takes longer, even on a busy machine."""

Process = subprocess.Popen | ForkedProgram

_LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Outcome:
    """How a program ended and what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """The lines of its error message, without the launcher's."""
        lines = self.stderr.split("error: ", 1)[-1].splitlines()
        return [line for line in lines if line.strip()]


@dataclass(frozen=True)
class Command:
    """One start of an entry.

    Args:
        entry: "pretrain", "finetune", "benchmark" or "generate".
        flags: its command line.
        folder: working directory.
        launcher: "python", "torchrun", "colossalai" or "srun" (the variables that srun sets, without Slurm). Under
            the first and the last a program begins as a fork that has imported the engine: most of its time.
        processes: how many the launcher starts.
        folders: working directories of the ranks under "srun", where each has its own.
        only_rank: under "srun", start that one and none of the others.
        restarts: how often torchrun starts the workers again.
        before: called in the new process, which is no fork then, before the program begins.
    """

    entry: str
    flags: Sequence[str]
    folder: Path
    launcher: str = "python"
    processes: int = 1
    before: Callable[[], None] | None = None
    folders: Sequence[Path] | None = None
    only_rank: int | None = None
    restarts: int = 0

    def start(self) -> list[Process]:
        """Start it; one process, or several under "srun"."""
        program = [str(ROOT / f"{self.entry}.py"), *map(str, self.flags)]
        tools = Path(sys.executable).parent
        count = f"--nproc_per_node={self.processes}"
        if self.launcher == "torchrun":
            words = ["--standalone", count, f"--max-restarts={self.restarts}"]
            return [self._popen([sys.executable, "-m", "torch.distributed.run", *words, *program])]
        if self.launcher == "colossalai":
            port = f"--master_port={free_port()}"
            return [self._popen([str(tools / "colossalai"), "run", count, port, *program])]
        if self.launcher == "srun":
            shared = {"SLURM_STEP_NUM_TASKS": str(self.processes), "SLURM_STEP_NODELIST": "localhost"}
            shared["SLURM_JOB_ID"] = "4242"
            shared["MASTER_PORT"] = str(free_port())
            ranks = [{"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(self.processes)]
            folders = self.folders or [self.folder] * self.processes
            return [
                replace(self, folder=folder)._program(program, {**shared, **rank})
                for folder, rank in zip(folders, ranks, strict=True)
                if self.only_rank in (None, int(rank["SLURM_PROCID"]))
            ]
        return [self._program(program)]

    def run(self) -> Outcome:
        """Start it and wait for its end."""
        return finish(self.start())

    def _program(self, words: list[str], more: Mapping[str, str] | None = None) -> Process:
        if self.before is not None:
            return self._popen([sys.executable, *words], more)
        return ForkedProgram(words, self.folder, self._environment(more))

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if name not in _LAUNCHER_VARIABLES}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # colossalai looks for torchrun
        return env | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", **(more or {})}

    def _popen(self, words: list[str], more: Mapping[str, str] | None = None) -> subprocess.Popen:
        return subprocess.Popen(
            words,
            cwd=self.folder,
            env=self._environment(more),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that all it started can be ended with it
            preexec_fn=self.before,
        )


def finish(processes: list[Process]) -> Outcome:
    """Wait for the end of a started program; the status is the first that is not 0."""
    outcomes = []
    with ThreadPoolExecutor(len(processes)) as pool:
        for process, (stdout, stderr) in zip(processes, pool.map(_communicate, processes), strict=True):
            outcomes.append(Outcome(process.returncode, stdout, stderr))
    status = next((outcome.status for outcome in outcomes if outcome.status), 0)
    return Outcome(status, "".join(o.stdout for o in outcomes), "".join(o.stderr for o in outcomes))


def _communicate(process: Process) -> tuple[str, str]:
    try:
        return process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        stdout, stderr = process.communicate()
        raise AssertionError(f"still running after {LIMIT_SECONDS} s:\n{stdout}\n{stderr}") from None


def run_two_at_once(*commands: Command) -> list[Outcome]:
    """The outcomes of commands that do not depend on each other; most of a start is importing, which is one thread."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(Command.run, commands))


def wait_until(condition: Callable[[], bool], process: Process) -> None:
    """Look every millisecond until the condition holds; fails where the process ends before it does."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            stdout, stderr = _communicate(process)
            raise AssertionError(f"ended too early:\n{stdout}\n{stderr}")
        time.sleep(0.001)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
