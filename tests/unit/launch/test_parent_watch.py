"""A process ends with its launcher, whichever that is, and with nothing else that started it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_dyt.core.processes import Process, look_at
from llama_dyt.launch.parent_watch import launchers

REPOSITORY = Path(__file__).resolve().parents[3]
WORKER = f"""
import os, subprocess, sys, time
sys.path.insert(0, {str(REPOSITORY)!r})
from llama_dyt.launch.parent_watch import end_with_launcher
end_with_launcher()
child = subprocess.Popen(["sleep", "600"]).pid if "child" in sys.argv else 0
open(sys.argv[1] + "/unfinished", "w").write(f"{{os.getpid()}} {{child}}")
os.rename(sys.argv[1] + "/unfinished", sys.argv[1] + "/pids")
if "holding" in sys.argv:
    __import__("re").match("(a+)+b", "a" * 60)  # no other thread of this process runs while this does
time.sleep(600)
"""
STARTER = """
import signal, subprocess, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
subprocess.Popen(sys.argv[{first}:])
signal.pause()
"""
SHELL = ["bash", "-c", '"$@"; true', "."]
AGENT = {"TORCHELASTIC_RUN_ID": "7", "LOCAL_RANK": "0"}


class Chain:
    """Programs that each start the next, from the first one down to a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "worker.py").write_text(WORKER, encoding="utf-8")

    def start(self, *programs: list[str], worker: str = "", **variables: str) -> None:
        """Start the chain; returns when the worker runs. A program is a command line that the next one is added to."""
        words = [sys.executable, str(self.folder / "worker.py"), str(self.folder), worker]
        for program in reversed(programs):
            words = [*program, *words]
        environment = {name: value for name, value in os.environ.items() if name != "TORCHELASTIC_RUN_ID"}
        self.first = subprocess.Popen(words, env={**environment, **variables}, stderr=subprocess.PIPE, text=True)
        wait_until((self.folder / "pids").exists)
        self.worker, self.child = map(int, (self.folder / "pids").read_text().split())
        self.above: list[Process] = []  # the programs over the worker, its starter first
        pid = look_at(self.worker).parent
        while pid != os.getpid():
            self.above.append(look_at(pid))
            pid = self.above[-1].parent

    def close(self) -> None:
        for pid in [*(process.pid for process in self.above), self.worker, self.child]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL) if pid else None
        self.first.wait()
        self.first.stderr.close()


def python(folder: Path, name: str, *arguments: str) -> list[str]:
    """The command line of a Python program of that name; what is added to it is what it starts."""
    file = folder / name
    file.write_text(STARTER.format(first=1 + len(arguments)), encoding="utf-8")
    return [sys.executable, str(file), *arguments]


def titled(title: str) -> list[str]:
    """A program that shows itself under that name."""
    return ["bash", "-c", f'exec -a "{title}" bash -c \'"$@" & wait\' . "$@"', "."]


@pytest.fixture
def chain(tmp_path) -> Iterator[Chain]:
    chain = Chain(tmp_path)
    yield chain
    chain.close()


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    return look_at(pid) is None


def test_a_worker_ends_with_torchrun_even_while_one_of_its_calls_lets_no_thread_run(chain, tmp_path):
    chain.start(python(tmp_path, "torchrun"), worker="holding", **AGENT)
    time.sleep(0.3)  # so that it is in that call
    os.kill(chain.above[0].pid, signal.SIGKILL)
    wait_until(lambda: is_gone(chain.worker))


def test_a_worker_ends_with_colossalai_run_and_takes_its_children_and_torchrun_along(chain, tmp_path):
    command = python(tmp_path, "colossalai", "run")
    chain.start(command, command, SHELL, python(tmp_path, "torchrun"), worker="child", **AGENT)
    os.kill(chain.above[-1].pid, signal.SIGKILL)
    wait_until(lambda: all(map(is_gone, (chain.worker, chain.child, *(process.pid for process in chain.above)))))
    assert "error: colossalai (pid" in chain.first.stderr.read()


def test_a_worker_that_begins_when_colossalai_run_is_gone_ends_and_takes_torchrun_along(tmp_path):
    """Then its own process for the host, which has the same command line, is left alone with what it started."""
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    words = [*python(tmp_path, "colossalai", "run"), *python(tmp_path, "torchrun")]
    words += [sys.executable, str(tmp_path / "worker.py"), str(tmp_path)]
    ended = subprocess.run(words, env={**os.environ, **AGENT}, stderr=subprocess.PIPE, text=True, timeout=60)
    assert ended.returncode == -signal.SIGTERM
    assert "`colossalai run`, which launched this process, is gone" in ended.stderr
    assert not (tmp_path / "pids").exists()


