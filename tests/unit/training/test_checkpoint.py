"""What a save finds of saves that were killed."""

import pytest

from llama_dyt.training.checkpoint import clear_leftovers


@pytest.mark.parametrize("published", [False, True], ids=["before the new one had its name", "after"])
def test_a_checkpoint_that_was_being_replaced_is_not_lost_and_leaves_no_litter(tmp_path, published):
    for name in [".step_00000003.replaced", ".step_00000003.unfinished", "step_00000002", "step_00000003"][
        : 4 if published else 3
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / "made").write_text(name)
    clear_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000002", "step_00000003"]
    expected = "step_00000003" if published else ".step_00000003.replaced"
    assert (tmp_path / "step_00000003" / "made").read_text() == expected
