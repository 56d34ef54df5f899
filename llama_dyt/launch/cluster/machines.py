"""The machines that a run is to have, and an agent on each that answers questions."""

from __future__ import annotations

import json
import os
import queue
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_dyt.core.code import FOLDER
from llama_dyt.core.errors import ConfigurationError, LlamaDytError

_LAST_LINES = 3


class Silent(LlamaDytError):
    """An agent could not be started, or does not answer."""


@dataclass(frozen=True)
class Reach:
    """How commands get to other machines: ssh as the user has it, or srun within an allocation.

    Attributes:
        words: what goes before the machine's name; `ssh -p 2222`, say.
        timeout: seconds for a connection.
    """

    words: tuple[str, ...]
    timeout: float

    def command(self, host: str, there: Sequence[str]) -> list[str]:
        if Path(self.words[0]).name == "srun":
            return [*self.words, f"--nodelist={host}", *there]
        # BatchMode: a machine that asks for a password is one that cannot be reached.
        options = ("-o", "BatchMode=yes", "-o", f"ConnectTimeout={max(round(self.timeout), 1)}")
        return [*self.words, *options, host, shlex.join(there)]

    @property
    def remedy(self) -> str:
        if Path(self.words[0]).name == "srun":
            return "see sinfo -R and the node's slurmd log"
        return "`ssh HOST` must work from here without a password (ssh-copy-id, its sshd, name and firewall)"


def reach_of(ssh: str, in_slurm: bool, timeout: float) -> Reach:
    """By srun within a Slurm job, else by ssh."""
    if in_slurm:
        return Reach(("srun", "--nodes=1", "--ntasks=1", "--overlap", "--quiet"), timeout)
    return Reach(tuple(shlex.split(ssh)), timeout)


def slurm_hosts(env: Mapping[str, str]) -> list[str]:
    """The machines of the Slurm job that this process is in; none outside of one.

    Raises:
        ConfigurationError: scontrol cannot say.
    """
    listed = env.get("SLURM_JOB_NODELIST")
    if not listed:
        return []
    try:
        said = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigurationError(f"scontrol cannot say which machines {listed} are: {error}; give --hostfile") from None
    return said.stdout.split()


class Agent:
    """The agent on one machine. Its methods may be called from one thread at a time."""

    def __init__(self, host: str, reach: Reach) -> None:
        """Raises Silent where it does not start."""
        self.host = host
        there = ("env", f"PYTHONPATH={FOLDER.parent}", sys.executable, "-m", "llama_dyt.launch.cluster.agent")
        here = host in ("localhost", "127.0.0.1", socket.gethostname())
        words = list(there) if here else reach.command(host, there)
        if shutil.which(words[0]) is None:
            raise Silent(f"there is no {words[0]} on this machine")
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._answers: queue.Queue[str] = queue.Queue()
        self._said: list[str] = []
        self._readers = [
            threading.Thread(target=self._read, args=(self._process.stdout, self._answers.put), daemon=True),
            threading.Thread(target=self._read, args=(self._process.stderr, self._said.append), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        try:
            self._answer(2 * reach.timeout + 10)
        except Silent:
            self.end()
            raise

    @staticmethod
    def _read(lines: Any, take: Any) -> None:
        for line in lines:
            take(line)
        take("")

    def ask(self, what: str, within: float, /, **arguments: Any) -> Any:
        """The answer to a question of `agent.ANSWERS`.

        Raises:
            Silent: there is none within so many seconds.
            LlamaDytError: it failed there.
        """
        try:
            print(json.dumps({"ask": what, **arguments}), file=self._process.stdin, flush=True)
        except OSError:
            raise Silent(self._why()) from None
        answer = self._answer(within)
        if "error" in answer:
            raise LlamaDytError(answer["error"])
        return answer["answer"]

    def _answer(self, timeout: float) -> dict[str, Any]:
        while True:
            try:
                line = self._answers.get(timeout=timeout)
            except queue.Empty:
                raise Silent(f"no answer within {timeout:g} s") from None
            if not line:
                raise Silent(self._why())
            with suppress(ValueError):  # a greeting of the machine's shell
                answer = json.loads(line)
                if isinstance(answer, dict) and not {"ready", "answer", "error"}.isdisjoint(answer):
                    return answer

    def _why(self) -> str:
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._readers[1].join(5)
        lines = [line.strip() for line in self._said if line.strip()]
        return "; ".join(lines[-_LAST_LINES:]) or f"it ended with status {self._process.poll()}"

    def end(self) -> None:
        """It ends with its input; what is left of it here is killed."""
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def start_agents(hosts: Sequence[str], reach: Reach) -> tuple[dict[str, Agent], dict[str, str]]:
    """(agents by host, why there is none on the others), started all at once."""

    def start(host: str) -> Agent | str:
        try:
            return Agent(host, reach)
        except Silent as error:
            return str(error)

    with ThreadPoolExecutor(min(len(hosts), 64)) as pool:
        found = dict(zip(hosts, pool.map(start, hosts), strict=True))
    silent = {host: why for host, why in found.items() if isinstance(why, str)}
    return {host: agent for host, agent in found.items() if host not in silent}, silent


def no_python(why: str) -> bool:
    """Whether a machine was reached and has not this interpreter, or not this code, where this one has."""
    return bool(re.search(r"No such file or directory|not found|No module named|ModuleNotFoundError", why)) and (
        os.path.basename(sys.executable) in why or "llama_dyt" in why or "env:" in why
    )
