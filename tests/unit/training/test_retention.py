"""Which checkpoints are removed, and what is left of one whose removal was cut short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llama_dyt.training.checkpoint.publishing import clear_leftovers, find_steps
from llama_dyt.training.checkpoint.retention import Keep
from tests.unit.training.test_publishing import killed_at, make


def steps_of(folder: Path, *steps: int) -> Path:
    for step in steps:
        make(folder / f"step_{step:08d}", str(step))
    return folder


@pytest.mark.parametrize(
    ("keep", "saved", "left"),
    [
        (Keep(), 60, [10, 20, 30, 40, 50, 60]),
        (Keep(2), 60, [50, 60]),
        (Keep(1, 20), 60, [20, 40, 60]),
        (Keep(2), 40, [30, 40, 50, 60]),  # 50 and 60 are of another course
        (Keep(9), 60, [10, 20, 30, 40, 50, 60]),
    ],
)
def test_the_newest_and_the_milestones_up_to_the_saved_step_stay(tmp_path, keep, saved, left):
    said: list[str] = []
    keep.remove_others(steps_of(tmp_path, 10, 20, 30, 40, 50, 60), saved, said.append)
    assert list(find_steps(tmp_path)) == left
    assert len(said) == 6 - len(left)


def test_what_is_not_whole_neither_counts_nor_goes(tmp_path):
    steps_of(tmp_path, 10, 20, 40)
    make(tmp_path / "step_00000030", "half", whole=False)
    Keep(2).remove_others(tmp_path, 40, print)
    assert list(find_steps(tmp_path)) == [20, 30, 40]


def test_a_removal_that_is_killed_anywhere_leaves_a_whole_checkpoint_or_none(tmp_path):
    outcomes = []
    for number in range(100):
        folder = steps_of(tmp_path / str(number), 1, 2)
        killed = killed_at(number, lambda folder=folder: Keep(1).remove_others(folder, 2, lambda line: None))
        assert list(find_steps(folder)) in ([1, 2], [2])
        clear_leftovers(folder, lambda line: None)
        outcomes.append([path.name for path in sorted(folder.iterdir())])
        if not killed:
            break
    assert outcomes[0] == ["step_00000001", "step_00000002"] and outcomes[-1] == ["step_00000002"]
    assert len(outcomes) > 3


def test_the_writing_process_is_light():
    program = "import sys, llama_dyt.training.checkpoint.writing_process; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
