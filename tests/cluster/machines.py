"""Machines of a small cluster, made of Linux namespaces: each has a network address, a host name, processes, /run,
/dev/shm and an sshd of its own, and shares files with this one, as over a network file system.

Nothing of this machine's own network or settings is changed, and nothing outlives a test: a machine's processes all end
with the first of them, which ends when its standard input does, however the tests end.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.forks import ROOT, ForkedProgram

PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
"""What machines are made with → the Debian package that has it; scripts/test_gear.sh installs them."""
SSHD = "/usr/sbin/sshd"
INSIDE = ROOT / "tests/cluster/inside.py"
_NAMESPACES = ("--net", "--uts", "--mount", "--pid")
_START_SECONDS = 30
_FIRST_PROCESS = """
set -e
hostname "$1"
mount --bind "$2/hosts" /etc/hosts
mount -t tmpfs none /run
mount -t tmpfs none /dev/shm
ip link set lo up
mkdir /run/sshd
if [ -f "$2/$1.sshd_config" ]; then
  [ ! -f /etc/ssh/ssh_config ] || mount --bind "$2/ssh_config" /etc/ssh/ssh_config
fi
echo ready
read -r _
[ ! -f "$2/$1.sshd_config" ] || /usr/sbin/sshd -D -e -f "$2/$1.sshd_config" 2>"$2/$1.sshd" &
read -r _
"""
_SSHD_CONFIG = """
Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
"""
_SSH_CONFIG = """
Host *
  IdentityFile {folder}/key
  UserKnownHostsFile {folder}/known_hosts
  StrictHostKeyChecking accept-new
  LogLevel ERROR
