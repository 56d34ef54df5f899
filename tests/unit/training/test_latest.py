"""The file that names the newest checkpoint: never one that is not whole, and nothing is lost with it."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from llama_dyt.training.checkpoint.publishing import LATEST, latest_step, point_to_latest
from llama_dyt.training.checkpoint.reader import find_checkpoint
from tests.unit.training.test_publishing import make


@pytest.fixture
def save_dir(tmp_path) -> Path:
    for step in (10, 20, 30):
        make(tmp_path / f"step_{step:08d}", str(step), whole=step < 30)
    return tmp_path


def test_it_names_the_newest_that_is_whole_whichever_was_saved_last(save_dir):
    point_to_latest(save_dir, 20, print)
    assert (save_dir / LATEST).read_text() == "step_00000020\n"
    point_to_latest(save_dir, 10, print)  # another course, which goes on from before
    assert latest_step(save_dir) == 20
    make(save_dir / "step_00000040", "40")
    point_to_latest(save_dir, 40, print)
    assert latest_step(save_dir) == 40


@pytest.mark.parametrize("content", [None, b"", b"step_00000010", b"step_00000010\n", b"../elsewhere", b"\xff\xfe"])
@pytest.mark.filterwarnings("error")
def test_a_run_is_resumed_from_the_newest_whole_one_where_it_is_absent_behind_or_nonsense(save_dir, content):
    if content is not None:
        (save_dir / LATEST).write_bytes(content)
    (save_dir / "step_00000030").rename(save_dir / "moved")
    for load in ("auto", str(save_dir)):
        assert find_checkpoint(load, save_dir).name == "step_00000020"


def test_a_run_is_told_where_what_it_names_is_gone(save_dir):
    (save_dir / LATEST).write_text("step_00000040\n")
    (save_dir / "step_00000030").rename(save_dir / "moved")
    with pytest.warns(UserWarning, match="latest names step 40, which is not there: step 20 is the newest that is"):
        assert find_checkpoint("auto", save_dir).name == "step_00000020"


def test_killed_at_any_time_it_is_the_old_or_the_new_one(save_dir):
    found = set()
    for number in range(20):
        (save_dir / LATEST).write_text("step_00000010\n")
        child = os.fork()
        if child == 0:
            left = number

            def kill_in_time(event: str, arguments: tuple) -> None:
                nonlocal left
                if event in ("open", "os.rename", "os.remove") and LATEST in str(arguments[0]):
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(kill_in_time)
            point_to_latest(save_dir, 20, print)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found.add(((save_dir / LATEST).read_text(), status))
        if status == 0:
            break
    assert ("step_00000010\n", -signal.SIGKILL) in found and ("step_00000020\n", 0) in found
    assert {content for content, _ in found} == {"step_00000010\n", "step_00000020\n"}


def test_a_checkpoint_is_whole_though_it_cannot_be_named(save_dir):
    (save_dir / LATEST).mkdir()
    (save_dir / LATEST / "in the way").touch()
    said: list[str] = []
    point_to_latest(save_dir, 20, said.append)
    (line,) = said
    assert line.startswith(f"{save_dir}/latest could not be written, and may name an older checkpoint: ")