def test_a_task_of_srun_ends_with_slurms_step_daemon_through_a_script_between(chain):
    chain.start(titled("slurmstepd: [4242.0]"), SHELL)
    os.kill(chain.above[-1].pid, signal.SIGKILL)
    wait_until(lambda: is_gone(chain.worker))


@pytest.mark.parametrize("login", [False, True], ids=["given to ssh", "from a login shell"])
def test_torchrun_started_by_ssh_ends_with_the_connection_but_not_with_a_persons_session(chain, tmp_path, login):
    torchrun = python(tmp_path, "torchrun", "--node_rank=1")
    chain.start(titled("sshd: root@notty"), titled("-bash") if login else SHELL, torchrun, worker="child", **AGENT)
    agent = chain.above[0].pid
    os.kill(chain.above[-1].pid, signal.SIGKILL)
    if login:
        time.sleep(1.5)
        assert not is_gone(chain.worker) and not is_gone(agent)
    else:
        wait_until(lambda: all(map(is_gone, (chain.worker, chain.child, agent))))


def test_what_a_shell_started_outlives_it(chain):
    chain.start(SHELL, SHELL)
    for process in reversed(chain.above):
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(1.5)
    assert not is_gone(chain.worker)


def test_a_worker_that_begins_when_its_torchrun_is_gone_ends_at_once(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER, encoding="utf-8")
    waiting = "while [ $(cut -d' ' -f4 /proc/$BASHPID/stat) = $$ ]; do sleep 0.01; done"
    shell = ["bash", "-c", f"({waiting}; exec {sys.executable} {tmp_path}/worker.py {tmp_path}) & exit 0"]
    # An end of it is a message: the pipe closes when the last process that holds it has ended.
    ended = subprocess.run(shell, env={**os.environ, **AGENT}, capture_output=True, text=True, timeout=60)
    assert "torchrun, which launched this process, is gone" in ended.stderr
    assert not (tmp_path / "pids").exists()


def test_torchruns_empty_log_folders_are_removed_and_a_log_is_kept(chain, tmp_path):
    run = tmp_path / "torchelastic_ab" / "none_cd" / "attempt_0"
    for rank in ("0", "1"):
        (run / rank).mkdir(parents=True)
    (run / "1" / "stdout.log").touch()
    chain.start(TORCHELASTIC_ERROR_FILE=str(run / "0" / "error.json"))
    assert [path.name for path in run.iterdir()] == ["1"]
    (run / "1" / "stdout.log").unlink()
    chain.close()
    (tmp_path / "pids").unlink()
    chain.start(TORCHELASTIC_ERROR_FILE=str(run / "1" / "error.json"))
    assert not (tmp_path / "torchelastic_ab").exists() and tmp_path.exists()


@pytest.mark.parametrize(
    ("words", "elastic", "count"),
    [
        (["python3.11 /venv/bin/torchrun x.py", "-bash"], True, 1),
        (["python -m torch.distributed.run x.py", "bash run.sh", "slurmstepd: [1.0]", "slurmd"], True, 3),
        (["bash wrapper.sh", "python -u -m accelerate.commands.launch x.py", "tmux"], True, 2),
        (["bash -c x", "python colossalai run x.py", "python colossalai run x.py", "zsh"], False, 3),
        (["bash", "python my_sweep.py", "sshd: me [priv]"], False, 0),
        (["python torchrun --node_rank=0 x.py", "-bash", "sshd: me@pts/0", "sshd"], True, 1),
    ],
)
def test_the_chain_ends_at_the_highest_launcher(words, elastic, count, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7" if elastic else "")
    above = [Process(100 + i, 1, 101 + i, tuple(line.split())) for i, line in enumerate(words)]
    assert launchers(above) == above[:count]


def test_the_watch_needs_neither_torch_nor_anything_else_that_takes_long():
    heavy = {"torch", "numpy", "transformers", "colossalai"}
    code = f"import sys, llama_dyt.launch.parent_watch; print([name for name in sys.modules if name in {heavy}])"
    seen = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert seen.stdout == "[]\n", seen.stderr
