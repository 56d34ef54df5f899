"""A run that comes back on fewer ranks or machines: the same sequences in the same steps, and the losses they have."""

from __future__ import annotations

import os
import signal

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli import entries
from tests.cli.entries import Command, finish, wait_until
from tests.cluster.machines import environment, machines
from tests.forks import ROOT

SAME = 2e-6
"""Relative: sums of fp32 in another order."""


def course(folder) -> list[tuple[int, int, float]]:
    return [(line["step"], line["tokens_seen"], line["lr"]) for line in read_metrics(folder / "metrics.jsonl")]


def losses(folder) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl")]


def test_half_the_ranks_go_on_with_the_same_batches(corpus, tmp_path):
    flags = {"max_steps": 6, "batch_size": 1, "save_interval": 3}
    whole = Command("pretrain", corpus.pretrain_flags(save_dir="whole", **flags), tmp_path, "srun", processes=2).run()
    assert whole.status == 0, whole.stderr
    more = {"save_dir": "half", "load": "whole/step_00000003"}
    half = Command("pretrain", corpus.pretrain_flags(**flags, **more), tmp_path).run()
    assert half.status == 0, half.stderr
    assert "--gradient_accumulation_steps is 2 on 1 data-parallel ranks, so that a step keeps the 2 of" in half.stderr
    assert course(tmp_path / "half") == course(tmp_path / "whole")[3:]
    assert losses(tmp_path / "half") == pytest.approx(losses(tmp_path / "whole")[3:], rel=SAME)


@pytest.mark.matrix
def test_torchrun_goes_on_with_the_machines_that_are_left(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "LIMIT_SECONDS", 200)
    flags = corpus.pretrain_flags(save_dir="run", max_steps=40, batch_size=1, save_interval=1, timeout=5, load="auto")
    waits = "--rdzv_conf=last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"
    rendezvous = ("--rdzv_id=1", "--rdzv_backend=c10d", "--rdzv_endpoint=node1:29400", waits)
    words = ("-m", "torch.distributed.run", "--nnodes=1:2", "--max-restarts=3", "--nproc_per_node=1", *rendezvous)
    with machines(2, tmp_path) as nodes:
        started = [node.start("python", *words, ROOT / "pretrain.py", *flags, env=environment()) for node in nodes]
        wait_until((tmp_path / "run/step_00000003").exists, started[0])
        os.kill(nodes[1].first, signal.SIGKILL)  # the machine is off
        started[1].communicate()
        ended = finish(started[:1])
    assert ended.status == 0, ended.stderr
    assert "data-parallel ranks, so that a step keeps the 2 of" in ended.stderr
    (tmp_path / "reference").mkdir()
    undisturbed = corpus.pretrain_flags(save_dir="run", max_steps=40, batch_size=1, global_batch_size=2)
    assert Command("pretrain", undisturbed, tmp_path / "reference").run().status == 0
    assert course(tmp_path / "run") == course(tmp_path / "reference/run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "reference/run"), rel=1e-4)


@pytest.mark.matrix
def test_torchrun_goes_on_with_a_machine_that_joins(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "LIMIT_SECONDS", 200)
    course_of = {"save_dir": "run", "max_steps": 300, "batch_size": 1, "global_batch_size": 2, "load": "auto"}
    rendezvous = (
        "--rdzv_id=1",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=node1:29400",
        "--rdzv_conf=last_call_timeout=1",
    )
    words = ("-m", "torch.distributed.run", "--nnodes=1:2", "--max-restarts=3", "--nproc_per_node=1", *rendezvous)
    command = ("python", *words, ROOT / "pretrain.py", *corpus.pretrain_flags(**course_of))
    with machines(2, tmp_path) as nodes:
        # Without this torchrun's agents look for each other's ranks in the store of the round before.
        env = environment(TORCH_DISABLE_SHARE_RDZV_TCP_STORE="1")
        first = nodes[0].start(*command, env=env)
        metrics = tmp_path / "run/metrics.jsonl"
        wait_until(lambda: metrics.exists() and len(read_metrics(metrics)) > 2, first)
        ended = finish([first, nodes[1].start(*command, env=env)])
    assert ended.status == 0, ended.stderr
    assert "on 2 cpu processes" in ended.stderr, ended.stderr  # the machine that joined took part
    (tmp_path / "reference").mkdir()
    undisturbed = corpus.pretrain_flags(**{**course_of, "load": None})
    assert Command("pretrain", undisturbed, tmp_path / "reference").run().status == 0
    assert course(tmp_path / "run") == course(tmp_path / "reference/run")
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "reference/run"), rel=1e-3)
