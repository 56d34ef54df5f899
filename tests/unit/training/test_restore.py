import json

import pytest

from llama_dyt.core.errors import CheckpointError
from llama_dyt.training.checkpoint.marker import MARKER, step_folder
from llama_dyt.training.checkpoint.reader import complete_steps, find_checkpoint


def make_checkpoint(save_dir, step, size=3):
    folder = step_folder(save_dir, step)
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("x" * size)
    (folder / MARKER).write_text(json.dumps({"trainer_state.json": size}))
    return folder


def test_auto_takes_the_newest_by_step_not_by_name_or_time(tmp_path):
    newest = make_checkpoint(tmp_path, 100_000_000)
    make_checkpoint(tmp_path, 99_999_999)
    assert find_checkpoint("auto", tmp_path) == newest


def test_auto_starts_anew_where_there_is_nothing(tmp_path):
    assert find_checkpoint("auto", tmp_path / "absent") is None


@pytest.mark.filterwarnings("error")
def test_an_incomplete_checkpoint_is_skipped_with_a_warning(tmp_path):
    good = make_checkpoint(tmp_path, 1)
    (make_checkpoint(tmp_path, 2) / MARKER).unlink()
    with pytest.warns(UserWarning, match=r"step_00000002: it has no COMPLETE marker"):
        assert complete_steps(tmp_path) == [good]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / "trainer_state.json").write_text("x"), "has 1 bytes, 3 were written"),
        (lambda folder: (folder / MARKER).write_text("{"), "marker is damaged"),
    ],
)
def test_a_damaged_checkpoint_given_by_path_is_an_error_with_a_remedy(tmp_path, damage, reason):
    folder = make_checkpoint(tmp_path, 5)
    damage(folder)
    with pytest.raises(CheckpointError, match=reason) as error:
        find_checkpoint(str(folder), tmp_path)
    assert f"--load {tmp_path}" in str(error.value)


def test_a_path_with_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match="no complete checkpoint"):
        find_checkpoint(str(tmp_path), tmp_path)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_checkpoint(str(tmp_path / "absent"), tmp_path)


def test_leftovers_of_an_interrupted_save_are_not_taken_for_checkpoints(tmp_path):
    make_checkpoint(tmp_path, 3).rename(tmp_path / ".step_00000003.unfinished")
    assert complete_steps(tmp_path) == []
