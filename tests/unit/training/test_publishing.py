"""Runs killed by SIGKILL at every place where a checkpoint gets its name, and where what they left is put in order."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llama_dyt.core.store import MARKER, store_of
from llama_dyt.training.checkpoint.marker import described, marker_of
from llama_dyt.training.checkpoint.publishing import clear_leftovers, find_steps, home_of
from llama_dyt.training.checkpoint.reader import find_checkpoint

_CHANGES = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")


def killed_at(number: int, action: Callable[[], None]) -> bool:
    """Do it in a fork that kills itself right before its change number so-and-so to files; False if it came through."""
    child = os.fork()
    if child == 0:
        left = number

        def kill_in_time(event: str, arguments: tuple) -> None:
            nonlocal left
            if event in _CHANGES and "step_" in str(arguments[0]):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(kill_in_time)
        status = 1
        try:
            action()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, -signal.SIGKILL)
    return status != 0


def make(folder: Path, content: str, whole: bool = True) -> Path:
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "weights").write_text(content)
    (folder / "trainer_state.json").write_text(content)
    if whole:
        (folder / MARKER).write_text(marker_of(described(folder)))
    return folder


def publish(save_dir: Path, step: int, say: Callable[[str], None]) -> None:
    """Give what was made aside as 0a0b its name."""
    final = save_dir / f"step_{step:08d}"
    aside = final.with_name(f".{final.name}.0a0b.unfinished")
    store_of(final).stage(final, "0a0b").publish(marker_of(described(aside)), say)


def newest(save_dir: Path) -> tuple[str, str]:
    """(the name it has or will have, what is in it) of what --load auto takes."""
    found = find_checkpoint("auto", save_dir)
    return home_of(found).name, (found / "model" / "weights").read_text()


@pytest.mark.parametrize("replacing", [True, False])
@pytest.mark.filterwarnings("error")
def test_a_run_killed_anywhere_in_publishing_is_resumed_from_that_step_and_leaves_no_litter(tmp_path, replacing):
    outcomes, states = [], set()
    for number in range(100):
        save_dir = tmp_path / str(number)
        make(save_dir / "step_00000002", "before")
        if replacing:
            make(save_dir / "step_00000003", "old")
        make(save_dir / ".step_00000003.0a0b.unfinished", "new", whole=False)
        killed = killed_at(number, lambda save_dir=save_dir: publish(save_dir, 3, say=lambda message: None))
        outcomes.append(newest(save_dir))
        expected = newest(save_dir)
        state = tuple(sorted(str(path.relative_to(save_dir)) for path in save_dir.rglob("*")))
        for again in range(
            0 if state in states else 100
        ):  # the next run is killed as well, while it puts that in order
            copy = Path(shutil.copytree(save_dir, tmp_path / "copy"))
            still = killed_at(again, lambda copy=copy: clear_leftovers(copy, lambda message: None))
            assert newest(copy) == expected, f"change {number}, then {again}"
            if not still:
                left = sorted(path.name for path in copy.iterdir())
                assert left == sorted({"step_00000002", expected[0]}), f"change {number}"
            shutil.rmtree(copy)
            if not still:
                break
        states.add(state)
        if not killed:
            break
    assert number > 5
    old = ("step_00000003", "old") if replacing else ("step_00000002", "before")
    first_new = outcomes.index(("step_00000003", "new"))
    assert outcomes == [old] * first_new + [("step_00000003", "new")] * (len(outcomes) - first_new)


def test_a_step_is_replaced_and_leftovers_are_removed_with_a_word(tmp_path):
    make(tmp_path / "step_00000003", "old")
    make(tmp_path / ".step_00000001.unfinished", "of an earlier version", whole=False)
    make(tmp_path / ".step_00000009.77.unfinished", "of another run", whole=False)
    said = []
    clear_leftovers(tmp_path, said.append)
    assert len(said) == 2 and all("removed" in message and ".unfinished" in message for message in said)
    make(tmp_path / ".step_00000003.0a0b.unfinished", "new", whole=False)
    publish(tmp_path, 3, said.append)
    assert f"{tmp_path / 'step_00000003'} was there already" in said[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000003"]


def test_a_step_whose_name_was_taken_and_not_given_back_is_found(tmp_path):
    make(tmp_path / "step_00000002", "before")
    make(tmp_path / ".step_00000003.replaced", "old")
    assert newest(tmp_path) == ("step_00000003", "old")
    make(tmp_path / ".step_00000003.0a.unfinished", "new", whole=False)
    assert newest(tmp_path) == ("step_00000003", "old")
    assert list(find_steps(tmp_path)) == [2, 3]
