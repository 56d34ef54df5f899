"""Pools of processes that talk over gloo: started once, then given one case after another.

Its own file because importing the engine takes seconds, and a test that starts processes of its own would pay them
each time; here every process is a fork of a server that has (`tests/forks.py`). A case is a function that all processes
of a pool run together, each as one rank of a fresh process group:

    results = pool(2).run("tests.distributed.cases:parity", plugin="zero2")    # one result a rank, in order

`pool` is the fixture of `conftest.py`. Functions are named, or passed, so that every process can import them.
"""

from __future__ import annotations

import faulthandler
import gc
import importlib
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from typing import Any

from tests import forks

DEFAULT_TIMEOUT_SECONDS = 240.0
"""A case takes seconds; on a machine that also does other things, a minute."""
GRACE_SECONDS = 5.0
"""How long the other ranks may go on once one has failed: they are most likely waiting for it in a collective."""
_STACKS_SECONDS = 5.0
_LOG_CHARACTERS = 3000
_BEGAN = ("began", None)
"""What a rank sends once it is in its process group: starting takes as long as the machine is busy."""


class CaseError(AssertionError):
    """A case failed, hung or lost a process; the message has the traceback or the stacks of every rank that did."""


@dataclass
class _Worker:
    process: Any
    channel: connection.Connection
    log: Path
    stacks: Path


class Pool:
    """`world_size` processes. They start with the first case, and anew after a case that failed."""

    def __init__(self, world_size: int, folder: Path) -> None:
        """`folder`: an existing one, where the processes' output goes."""
        self.world_size = world_size
        self._folder = folder
        self._workers: list[_Worker] = []
        self._starts = 0

    def run(
        self, case: str | Callable[..., Any], /, timeout: float = DEFAULT_TIMEOUT_SECONDS, **kwargs: Any
    ) -> list[Any]:
        """Run a case on every rank and return what each returned.

        Args:
            case: "module:function", or a function at the top level of a module.
            timeout: seconds after which it counts as hanging, from when all ranks are in their process group.
            kwargs: its arguments; they and the results travel pickled.

        Raises:
            CaseError: a rank raised, died or did not come back; the pool's processes are then replaced.
        """
        __tracebackhide__ = True  # what failed is in the workers; pytest need not show this function
        if not isinstance(case, str):
            case = f"{case.__module__}:{case.__qualname__}"
        if not self._workers:
            self._start()
        message = pickle.dumps((case, kwargs, _free_port()))
        try:
            for worker in self._workers:
                worker.channel.send_bytes(message)
        except OSError:
            pass  # a process died between two cases; its end of the channel tells below
        answers = self._collect(timeout)
        if all(answer is not None and answer[0] == "result" for answer in answers):
            return [answer[1] for answer in answers]
        report = self._report(case, kwargs, answers, timeout)
        self.close()
        raise CaseError(report)

    def _start(self) -> None:
        self._starts += 1
        for rank in range(self.world_size):
            ours, theirs = multiprocessing.Pipe()
            name = f"world{self.world_size}-start{self._starts}-rank{rank}"
            worker = _Worker(None, ours, self._folder / f"{name}.log", self._folder / f"{name}.stacks")
            arguments = (rank, self.world_size, theirs, str(worker.log), str(worker.stacks))
            worker.process = forks.start(_serve, *arguments, daemon=True, name=name)
            theirs.close()
            self._workers.append(worker)

    def _collect(self, timeout: float) -> list[tuple[str, Any] | None]:
        """Each rank's ("result", value), ("raised", traceback) or ("died", exit status); None where it hangs."""
        answers: list[tuple[str, Any] | None] = [None] * self.world_size
        open_channels = {worker.channel: rank for rank, worker in enumerate(self._workers)}
        starting = set(open_channels)
        deadline = time.monotonic() + DEFAULT_TIMEOUT_SECONDS
        while open_channels and (left := deadline - time.monotonic()) > 0:
            for channel in connection.wait(list(open_channels), left):
                rank = open_channels[channel]
                try:
                    answer = pickle.loads(channel.recv_bytes())
                except (EOFError, OSError):
                    self._workers[rank].process.join(1)
                    answer = ("died", self._workers[rank].process.exitcode)
                if answer == _BEGAN:
                    starting.discard(channel)
                    if not starting and all(answer is None for answer in answers):
                        deadline = time.monotonic() + timeout
                    continue
                del open_channels[channel]
                answers[rank] = answer
                if answer[0] != "result":
                    deadline = min(deadline, time.monotonic() + GRACE_SECONDS)
        return answers

    def _report(self, case: str, kwargs: dict[str, Any], answers: list, timeout: float) -> str:
        hanging = [rank for rank, answer in enumerate(answers) if answer is None]
        self._write_stacks(hanging)
        lines = [f"{case}({', '.join(f'{k}={v!r}' for k, v in kwargs.items())}) on {self.world_size} processes"]
        alone = len(hanging) == self.world_size
        for rank, (worker, answer) in enumerate(zip(self._workers, answers)):
            if answer is None:
                since = f"did not end in {timeout:g} s" if alone else "did not end after another rank had failed"
                lines.append(f"--- rank {rank} {since}; it was in\n{_tail(worker.stacks)}")
            elif answer[0] == "raised":
                lines.append(f"--- rank {rank} raised\n{answer[1]}")
            elif answer[0] == "died":
                lines.append(f"--- rank {rank} died, exit status {answer[1]}\n{_tail(worker.stacks)}")
            if answer is None or answer[0] != "result":
                lines.append(f"--- rank {rank} printed\n{_tail(worker.log)}")
        return "\n".join(lines)

    def _write_stacks(self, ranks: list[int]) -> None:
        """Have processes write where each of their threads is."""
        for rank in ranks:
            if self._workers[rank].process.is_alive():
                os.kill(self._workers[rank].process.pid, signal.SIGUSR1)
        deadline = time.monotonic() + _STACKS_SECONDS
        while time.monotonic() < deadline and not all(_tail(self._workers[rank].stacks) for rank in ranks):
            time.sleep(0.1)
        if ranks:
            time.sleep(0.2)  # the last of it is still being written

    def close(self) -> None:
        """End the processes; the next case starts new ones."""
        for worker in self._workers:
            worker.process.kill()
            worker.channel.close()
        for worker in self._workers:
            worker.process.join(10)
        self._workers = []


