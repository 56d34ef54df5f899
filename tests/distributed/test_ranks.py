"""Bookkeeping between ranks: a failure anywhere ends all of them at once with one message, and no wait is silent."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import time

import pytest

from tests.cli.entries import free_port
from tests.distributed import rank_cases
from tests.distributed.rank_cases import run_ranks

pytestmark = pytest.mark.distributed
SECONDS_WITH_A_BUSY_MACHINE = 60
"""What waits for a collective's own deadline takes ten minutes, and half an hour over gloo."""


def test_ranks_with_different_facts_are_told_which_rank_has_which_value(pool):
    for message in pool(4).run(rank_cases.disagree):
        first, remedy = message.splitlines()
        assert first == "ranks disagree on the code of llama_dyt: ranks 0-1: code 0; ranks 2-3: code 1"
        assert "older copy of the code" in remedy


def test_a_failure_while_gathering_for_a_save_ends_all_and_leaves_nothing(tmp_path):
    run = tmp_path / "run"
    first, second = run_ranks(rank_cases.fail_to_gather, tmp_path, free_port(), str(run))
    assert first.status == second.status == 1
    assert first.stderr == "", "one copy is enough, and of the rank it happened to"
    assert second.stderr.count("MemoryError: no room for a tensor") == 1
    assert "(rank 1 on " in second.stderr
    assert first.seconds < SECONDS_WITH_A_BUSY_MACHINE
    assert list(run.iterdir()) == [], "half a checkpoint"


def test_ranks_wait_for_long_work_of_the_first_as_long_as_it_lives(tmp_path):
    ends = run_ranks(rank_cases.count_for_long, tmp_path, free_port(), 14.0, timeout=8)
    assert [(end.status, end.stderr) for end in ends] == [(0, ""), (0, "")]


def test_an_unforeseen_failure_of_what_the_first_rank_computes_is_told_once(tmp_path):
    first, second = run_ranks(rank_cases.fail_while_counting, tmp_path, free_port())
    assert (first.status, second.status) == (1, 1)
    assert first.stderr.count("KeyError: 'no such key'") == 1 and second.stderr == ""


def test_a_rank_that_does_not_come_is_named_and_ends_the_run_after_timeout(tmp_path):
    first, second = run_ranks(rank_cases.never_come, tmp_path, free_port(), timeout=8, say_after=1)
    assert (first.status, second.status) == (1, 1)
    told = [line for line in first.stderr.splitlines() if line]
    waits = [line for line in told if line.startswith("waiting for rank 1 (")]  # it may miss its sign of life first
    assert waits[0].endswith("giving up after 8 s (--timeout)")
    (error,) = [line for line in told if line.startswith("error: ")]
    assert error.startswith("error: rank 1 (") and "saving the random generators" in error
    assert "rank_cases.py" in told[-1] and "never_come" in told[-1], "the end of the report says where it is"
    assert "error" not in second.stderr


@pytest.mark.parametrize(
    ("how", "status", "fate", "message"),
    [
        ("stop", -signal.SIGKILL, "stopped", "has been stopped for 8 s at least (by SIGSTOP"),
        ("kill", -signal.SIGKILL, "gone", "is gone and has said nothing: it was killed from outside"),
        ("raise", 1, "raised", "MemoryError: no room for a gradient"),
    ],
)
def test_a_rank_that_fails_in_a_step_ends_all_which_say_where_they_stood(tmp_path, how, status, fate, message):
    """The reason first, then who stood where; the whole of it in a file. A stopped one is ended by the other."""
    first, second = run_ranks(rank_cases.fail_in_a_step, tmp_path, free_port(), how, str(tmp_path), timeout=8)
    assert (first.status, second.status) == (1, status)
    said = (second if how == "raise" else first).stderr
    reason, report = said.split("where each rank stood (all of it: ")
    assert message in reason
    (file,) = (tmp_path / "failures").iterdir()
    title, failed, waiting = report.splitlines()
    assert title == f"{file}):"
    assert failed.startswith(f"  rank 1: {fate}; step 41, optimizer for ")
    assert waiting.startswith("  rank 0: step 41, forward for ") and ", in all_reduce" in waiting
    whole = file.read_text(encoding="utf-8")
    assert message in whole and "all_reduce #1 of " in whole, "torch's flight recorder has the one before"
    assert "in fail_in_a_step\n    dist.all_reduce(torch.ones(3, 5))" in whole


