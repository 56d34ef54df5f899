"""A gradient or a loss that is not finite changes no weight, under any booster, whenever the host looks at it."""

import pytest
import torch

from tests.distributed import finite_cases
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        (Layout("zero2", 2), "bf16"),
        (Layout("gemini", 2), "bf16"),
        (Layout("fsdp", 2), "fp32"),
        (hybrid(2), "fp32"),
        (hybrid(2, tp=2), "bf16"),
    ],
    ids=str,
)
def test_a_gradient_of_nan_is_told_on_every_rank_and_changes_no_weight(pool, layout: Layout, precision: str):
    for told, changed in pool(2).run(finite_cases.spoiled_gradient, layout=layout, precision=precision):
        assert told in ("raised nan", "norm nan")
        assert changed == []


@pytest.mark.parametrize("layout", [Layout("fsdp", 2), Layout("zero2", 2), hybrid(2)], ids=str)
def test_an_outcome_looked_at_a_step_late_is_the_same(pool, layout: Layout):
    at_once, late = (
        pool(2).run(finite_cases.read_late, layout=layout, precision="bf16", late=x) for x in (False, True)
    )
    for one, other in zip(at_once, late):
        assert one.losses == other.losses and one.grad_norms == other.grad_norms
        assert all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("layout", [Layout("fsdp", 2), Layout("zero1", 2), hybrid(2)], ids=str)
def test_a_loss_of_nan_looked_at_late_has_changed_nothing_and_is_never_saved(
    pool, tmp_path, layout: Layout, save: bool
):
    results = pool(2).run(finite_cases.spoiled_and_read_late, layout=layout, folder=str(tmp_path), save=save)
    for raised, changed, saved in results:
        (message,) = raised
        assert "loss is nan at step 2: that step's update was left out" in message
        assert changed == []
        assert saved == []
