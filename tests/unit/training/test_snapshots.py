"""Snapshots without a run: slots, the folder of a machine, what ranks agree on, slots from rank to rank."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from llama_dyt.config.run import RunConfig
from llama_dyt.core.errors import CheckpointError
from llama_dyt.training.settings import problems, warnings
from llama_dyt.training.snapshots.choosing import Parcel, neighbours, newest_whole, plan_of, why_none
from llama_dyt.training.snapshots.folder import MachineFolder, RunOfFolder, StepCounter, left_behind
from llama_dyt.training.snapshots.found import find_snapshot, machines_of
from llama_dyt.training.snapshots.record import read_run_id, remove_run_id, write_run_id
from llama_dyt.training.snapshots.slot import Held, Slot, fingerprint_of, held_in, map_slot, read_marker

FACTS = {"--lr": "0.01"}


def fill(folder: Path, rank: int, number: int, step: int, run: str = "id", copy: bool = False) -> Slot:
    """A whole slot whose bytes follow from rank and step."""
    slot = Slot(folder, rank, number, 4096, copy)
    slot.memory.view(torch.float32).copy_(torch.arange(1024) + 1000.0 * rank + step)
    counters = {"trainer_state": {"step": step}, "schedule": {}, "optimizer_scalars": {}}
    marker = {"step": step, "number": number, "run": run, "size": 4096, "pieces": [], "rng": {}, "counters": counters}
    slot.mark({**marker, "fingerprint": fingerprint_of(slot.memory)[0]})
    return slot


# --- a slot ----------------------------------------------------------------------------------------------------------


def test_a_slot_holds_nothing_until_it_is_marked_and_nothing_again_once_it_is_unmarked(tmp_path):
    slot = Slot(tmp_path, 3, 1, 4096)
    assert held_in(tmp_path) == []
    slot = fill(tmp_path, 3, 1, step=7)
    (held,) = held_in(tmp_path)
    assert (held.rank, held.file, held.step, held.size, held.run) == (3, "rank00003.1", 7, 4096, "id")
    assert torch.equal(map_slot(tmp_path / held.file), slot.memory)
    slot.unmark()
    assert held_in(tmp_path) == []


def test_a_slot_of_another_size_is_made_anew_and_holds_nothing(tmp_path):
    fill(tmp_path, 0, 0, step=7)
    Slot(tmp_path, 0, 0, 8192)
    assert read_marker(tmp_path / "rank00000.0") is None


def test_a_slot_of_the_same_size_is_the_one_that_was_there(tmp_path):
    fill(tmp_path, 0, 0, step=7)
    Slot(tmp_path, 0, 0, 4096)
    assert [held.step for held in held_in(tmp_path)] == [7]


@pytest.mark.parametrize("size", [1, 4, 40_000, 3 * 2**15, 2**24 + 2**15 + 12])
def test_a_fingerprint_tells_any_byte(size):
    memory = torch.arange(size, dtype=torch.int64).to(torch.uint8)
    memory[3::4] = 0  # small numbers as fp32
    before, finite = fingerprint_of(memory)
    assert finite
    for place in {0, size // 2, size - 1}:
        memory[place] ^= 1
        assert fingerprint_of(memory)[0] != before
        memory[place] ^= 1
    assert fingerprint_of(memory)[0] == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 2**22 + 9_000, -1])
def test_a_number_that_is_not_finite_is_found(value, place):
    numbers = torch.zeros(2**22 + 10_001)
    assert fingerprint_of(numbers.view(torch.uint8))[1]
    numbers[place] = value
    assert not fingerprint_of(numbers.view(torch.uint8))[1]


# --- what is chosen --------------------------------------------------------------------------------------------------


def held(rank: int, step: int, copy: bool = False) -> Held:
    return Held(rank, f"{'copy' if copy else 'rank'}{rank:05d}.0", step, "f", 10, "id")


def test_the_newest_step_that_all_ranks_have_is_taken():
    machines = [[held(0, 6), held(0, 9), held(1, 6)], [held(2, 6), held(2, 9), held(1, 9, copy=True)]]
    assert {rank: len(found) for rank, found in newest_whole(machines, 3, 1).items()} == {0: 1, 1: 1, 2: 1}
    assert {found[0].held.step for found in newest_whole(machines, 3, 1).values()} == {9}
    del machines[1][2]
    assert {found[0].held.step for found in newest_whole(machines, 3, 1).values()} == {6}
    assert newest_whole(machines, 3, at_least=7) == {}
    assert why_none(machines, 3, at_least=7) == "rank 1's part of step 9 is in no machine's memory"
    assert why_none(machines, 3, at_least=10) == "they are of step 9 and earlier"
    assert why_none([[], []], 3, 1) == "no machine's memory holds any of them"


def test_a_rank_reads_its_own_machine_and_is_sent_what_that_has_lost():
    machines = [[held(0, 6), held(2, 6, copy=True)], [held(1, 6)], []]
    chosen, parcels = plan_of(newest_whole(machines, 3, 1), [[0], [1], [2]])
    assert [chosen[rank].machine for rank in range(3)] == [0, 1, 0]
    assert parcels == [Parcel(0, 2, held(2, 6, copy=True))]


def test_a_machine_that_came_back_with_other_ranks_sends_what_it_has():
    """torchrun numbers machines anew: ranks 0 and 1 are where 2 and 3 were."""
    machines = [[held(2, 6), held(3, 6)], [held(0, 6), held(1, 6)]]
    _, parcels = plan_of(newest_whole(machines, 4, 1), [[0, 1], [2, 3]])
    assert [(one.sender, one.receiver, one.held.rank) for one in parcels] == [
        (2, 0, 0),
        (3, 1, 1),
        (0, 2, 2),
        (1, 3, 3),
    ]


def test_neighbours_go_round_and_each_machine_has_one():
    assert neighbours([[0, 1]]) == {}
    assert neighbours([[0, 1], [2, 3]]) == {0: 2, 1: 3, 2: 0, 3: 1}
    assert neighbours([[0, 1, 2], [3], [4, 5]]) == {0: 3, 1: 3, 2: 3, 3: 4, 4: 0, 5: 1}
    assert machines_of(["a", "b", "a", "b"]) == [[0, 2], [1, 3]]


# --- the folder of a machine -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path) -> MachineFolder:
    """Of a run whose save_dir knows of it."""
    (tmp_path / "memory").mkdir()
    (tmp_path / "run").mkdir()
    found = MachineFolder(str(tmp_path / "memory"), tmp_path / "run")
    write_run_id(tmp_path / "run", "id")
    found.make(RunOfFolder.this_one("id", tmp_path / "run", FACTS))
    return found


def test_a_save_dir_has_one_id_the_last_one_until_it_is_removed(tmp_path):
    assert read_run_id(tmp_path / "none") is None and not remove_run_id(tmp_path / "none")
    write_run_id(tmp_path, "first")
    write_run_id(tmp_path, "second")
    assert read_run_id(tmp_path) == "second" and len(list(tmp_path.iterdir())) == 1
    assert remove_run_id(tmp_path) and not remove_run_id(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_two_save_dirs_have_two_folders(tmp_path):
    assert MachineFolder(str(tmp_path), tmp_path / "a").path != MachineFolder(str(tmp_path), tmp_path / "b").path


def test_a_folder_that_others_may_enter_is_not_used(folder):
    fill(folder.path, 0, 0, step=7)
    assert folder.run().id == "id" and len(folder.held()) == 1
    folder.path.chmod(0o777)
    assert folder.run() is None and folder.held() == []
    with pytest.raises(CheckpointError, match="not this user's alone; remove it, or give another folder"):
        folder.make(RunOfFolder.this_one("id", folder.path, FACTS))


def test_a_link_in_its_place_is_not_followed(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    for path in folder.path.iterdir():
        path.unlink()
    folder.path.rmdir()
    folder.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError):
        folder.make(RunOfFolder.this_one("id", folder.path, FACTS))
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_the_last_step_is_that_of_the_rank_that_came_furthest(folder):
    assert folder.last_step() is None
    for rank, step in enumerate((8, 9)):
        StepCounter(folder, rank).note(step)
    step, ago = folder.last_step()
    assert step == 9 and 0 <= ago < 60


def test_room_is_asked_for_with_the_arithmetic(folder):
    disk = os.statvfs(folder.path)
    free = disk.f_bavail * disk.f_frsize
    folder.require_room({"rank00000.0": 2**20}, "1 slot")
    with pytest.raises(CheckpointError) as refused:
        folder.require_room({"rank00000.0": free, "rank00000.1": free}, "2 slots for 1 rank")
    text = str(refused.value)
    assert f"snapshots take {2 * free / 2**30:.2f} GiB" in text and "(2 slots for 1 rank); " in text
    assert "of it is not there yet, and" in text
    assert "give another --snapshot_dir, or leave snapshots out" in text


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_small_memory_is_named_with_what_it_has(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("this system lets nobody mount")
    try:
        folder = MachineFolder(str(small), tmp_path / "run")
        folder.make(RunOfFolder.this_one("id", tmp_path / "run", FACTS))
        with pytest.raises(CheckpointError, match=f"16.00 MiB of it .* {small} has room for [01].[0-9]+ MiB:"):
            folder.require_room({"rank00000.0": 2**24}, "one")
        with pytest.raises(OSError, match="No space left"):
            Slot(folder.path, 0, 0, 2**24)
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_runs_that_are_gone_left_is_named_and_removed_once_none_can_use_it(folder, tmp_path):
    other = MachineFolder(str(tmp_path / "memory"), tmp_path / "other")
    assert list(left_behind(folder.path.parent, other.path)) == [], "its process lives"
    gone = replace(folder.run(), started=1)
    folder.make(gone)
    fill(folder.path, 0, 0, step=7)
    (line,) = left_behind(folder.path.parent, other.path)
    assert f"start that again with --load auto, or rm -r {folder.path}" in line and str(tmp_path / "run") in line
    assert list(left_behind(folder.path.parent, folder.path)) == [], "it is the run's own"
    remove_run_id(tmp_path / "run")
    (line,) = left_behind(folder.path.parent, other.path)
    assert line.startswith(f"removed {folder.path}") and not folder.path.exists()


# --- agreeing, in one process ----------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_the_newest_snapshot_is_found_with_its_counters(alone, folder, tmp_path):
    for number, step in enumerate((6, 9)):
        fill(folder.path, 0, number, step)
    StepCounter(folder, 0).note(11)
    found, reason = find_snapshot(folder, tmp_path / "run", FACTS, at_least=1)
    assert reason is None
    assert (found.step, found.number, found.lost_steps, found.run_id) == (9, 1, 2, "id")
    assert found.trainer_state == {"step": 9}
    assert found.in_words.startswith("the snapshot in memory, step 9, 2 steps lost, ")


def test_a_damaged_one_is_passed_over_for_the_one_before(alone, folder, tmp_path):
    for number, step in enumerate((6, 9)):
        fill(folder.path, 0, number, step)
    map_slot(folder.path / "rank00000.1")[17] ^= 4
    found, _ = find_snapshot(folder, tmp_path / "run", FACTS, at_least=1)
    assert found.step == 6
    found, reason = find_snapshot(folder, tmp_path / "run", FACTS, at_least=7)
    assert found is None
    assert reason == "they are of step 6 and earlier (rank00000.1 held other bytes than were written)"


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"--lr": "0.02"}, "they are of a run with --lr 0.01, not 0.02"),
        ({}, "they are of a run with --lr 0.01, not nothing"),
        ({**FACTS, "--norm": "dyt"}, "they are of a run with --norm nothing, not dyt"),
    ],
)
def test_one_of_another_run_is_refused_with_the_difference(alone, folder, tmp_path, facts, reason):
    fill(folder.path, 0, 0, step=9)
    assert find_snapshot(folder, tmp_path / "run", facts, at_least=1) == (None, reason)


def test_those_of_another_course_are_none(alone, folder, tmp_path):
    fill(folder.path, 0, 0, step=9, run="before")
    assert find_snapshot(folder, tmp_path / "run", FACTS, at_least=1) == (None, "no machine's memory holds any of them")
    write_run_id(tmp_path / "run", "anew")
    assert find_snapshot(folder, tmp_path / "run", FACTS, at_least=1) == (None, "no machine's memory holds any of them")
    remove_run_id(tmp_path / "run")
    assert find_snapshot(folder, tmp_path / "run", FACTS, at_least=1) == (None, None), "nobody asked"


def test_a_marker_that_is_no_marker_is_no_snapshot(folder):
    fill(folder.path, 0, 0, step=9)
    marker = folder.path / "rank00000.0.json"
    for text in ("", "{", "[]", json.dumps({"step": 9}), json.dumps({"size": "much"})):
        marker.write_text(text)
        assert folder.held() == [], text


# --- flags -----------------------------------------------------------------------------------------------------------


def test_flags_that_cannot_be_or_are_hardly_meant_are_told():
    run = RunConfig.build("pretrain", snapshot_dir="/tmp")
    assert "--snapshot_dir /tmp has no effect without --snapshot_interval; add that, or leave it out" in map(
        str, problems(run, 1, "cpu")
    )
    run = RunConfig.build("finetune", snapshot_interval=5)
    assert any(line.startswith("--snapshot_interval without --load auto") for line in warnings(run, 1, "cpu", None))
    run = RunConfig.build("finetune", snapshot_interval=5, load="auto")
    assert not any("snapshot" in line for line in warnings(run, 1, "cpu", None))
