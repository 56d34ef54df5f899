"""Processes that need not import the engine, which takes seconds: forks of one server that has.

What a fork cannot show needs an interpreter of its own: what is imported when, what stands in the environment before
that, and how the interpreter takes itself down, since a fork leaves without it.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TORCHELASTIC_RUN_ID": "",
    "HF_HUB_OFFLINE": "1",
}
"""What must stand in the environment before libraries are imported; forks cannot have it otherwise."""


def start(target: Callable[..., None], *arguments: Any, daemon: bool = False, name: str | None = None) -> Any:
    """A started `multiprocessing.Process` that runs a function at a module's top level in a fork of the server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    with _environment():
        process = context.Process(target=target, args=arguments, daemon=daemon, name=name)
        process.start()
    return process


@contextmanager
def _environment() -> Iterator[None]:
    added = {**_ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class ForkedProgram:
    """A Python program in a fork, with what of `subprocess.Popen` the tests use.

    Args:
        words: the program's file, or "-c" and its text; then its command line.
        cwd, env: its working directory and whole environment.
    """

    def __init__(self, words: Sequence[str], cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
        env = {**os.environ, **_ENVIRONMENT} if env is None else env
        self._output = tempfile.TemporaryDirectory(prefix="llama_dyt-fork-")
        self._files = [Path(self._output.name) / name for name in ("stdout", "stderr")]
        for file in self._files:
            file.touch()
        self._process = start(_run_program, list(map(str, words)), str(cwd), dict(env), list(map(str, self._files)))
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("a forked program", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr) once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        self.wait(timeout)
        stdout, stderr = (file.read_text(encoding="utf-8", errors="replace") for file in self._files)
        return stdout, stderr


def run(words: Sequence[str], cwd: Path = ROOT, env: Mapping[str, str] | None = None, timeout: float = 240) -> Any:
    """`subprocess.run` of a Python program in a fork, its output captured as text."""
    program = ForkedProgram(words, cwd, env)
    try:
        stdout, stderr = program.communicate(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(program.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(words, program.returncode, stdout, stderr)


def _run_program(words: list[str], cwd: str, env: dict[str, str], output: list[str]) -> None:
    os.setsid()  # so that all it starts can be ended with it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(output, 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        sys.path.insert(0, "")
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(words[1], "<string>", "exec"), vars(main))
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
