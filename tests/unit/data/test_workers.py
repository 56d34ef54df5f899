"""Worker processes: order, bounded work ahead, errors, and that none outlives who started it."""

import os
import signal
import time
from concurrent.futures import as_completed
from pathlib import Path

import pytest

from llama_dyt.core.errors import DataError
from llama_dyt.core.processes import ASKING_TO_END
from llama_dyt.data.tokenizing.workers import Workers
from tests import forks


def make_handler(base):
    print("a library that prints")

    def handle(task):
        if task == "fail":
            raise DataError("this task cannot be done")
        if task == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if task == "threads":
            return os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"]
        if task == "pid":
            return os.getpid()
        if task == "long":
            time.sleep(600)
        time.sleep(0.02 * (task % 3))
        return base + task

    return handle


@pytest.mark.parametrize("count", [0, 1, 3])
def test_results_come_in_the_order_of_the_tasks(count):
    with Workers(make_handler, 100, count=count) as workers:
        assert list(workers.map(range(20))) == [100 + i for i in range(20)]
        assert {future.result() for future in as_completed([workers.submit(i) for i in range(5)])} == set(
            range(100, 105)
        )
        assert list(workers.map([])) == []


@pytest.mark.parametrize(("count", "most"), [(0, 1), (2, 4)])
def test_only_a_few_tasks_are_taken_before_their_turn(count, most):
    taken = []

    def tasks():
        for i in range(20):
            taken.append(i)
            yield i

    with Workers(make_handler, 0, count=count) as workers:
        for done, _ in enumerate(workers.map(tasks(), ahead=2)):
            assert len(taken) <= done + 1 + most


@pytest.mark.parametrize("count", [0, 1])
def test_an_error_is_raised_in_its_turn_and_the_worker_goes_on(count):
    with Workers(make_handler, 0, count=count) as workers:
        results = workers.map([1, "fail", 2], ahead=1)
        assert next(results) == 1
        with pytest.raises(DataError, match="this task cannot be done"):
            next(results)
        assert workers.submit(3).result() == 3


@pytest.mark.parametrize(("threads", "told"), [(1, ("1", "false")), (3, ("3", "true"))])
def test_a_tokenizer_has_the_threads_it_is_given(threads, told):
    with Workers(make_handler, 0, count=1, threads=threads) as workers:
        assert workers.submit("threads").result() == told


def test_a_killed_worker_is_told_and_nothing_hangs():
    with Workers(make_handler, 0, count=1) as workers:
        with pytest.raises(DataError, match="killed; perhaps the machine ran out of memory"):
            workers.submit("die").result()
        with pytest.raises(DataError, match="ended before"):
            workers.submit(1).result()


def test_what_asks_a_run_to_end_does_not_end_its_workers():
    with Workers(make_handler, 0, count=1) as workers:
        pid = workers.submit("pid").result()
        for number in ASKING_TO_END:
            os.kill(pid, number)
        assert workers.submit(3).result() == 3


def test_workers_end_with_who_started_them_even_if_killed_and_in_the_middle_of_a_task():
    code = (
        "import sys; from tests.unit.data.test_workers import *\n"
        "workers = Workers(make_handler, 0, count=2)\n"
        "print(workers.submit('pid').result(), flush=True)\n"
        "for _ in range(2): workers.submit('long')\n"
        "time.sleep(0.5)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = forks.run(["-c", code])
    pid = int(ended.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "zombie" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.05)