"""


@dataclass(frozen=True)
class Machine:
    """One of them.

    Attributes:
        name, address: by which the others know it.
        first: pid of its first process as seen from here.
        switch: likewise of what has the switch.
        folder: where the files of its cluster are.
    """

    name: str
    address: str
    first: int
    switch: int
    folder: Path

    def words(self, *command: object) -> list[str]:
        """A command line that runs `command` there."""
        return [*_nsenter(self.first, *_NAMESPACES), f"--wd={self.folder}", "--", *map(str, command)]

    def run(self, *command: object, **options) -> subprocess.CompletedProcess:
        """Run a command there to its end, its output captured as text."""
        return subprocess.run(self.words(*command), capture_output=True, text=True, timeout=240, **options)

    def start(self, *command: object, env: Mapping[str, str] | None = None) -> subprocess.Popen:
        """Start a command there in a session of its own."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.words(*command), env=env, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def fork(self, entry: Path, *flags: object, env: Mapping[str, str]) -> ForkedProgram:
        """Start a Python program there that need not import the engine, which takes seconds."""
        whole = {**os.environ, **env, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        return ForkedProgram([str(INSIDE), str(self.first), str(entry), *map(str, flags)], self.folder, whole)

    def cut(self) -> None:
        """Let nothing in or out any more, and tell nobody: what is sent is lost in the switch."""
        _run(*_nsenter(self.switch, "--net"), "ip", "link", "set", self.name, "nomaster")

    def link_down(self) -> None:
        """Pull the plug of its network."""
        _run(*_nsenter(self.first, "--net"), "ip", "link", "set", "eth0", "down")


@contextmanager
def machines(
    count: int, folder: Path, ssh: bool = False, sshd: Mapping[str, str] | None = None
) -> Iterator[list[Machine]]:
    """So many machines on one switch, named node1, node2, …; skips the test where they cannot be had.

    Args:
        folder: empty; all of them see it, and start there.
        ssh: an sshd on each, and keys by which each reaches all.
        sshd: lines that an sshd's configuration has on some of them, by name.
    """
    reason = why_none(ssh)
    if reason is not None:
        pytest.skip(reason)
    names = [f"node{number}" for number in range(1, count + 1)]
    addresses = [f"10.213.0.{number}" for number in range(1, count + 1)]
    lines = [f"{address} {name}" for address, name in zip(addresses, names, strict=True)]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{line}\n" for line in lines))
    if ssh:
        _write_keys(folder, {name: (sshd or {}).get(name, "") for name in names})
    with ExitStack() as stack:
        switch = stack.enter_context(_first_process("switch", folder, _NAMESPACES))
        inside = _nsenter(_child(switch), "--net")
        _run(*inside, "ip", "link", "add", "name", "bridge", "type", "bridge")
        _run(*inside, "ip", "link", "set", "bridge", "up")
        found = []
        for name, address in zip(names, addresses, strict=True):
            process = stack.enter_context(_first_process(name, folder, _NAMESPACES))
            machine = Machine(name, address, _child(process), _child(switch), folder)
            peer = ("type", "veth", "peer", "name", "eth0", "netns", machine.first)
            _run(*inside, "ip", "link", "add", "name", name, *peer)
            _run(*inside, "ip", "link", "set", name, "master", "bridge", "up")
            there = _nsenter(machine.first, "--net")
            _run(*there, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            _run(*there, "ip", "link", "set", "eth0", "up")
            process.stdin.write("\n")  # its address is there: sshd may listen
            process.stdin.flush()
            found.append(machine)
        for machine in found if ssh else []:
            _wait_for_ssh(machine)
        yield found


@cache
def why_none(ssh: bool = False) -> str | None:
    """Why there can be no machines here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "machines of namespaces need Linux and root"
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    missing += ["openssh-server"] if ssh and not os.access(SSHD, os.X_OK) else []
    missing += ["openssh-client"] if ssh and shutil.which("ssh") is None else []
    if missing:
        return f"machines of namespaces need {', '.join(missing)}: bash scripts/test_gear.sh"
    tried = subprocess.run(
        [
            "unshare",
            *_NAMESPACES,
            "--fork",
            "sh",
            "-c",
            "mount -t tmpfs none /run && ip link add name bridge type bridge",
        ],
        capture_output=True,
        text=True,
    )
    return None if tried.returncode == 0 else f"this system lets nobody make namespaces: {tried.stderr.strip()}"


def environment(**variables: str) -> dict[str, str]:
    """Of a program on a machine: with the project and its interpreter, and none of a launcher's or this shell's."""
    path = f"{Path(sys.executable).parent}{os.pathsep}/usr/sbin:/usr/bin:/sbin:/bin"
    quiet = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    return {"PATH": path, "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), **quiet, **variables}


@contextmanager
def _first_process(name: str, folder: Path, namespaces: Sequence[str]) -> Iterator[subprocess.Popen]:
    words = ["unshare", *namespaces, "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        [*words, "sh", "-c", _FIRST_PROCESS, "sh", name, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        yield process
    finally:
        process.kill()  # and with it the first process, and with that all others
        process.communicate()


def _nsenter(pid: int, *namespaces: str) -> list[str]:
    return ["nsenter", f"--target={pid}", *namespaces]


def _child(process: subprocess.Popen) -> int:
    (pid,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return int(pid)


def _run(*words: object) -> None:
    ended = subprocess.run(list(map(str, words)), capture_output=True, text=True)
    assert ended.returncode == 0, f"{words}: {ended.stderr}"


def _write_keys(folder: Path, more: Mapping[str, str]) -> None:
    for name in ("key", "host_key"):
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name)
    for name, lines in more.items():
        (folder / f"{name}.sshd_config").write_text(_SSHD_CONFIG.format(folder=folder) + lines + "\n")
    (folder / "ssh_config").write_text(_SSH_CONFIG.format(folder=folder))


def _wait_for_ssh(machine: Machine) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while machine.run("bash", "-c", f": </dev/tcp/{machine.address}/22").returncode != 0:
        log = machine.folder / f"{machine.name}.sshd"
        assert time.monotonic() < deadline, log.read_text() if log.exists() else "no sshd"
        time.sleep(0.05)
