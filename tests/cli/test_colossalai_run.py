"""`colossalai run` as scripts/setup.sh installs it: host files with comments, no need of an activated environment."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from llama_dyt.core.processes import look_at
from tests.cli.entries import finish, free_port, wait_until
from tests.cli.test_launcher_killed import descendants
from tests.forks import ROOT


def start(folder: Path, *words: str) -> subprocess.Popen:
    """Outside of any environment: the PATH has the system's programs alone."""
    command = [sys.executable, "-m", "llama_dyt.launch.colossalai_run", "run", f"--master_port={free_port()}", *words]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_it_starts_the_environments_own_programs_on_the_hosts_of_a_commented_file(tmp_path):
    (tmp_path / "hosts").write_bytes(b"# ours\r\n\r\nlocalhost slots=2  # this one\r\n")
    (tmp_path / "program.py").write_text(
        "import os, sys; sys.stdout.write(f'rank {os.environ[\"RANK\"]} {sys.executable}\\n')"
    )
    ended = finish([start(tmp_path, "--hostfile=hosts", "program.py")])
    assert ended.status == 0, ended.stdout + ended.stderr
    assert {f"rank {rank} {sys.executable}" for rank in range(2)} <= set(ended.stdout.splitlines())


def test_all_that_it_started_ends_with_it(tmp_path):
    (tmp_path / "program.py").write_text(
        "from llama_dyt.launch.parent_watch import end_with_launcher\n"
        "end_with_launcher()\n"
        "open('up', 'w').close()\n"
        "__import__('time').sleep(600)\n"
    )
    process = start(tmp_path, "--nproc_per_node=1", "program.py")
    wait_until((tmp_path / "up").exists, process)
    below = descendants(process.pid)
    assert len(below) > 2
    process.kill()
    deadline = time.monotonic() + 30
    while left := [pid for pid in below if look_at(pid)]:
        assert time.monotonic() < deadline, [look_at(pid) for pid in left]
        time.sleep(0.05)
    process.communicate()


def test_a_host_file_that_contradicts_the_flags_is_told_in_one_line(tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=4\n")
    ended = finish([start(tmp_path, "--hostfile=hosts", "--nproc_per_node=2", "program.py")])
    assert ended.status == 2
    assert "error: --hostfile hosts says slots=4 and --nproc_per_node 2" in ended.stderr