@pytest.fixture
def dead_disk(tmp_path):
    """(folder on a file system that is frozen, so that who writes there waits in the kernel; what thaws it)."""
    image, folder = tmp_path / "image", tmp_path / "disk"
    folder.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 16 * 2**20)
    for command in (["mkfs.ext4", "-q", image], ["mount", "-o", "loop", image, folder], ["fsfreeze", "-f", folder]):
        if shutil.which(command[0]) is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip(f"{command[0]} cannot be had here: it takes root, and a loop device")
    thaw = ["fsfreeze", "-u", folder]
    yield folder, lambda: subprocess.run(thaw, capture_output=True)
    subprocess.run(thaw, capture_output=True)
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_never_answers_ends_all_after_timeout_though_its_rank_lives(dead_disk, tmp_path):
    """The kernel lets the rank itself end only once the disk does answer; all others are gone by then."""
    folder, thaw = dead_disk

    def thaw_once_told() -> None:
        deadline = time.monotonic() + 100
        said = tmp_path / "stderr-1"
        while time.monotonic() < deadline and not (said.exists() and "where each rank stood" in said.read_text()):
            time.sleep(0.1)
        thaw()

    watching = threading.Thread(target=thaw_once_told)
    watching.start()
    first, second = run_ranks(rank_cases.write_for_ever, tmp_path, free_port(), str(folder), timeout=8)
    watching.join()
    assert (first.status, second.status) == (1, 1)
    reason, _, report = second.stderr.partition("where each rank stood:\n")
    assert "has waited 8 s (--timeout) for a disk or a file system that does not answer (" in reason
    assert "in: writing a checkpoint; see dmesg" in reason
    held_up, waiting = report.splitlines()
    assert held_up.startswith("  rank 1: held up; start for ") and "in writing a checkpoint; pathlib.py" in held_up
    assert waiting.startswith("  rank 0: start for ")


def test_ranks_with_different_devices_end_before_they_make_groups(tmp_path):
    first, second = run_ranks(rank_cases.find_no_gpu, tmp_path, free_port(), free_port())
    assert (first.status, second.status) == (2, 2)
    assert first.stderr.startswith("error: ranks have different devices: rank 0: cuda; rank 1: cpu; give all of them")
    assert second.stderr == ""


def test_a_port_that_is_taken_is_told_by_the_rank_that_should_listen_there(tmp_path):
    with socket.create_server(("", 0)) as taken:
        (end,) = run_ranks(rank_cases.meet_and_part, tmp_path, taken.getsockname()[1], ranks=(0,))
    assert end.status == 2
    (message,) = [line for line in end.stderr.splitlines() if "error: " in line]
    assert message.startswith("error: port ") and "is taken, so rank 0 cannot listen there: give another" in message


@pytest.mark.parametrize("late", (0, 1))
def test_a_wait_for_ranks_that_are_not_there_yet_says_whom_it_waits_for(tmp_path, late):
    """One waits until it says so; then the other comes, and both are well."""
    port, early = free_port(), []
    waiting = threading.Thread(
        target=lambda: early.extend(run_ranks(rank_cases.meet_and_part, tmp_path, port, ranks=(1 - late,), say_after=1))
    )
    waiting.start()
    said = tmp_path / f"stderr-{1 - late}"
    while waiting.is_alive() and not (said.exists() and said.read_text(encoding="utf-8").endswith("\n")):
        time.sleep(0.1)
    (came,) = run_ranks(rank_cases.meet_and_part, tmp_path, port, ranks=(late,))
    waiting.join()
    assert (early[0].status, came.status, came.stderr) == (0, 0, ""), early
    told = early[0].stderr.splitlines()
    where = f"localhost:{port}"
    expected = f"for rank 1 of 2 to come to {where}" if late else f"for rank 0 at {where}"
    assert expected in told[0] and told[0].endswith("it gives up after 60 s (--timeout)")
