"""Where a process stands can be read by another, of one that was stopped or killed too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from llama_dyt.core import peers, processes, standing
from llama_dyt.core.place import Place
from llama_dyt.core.standing import Board, Phase, Standing

TOLD = (
    "from llama_dyt.core import standing\n"
    "from llama_dyt.core.standing import Phase\n"
    "number = standing.share()\n"
    "standing.in_step(41)\n"
    "standing.enter(Phase.BACKWARD)\n"
    "print(number, flush=True)\n"
    "import time; time.sleep(120)\n"
)


@pytest.fixture
def other():
    """(process, the number of its board) of one that stands in a backward of step 41."""
    process = subprocess.Popen([sys.executable, "-c", TOLD], stdout=subprocess.PIPE, text=True)
    yield process, int(process.stdout.readline())
    process.kill()
    process.wait()


def about(process: subprocess.Popen, number: int) -> dict:
    return {"pid": process.pid, "started": processes.start_time(process.pid), "board": number}


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_was_killed_is_known_to_have_stood_where_it_did(other):
    process, number = other
    all_of_machine = peers.Peers({3: about(process, number)})
    process.kill()
    process.wait()
    (gone,) = all_of_machine.gone()
    stood = all_of_machine.standing(gone)
    assert (gone.rank, gone.fate, stood.step, stood.phase) == (3, "gone", 41, Phase.BACKWARD)
    assert str(stood) == "step 41, backward"


def test_a_stopped_process_is_told_from_a_waiting_one_and_ended(other):
    process, number = other
    all_of_machine = peers.Peers({3: about(process, number)})
    assert all_of_machine.stopped_for(1) == []
    process.send_signal(signal.SIGSTOP)
    (peer,) = all_of_machine
    until(lambda: peer.is_stopped)
    assert all_of_machine.stopped_for(3) == all_of_machine.stopped_for(3) == []
    assert all_of_machine.stopped_for(3) == [peer], "the third look on end"
    process.send_signal(signal.SIGCONT)
    until(lambda: not peer.is_stopped)
    assert all_of_machine.stopped_for(3) == [], "it went on, and the count begins anew"
    process.send_signal(signal.SIGSTOP)
    until(lambda: peer.is_stopped)
    all_of_machine.kill()
    assert process.wait(60) == -signal.SIGKILL


def test_none_is_ended_that_only_has_the_number_of_one(other):
    process, _ = other
    assert not processes.kill(process.pid, processes.start_time(process.pid) + 1)
    assert process.poll() is None and processes.state(process.pid, 0) == ""


def test_what_a_board_is_not_known_of_is_not_made_up(other):
    process, number = other
    assert Board(process.pid, None).read() is None
    assert Board(process.pid, number + 100).read() is None


def test_a_phase_within_another_is_left_again_unless_it_fails():
    standing.enter(Phase.CALLBACKS)
    with standing.inside(Phase.SAVE):
        assert standing.mine().phase is Phase.SAVE
    assert standing.mine().phase is Phase.CALLBACKS
    with pytest.raises(OSError), standing.inside(Phase.SAVE):
        raise OSError
    assert standing.mine().phase is Phase.SAVE, "where it failed"
    standing.enter(Phase.START)
    assert str(Standing()) == "start"


def test_stopped_ranks_that_have_not_come_are_found_beside_this_one():
    """Those of the same run, which the same launcher started, and no others."""
    run = {"WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29555"}
    own = os.environ | run | {"RANK": "0"}
    others = {
        "1": own | {"RANK": "1"},
        "2": own | {"RANK": "2"},
        "of another run": own | {"MASTER_PORT": "1", "RANK": "3"},
    }
    looks = (
        "import os, sys, time, signal, subprocess\n"
        "from llama_dyt.core import peers\n"
        "from llama_dyt.core.place import Place\n"
        "sys.stdin.readline()\n"
        "print([peer.rank for peer in peers.stopped_siblings(Place(0, 4))], flush=True)\n"
        "peers.kill_stopped_siblings(Place(0, 4))\n"
    )
    assert peers.stopped_siblings(Place(0, 1)) == []
    sleeping = {name: subprocess.Popen(["sleep", "120"], env=env) for name, env in others.items()}
    looking = subprocess.Popen(
        [sys.executable, "-c", looks], env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        for name in ("1", "of another run"):
            sleeping[name].send_signal(signal.SIGSTOP)
            pid = sleeping[name].pid
            until(lambda pid=pid: processes.state(pid, processes.start_time(pid)) == "T")
        said, _ = looking.communicate("\n", timeout=60)
        assert said == "[1]\n"
        assert sleeping["1"].wait(60) == -signal.SIGKILL
        assert sleeping["2"].poll() is None and sleeping["of another run"].poll() is None
    finally:
        for process in (*sleeping.values(), looking):
            process.kill()
            process.wait()