class Pools:
    """One pool for each world size, made when first asked for: `pools(2)`."""

    def __init__(self) -> None:
        self._pools: dict[int, Pool] = {}
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="llama_dyt-pools-")))

    def __call__(self, world_size: int) -> Pool:
        if world_size not in self._pools:
            self._pools[world_size] = Pool(world_size, self._folder)
        return self._pools[world_size]

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()
        self._stack.close()


def _serve(rank: int, world_size: int, channel: connection.Connection, log: str, stacks: str) -> None:
    """What a process of a pool does: cases until its channel closes."""
    output = open(log, "w", buffering=1)  # noqa: SIM115 (open as long as the process)
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    stacks_file = open(stacks, "w")  # noqa: SIM115
    faulthandler.enable(stacks_file, all_threads=True)
    faulthandler.register(signal.SIGUSR1, stacks_file, all_threads=True)
    if str(forks.ROOT) not in sys.path:
        sys.path.insert(0, str(forks.ROOT))

    import torch

    torch.set_num_threads(1)
    gc.freeze()  # the engine's and transformers' million objects: looking through them again takes half a second
    while True:
        try:
            case, kwargs, port = pickle.loads(channel.recv_bytes())
        except EOFError:
            os._exit(0)  # the tests are over; destructors could wait for ranks that are gone
        try:
            answer = ("result", _run_case(case, kwargs, rank, world_size, port, channel))
        except BaseException:
            answer = ("raised", traceback.format_exc())
        gc.collect()
        channel.send_bytes(pickle.dumps(answer))


def _run_case(
    case: str, kwargs: dict[str, Any], rank: int, world_size: int, port: int, channel: connection.Connection
) -> Any:
    """Run one case in a process group of its own, so that nothing of the one before is left in it."""
    import torch.distributed as dist

    from llama_dyt.core.environment import ProcessEnvironment
    from llama_dyt.launch.process_group import launch, shutdown

    module, function = case.split(":")
    # The engine counts the generators that a process has made for layers, and wants all ranks to have made as many; the
    # stages of a pipeline have not.
    importlib.import_module("colossalai.shardformer.layer.utils").Randomizer.reset_index()
    launch(seed=0, environment=ProcessEnvironment(rank, world_size, local_rank=rank, master_port=port))
    case_function = getattr(importlib.import_module(module), function)
    channel.send_bytes(pickle.dumps(_BEGAN))
    result = case_function(**kwargs)
    # The engine's groups, with two threads each, end with the plugins that made them, which are in reference cycles
    # and, Gemini's, in a cache. A rank that leaves early would break off a collective of the others, hence the barrier.
    importlib.import_module("colossalai.zero.gemini.gemini_mgr").GeminiManager._get_layout_info.cache_clear()
    gc.collect()
    dist.barrier()
    shutdown()
    return result


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _tail(path: Path) -> str:
    return path.read_text(errors="replace")[-_LOG_CHARACTERS:] if path.exists() else ""
