"""Worker processes for the data layer: light ones, which import what their function needs and nothing of the run.

Not multiprocessing's: that would import the entry, and with it the engine, in every worker, and forking a process that
has threads and a GPU is not safe. A worker speaks pickles over its standard input and output, and ends with the thread
that started it and hands it its tasks: at once, whatever it is doing.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

from llama_dyt.core import extensions
from llama_dyt.core.errors import DataError

_MAIN = """
import sys
from llama_dyt.core.processes import end_with_parent, leave_signals_to_parent
end_with_parent(int(sys.argv[1]))
leave_signals_to_parent()
from llama_dyt.data.tokenizing.workers import _serve
_serve(sys.argv[2:])
"""
# One worker is one core's work: threads of its libraries would fight those of the others and of the training step.
_ONE_THREAD = {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}


class Workers:
    """Runs `make_handler(*setup)(task)` for many tasks in `count` processes.

    Args:
        make_handler: a function at a module's top level, called once in each worker; returns what handles a task.
        setup: its arguments, picklable.
        count: processes; 0 does the work in this process, when it is asked for.
        threads: that a tokenizer may use in each of them.

    A task's exception is raised where its result is asked for. `close()` ends the processes.
    """

    def __init__(
        self, make_handler: Callable[..., Callable[[Any], Any]], *setup: Any, count: int, threads: int = 1
    ) -> None:
        self._make = (make_handler, setup)
        self._handler = make_handler(*setup) if count == 0 else None
        self._processes: list[subprocess.Popen] = []
        self._own = threading.local()
        self._closed = False
        # A thread for each process: it sends a task, waits for the result, and takes the next task.
        self._threads = ThreadPoolExecutor(count, "llama_dyt-worker", self._start) if count else None
        self._count = count
        self._environment = {**_ONE_THREAD, **(_many_threads(threads) if threads > 1 else {})}

    def submit(self, task: Any) -> Future:
        """Hand a task to the next free worker."""
        if self._threads is not None:
            return self._threads.submit(self._ask, task)
        future: Future = Future()
        try:
            future.set_result(self._handler(task))
        except Exception as error:
            future.set_exception(error)
        return future

    def map(self, tasks: Iterable[Any], ahead: int = 2) -> Iterator[Any]:
        """Results in the order of the tasks; at most `ahead` tasks a worker are taken before their turn."""
        tasks = iter(tasks)
        waiting = deque(self.submit(task) for task in islice(tasks, max(1, ahead * self._count)))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(self.submit(task) for task in islice(tasks, 1))
            yield result

    def close(self) -> None:
        """End the processes; tasks that have not begun are dropped."""
        self._closed = True
        for process in self._processes:
            process.kill()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _start(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-c", _MAIN, str(os.getpid()), *extensions.for_workers()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **self._environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._processes.append(process)
        self._own.process = process
        if self._closed:
            process.kill()
            return
        with contextlib.suppress(BrokenPipeError):  # what became of it is told to whoever asks for a result
            _send(process.stdin, self._make)

    def _ask(self, task: Any) -> Any:
        process = self._own.process
        try:
            _send(process.stdin, task)
            kind, value = pickle.load(process.stdout)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError):
            status = process.wait()
            raise DataError(f"a data worker ended before its work was done ({_how_it_ended(status)})") from None
        if kind == "error":
            raise value
        return value


def _many_threads(threads: int) -> dict[str, str]:
    return {"RAYON_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "true"}


def _how_it_ended(status: int) -> str:
    if status == -signal.SIGKILL:
        return "killed; perhaps the machine ran out of memory: use fewer workers"
    return f"by signal {-status}" if status < 0 else f"with status {status}; see its message above"


def _send(pipe: Any, value: Any) -> None:
    pickle.dump(value, pipe, pickle.HIGHEST_PROTOCOL)
    pipe.flush()


def _serve(imports: Sequence[str]) -> None:
    """A worker's life: one function to make, then tasks until the input ends.

    Args:
        imports: the user's modules that have something for workers.
    """
    tasks, results = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints must not print into the results
    problems = extensions.load(imports)
    if problems:
        sys.exit("\n".join(problems))
    try:
        make_handler, setup = pickle.load(tasks)
        handler = make_handler(*setup)
        while True:
            task = pickle.load(tasks)
            try:
                answer = ("value", handler(task))
            except Exception as error:
                answer = ("error", error)
            _send(results, answer)
    except (EOFError, BrokenPipeError):
        os._exit(0)
