"""A process of a run ends with the program that launched it: torchrun, `colossalai run`, Slurm's step daemon.

Killed by SIGKILL, none of them can end what it has started: its workers would wait in a rendezvous, or train, with
nobody in charge. So every entry calls `end_with_launcher` in its first lines, before the imports that take seconds. A
shell, tmux, nohup or an ssh session of a person is no launcher: what was started from it outlives it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import NoReturn

from llama_dyt.core.console import on_its_own_line
from llama_dyt.core.processes import Process, ancestors, children, end_with_parent

_LOOK_SECONDS = 0.5
_STATUS = 1
_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "fish"}


def end_with_launcher() -> None:
    """Have this process end when a program that launched it does; at once where that has happened already.

    The kernel sees to it for the direct parent. A thread looks after all others, from the parent up to the program that
    a person or a batch script started: `colossalai run` has a process of its own and torchrun between itself and the
    workers. Without a launcher nothing is done.
    """
    _leave_no_log_folders()
    above = ancestors()
    chain = launchers(above)
    if not chain:
        if _started_by_an_agent() and not any(_python_program(process.words) for process in above):
            _end("torchrun", [])
        return
    if _command_is_gone(chain):
        _end("`colossalai run`", chain)
    end_with_parent(chain[0].pid)
    threading.Thread(target=_watch, args=(chain,), name="llama_dyt-parent-watch", daemon=True).start()


def launchers(above: list[Process]) -> list[Process]:
    """The processes without which this one is to end, of its ancestors: from its parent to the highest launcher."""
    highest = -1
    agent = None
    for place, process in enumerate(above):
        if agent is None and _started_by_an_agent() and _python_program(process.words):
            agent = process
            highest = place
        elif (
            _is_colossalai_run(process)
            or _name(process).startswith("slurmstepd")
            or (agent is not None and _carries(process, agent, above[place - 1]))
        ):
            highest = place
    return above[: highest + 1]


def _started_by_an_agent() -> bool:
    """Whether torchrun, or another program with an elastic agent of torch's in it, set this process's environment."""
    return bool(os.environ.get("TORCHELASTIC_RUN_ID"))


def _is_colossalai_run(process: Process) -> bool:
    program = _python_program(process.words)
    return program in ("colossalai", "llama_dyt.launch.colossalai_run") and "run" in process.words


def _carries(process: Process, agent: Process, below: Process) -> bool:
    """Whether this is the ssh session by which `colossalai run` on another machine has started torchrun here.

    Its torchrun is told its node's number and is started by ssh itself; a person who has logged in has a shell between.
    """
    if not _name(process).startswith("sshd"):
        return False
    told_its_node = any(re.match("--node[_-]rank", word) for word in agent.words)
    return told_its_node and (below == agent or (_name(below) in _SHELLS and "-c" in below.words[1:3]))


def _command_is_gone(chain: list[Process]) -> bool:
    """Whether `colossalai run` ended before this process began: its own child, which has its command line, is then the
    only one left of the two."""
    both = [place for place, process in enumerate(chain) if _is_colossalai_run(process)]
    if len(both) != 1:
        return False
    below = chain[both[0] - 1] if both[0] else None
    return below is None or "--multiprocessing-fork" not in below.words


def _name(process: Process) -> str:
    return os.path.basename(process.words[0].split(":")[0])


def _python_program(words: tuple[str, ...]) -> str:
    """What a Python was told to run: the file's name, or the module after -m; empty for any other program."""
    if not os.path.basename(words[0]).startswith(("python", "pypy")):
        return ""
    rest = iter(words[1:])
    for word in rest:
        if word == "-c":
            return "-c"
        if re.fullmatch("-[a-zA-Z]*m", word):
            return next(rest, "")
        if word in ("-W", "-X"):
            next(rest, "")
        elif not word.startswith("-"):
            return os.path.basename(word)
    return "-"


def _watch(chain: list[Process]) -> None:
    while True:
        for place, process in enumerate(chain):
            if not process.is_there:
                _end(f"{_python_program(process.words) or _name(process)} (pid {process.pid})", chain[:place])
        time.sleep(_LOOK_SECONDS)


def _end(launcher: str, below: list[Process]) -> NoReturn:
    """End this process, what it has started, and the launchers below the one that is gone: they might start it anew."""
    _leave_no_log_folders(of_all=True)
    for pid in children():  # data workers end with this process; others, such as a compiler, have files to remove
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    if os.environ.get("LOCAL_RANK", "0") == "0":
        line = on_its_own_line(f"error: {launcher}, which launched this process, is gone: ending with it")
        with contextlib.suppress(OSError):  # nobody may read it any more, and then this must not wait
            os.set_blocking(2, False)
            os.write(2, line.encode())
    # Every rank does so: one that has not looked yet may be ended for lack of this one. The parent comes last: with it
    # this process ends too.
    for process in reversed(below):
        if process.is_there and _python_program(process.words):
            with contextlib.suppress(OSError):
                os.kill(process.pid, signal.SIGTERM)
    os._exit(_STATUS)


def _leave_no_log_folders(of_all: bool = False) -> None:
    """Remove the folders that torchrun makes in TMPDIR for its workers' logs and leaves there, empty.

    A folder that a user named is not touched, nor one with a file in it; a rank removes its own, the last one the rest.

    Args:
        of_all: those of the other ranks too: torchrun is gone, and will not open a log in one any more.
    """
    own = Path(os.environ.get("TORCHELASTIC_ERROR_FILE", "")).parent
    made = next((folder for folder in own.parents if folder.name.startswith("torchelastic_")), None)
    if made is None:
        return
    below = [Path(folder) for folder, _, _ in os.walk(made, topdown=False)] if of_all else [own, *own.parents]
    for folder in below:
        with contextlib.suppress(OSError):
            folder.rmdir()
        if folder == made:
            return
