"""Snapshots on machines with memory of their own: one that lost it gets its part from its neighbour."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.entries import Command, finish
from tests.cli.test_snapshots import assert_same, flags_of
from tests.cluster.machines import Machine, machines
from tests.cluster.test_machines import start_as_slurm_does

IN_MEMORY = {"snapshot_dir": "/dev/shm"}


def left_in(node: Machine) -> list[str]:
    return node.run("find", "/dev/shm", "-path", "*snapshots*").stdout.split()


def undisturbed(corpus, folder: Path) -> Path:
    folder.mkdir()
    (folder / "killed").touch()
    ended = Command("pretrain", flags_of(corpus, folder), folder, "srun", processes=2).run()
    assert ended.status == 0, ended.stderr
    return folder


@pytest.mark.parametrize(
    "lost", [[1], pytest.param([0], marks=pytest.mark.matrix), pytest.param([], marks=pytest.mark.matrix)]
)
def test_a_run_goes_on_from_memory_also_of_a_machine_that_lost_its_own(corpus, tmp_path, lost):
    flags = flags_of(corpus, tmp_path, **IN_MEMORY)
    with machines(2, tmp_path) as nodes:
        broken = finish(start_as_slurm_does(nodes, flags))
        assert broken.status != 0 and (tmp_path / "killed").exists(), broken.stderr
        for node, rank in zip(nodes, (0, 1), strict=True):
            names = {Path(name).name for name in left_in(node)}
            assert {f"rank{rank:05d}.0.json", f"copy{1 - rank:05d}.0.json", f"copy{1 - rank:05d}.1.json"} <= names
        for number in lost:
            assert nodes[number].run("sh", "-c", "rm -r /dev/shm/*").returncode == 0
        again = finish(start_as_slurm_does(nodes, flags))
        assert again.status == 0, again.stderr
        assert [left_in(node) for node in nodes] == [[], []]
    assert "resumed from the snapshot in memory, step 6, 2 steps lost" in again.stderr
    assert_same(tmp_path, undisturbed(corpus, tmp_path / "through"))


@pytest.mark.matrix
def test_what_no_machine_has_is_taken_from_the_disk(corpus, tmp_path):
    flags = flags_of(corpus, tmp_path, **IN_MEMORY)
    with machines(2, tmp_path) as nodes:
        assert finish(start_as_slurm_does(nodes, flags)).status != 0
        assert nodes[0].run("sh", "-c", "rm -r /dev/shm/*").returncode == 0
        assert nodes[1].run("sh", "-c", "rm /dev/shm/*/copy*").returncode == 0
        again = finish(start_as_slurm_does(nodes, flags))
        assert again.status == 0, again.stderr
        assert [left_in(node) for node in nodes] == [[], []]
    assert "snapshots in memory are not used: rank 0's part of step 6 is in no machine's memory" in again.stderr
    assert "resumed from run/step_00000005" in again.stderr
    assert_same(tmp_path, undisturbed(corpus, tmp_path / "through"))
