"""Runs of several machines: started over ssh, by torchrun and as Slurm does, and what becomes of all when one fails."""

from __future__ import annotations

import ast
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli import entries
from tests.cli.conftest import Corpus
from tests.cli.entries import Command, Process, finish, wait_until
from tests.cli.test_launcher_killed import descendants
from tests.cluster.machines import Machine, environment, machines
from tests.forks import ROOT

STEPS = 3
TIMEOUT = 4
"""--timeout of the runs that fail, in seconds."""


def flags_of(corpus: Corpus, **changes: object) -> list[str]:
    return corpus.pretrain_flags(**{"save_dir": "run", "max_steps": STEPS, "batch_size": 1, **changes})


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "run/metrics.jsonl")]


def reference(corpus: Corpus, folder: Path, processes: int) -> list[float]:
    """Losses of as many processes on one machine."""
    (folder / "reference").mkdir()
    ended = Command("pretrain", flags_of(corpus), folder / "reference", launcher="srun", processes=processes).run()
    assert ended.status == 0, ended.stderr
    return losses(folder / "reference")


def start_as_slurm_does(nodes: Sequence[Machine], flags: Sequence[str]) -> list[Process]:
    """One rank a machine, with the variables that srun sets."""
    job = {"SLURM_STEP_NUM_TASKS": str(len(nodes)), "SLURM_STEP_NODELIST": f"node[1-{len(nodes)}]"}
    job |= {"SLURM_JOB_ID": "4242", "SLURM_STEP_TASKS_PER_NODE": f"1(x{len(nodes)})", "SLURM_LOCALID": "0"}
    return [
        node.fork(ROOT / "pretrain.py", *flags, env={**job, "SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)})
        for rank, node in enumerate(nodes)
    ]


def test_colossalai_run_over_ssh_trains_as_one_machine_does(corpus, tmp_path):
    with machines(2, tmp_path, ssh=True) as nodes:
        (tmp_path / "hosts.txt").write_text("# ours\nnode1 slots=1\nnode2\n")
        command = ("-m", "llama_dyt.launch.colossalai_run", "run", "--hostfile", "hosts.txt", ROOT / "pretrain.py")
        ended = finish([nodes[0].start("python", *command, *flags_of(corpus), env=environment())])
        assert ended.status == 0, ended.stdout + ended.stderr
        assert "node1: success" in ended.stdout and "node2: success" in ended.stdout
    assert losses(tmp_path) == reference(corpus, tmp_path, 2)


@pytest.mark.matrix
def test_secrets_reach_the_other_machine_and_no_line_that_others_see_and_arguments_stay_whole(tmp_path):
    program = """
import os, pathlib, sys
lines = [file.read_bytes() for file in pathlib.Path("/proc").glob("[0-9]*/cmdline")]
seen = any(os.environ["HF_TOKEN"].encode() in line for line in lines)
told = {"token": os.environ["HF_TOKEN"], "seen": seen, "words": sys.argv[1:], "odd": os.environ["ODD"]}
pathlib.Path("rank" + os.environ["RANK"]).write_text(repr(told))
"""
    folder = tmp_path / "a $(touch pwned) b"
    with machines(2, tmp_path, ssh=True) as nodes:
        folder.mkdir()
        (folder / "program.py").write_text(program)
        (folder / "hosts.txt").write_text("node1 slots=1\nnode2\n")
        words = ["two words", "$(touch pwned)", "it's"]
        env = {**environment(), "HF_TOKEN": "hf_canary $x `y`", "ODD": '"; touch pwned; echo "$HOME'}
        module = ("-m", "llama_dyt.launch.colossalai_run", "run", "--hostfile", "hosts.txt", "program.py")
        ended = finish([nodes[0].start("env", "-C", folder, "python", *module, *words, env=env)])
        assert ended.status == 0, ended.stdout + ended.stderr
    told = {"token": env["HF_TOKEN"], "seen": False, "words": words, "odd": env["ODD"]}
    assert [ast.literal_eval((folder / f"rank{rank}").read_text()) for rank in (0, 1)] == [told, told]
    assert env["HF_TOKEN"] not in ended.stdout + ended.stderr
    assert not [*tmp_path.rglob("pwned")]


@pytest.mark.matrix
def test_ranks_of_three_machines_train_as_one_machine_does(corpus, tmp_path):
    with machines(3, tmp_path) as nodes:
        ended = finish(start_as_slurm_does(nodes, flags_of(corpus)))
        assert ended.status == 0, ended.stderr
    assert losses(tmp_path) == reference(corpus, tmp_path, 3)


@pytest.mark.matrix
def test_torchrun_of_three_machines_trains_as_one_machine_does(corpus, tmp_path):
    with machines(3, tmp_path) as nodes:
        rendezvous = ("--rdzv_id=1", "--rdzv_backend=c10d", "--rdzv_endpoint=node1:29400")
        words = ("-m", "torch.distributed.run", "--nnodes=3", "--nproc_per_node=1", *rendezvous, ROOT / "pretrain.py")
        ended = finish([node.start("python", *words, *flags_of(corpus), env=environment()) for node in nodes])
        assert ended.status == 0, ended.stdout + ended.stderr
    assert losses(tmp_path) == reference(corpus, tmp_path, 3)


def kill_rank(node: Machine, process: Process) -> None:
    os.kill(descendants(process.pid)[0], signal.SIGKILL)


def lose_packets(node: Machine, process: Process) -> None:
    node.cut()


def pull_the_plug(node: Machine, process: Process) -> None:
    node.link_down()


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(kill_rank, marks=pytest.mark.matrix),
        lose_packets,
        pytest.param(pull_the_plug, marks=pytest.mark.matrix),
    ],
)
def test_all_end_within_the_timeout_and_name_the_machine_that_is_lost(fault, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "LIMIT_SECONDS", 90)
    with machines(2, tmp_path) as nodes:
        flags = flags_of(corpus, max_steps=1_000_000, timeout=TIMEOUT)
        processes = start_as_slurm_does(nodes, flags)
        wait_until(lambda: bool(losses_so_far(tmp_path)), processes[0])
        fault(nodes[1], processes[1])
        start = time.monotonic()
        ended = finish(processes)
        seconds = time.monotonic() - start
    assert ended.status != 0
    assert f"rank 1 (node2) gave no sign of life for {TIMEOUT} s (--timeout)" in ended.stderr, ended.stderr
    assert "Traceback" not in ended.stderr, ended.stderr
    assert seconds < 30 + TIMEOUT  # its own is TIMEOUT and a few looks; a busy machine takes longer


def losses_so_far(folder: Path) -> list[float]:
    return losses(folder) if (folder / "run/metrics.jsonl").exists() else []


@pytest.mark.matrix
def test_colossalai_run_ends_when_a_machine_is_lost(corpus, tmp_path, monkeypatch):
    """Its connection to that machine is silent, and it waits for the machine's word."""
    monkeypatch.setattr(entries, "LIMIT_SECONDS", 200)
    with machines(2, tmp_path, ssh=True) as nodes:
        (tmp_path / "hosts.txt").write_text("node1 slots=1\nnode2\n")
        command = ("-m", "llama_dyt.launch.colossalai_run", "run", "--hostfile", "hosts.txt", ROOT / "pretrain.py")
        flags = flags_of(corpus, max_steps=1_000_000, timeout=TIMEOUT)
        process = nodes[0].start("python", *command, *flags, env=environment())
        wait_until(lambda: bool(losses_so_far(tmp_path)), process)
        nodes[1].cut()
        ended = finish([process])
    assert f"rank 1 (node2) gave no sign of life for {TIMEOUT} s (--timeout)" in ended.stdout + ended.stderr
    assert "node2: failure" in ended.stdout, ended.stdout
