"""A gradient or a loss that is not finite changes no weight, under any booster, whenever the host looks at it."""

import re

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


@pytest.mark.parametrize("layout", [Layout("gemini", 2, tp=2), hybrid(2, tp=2)], ids=str)
def test_a_gradient_of_nan_on_the_last_of_a_tensor_parallel_group_is_told_on_all(pool, layout: Layout):
    for told, changed in pool(2).run(finite_cases.spoiled_gradient, layout=layout, precision="bf16", tp_rank=1):
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


def test_fp16_that_overflows_at_the_smallest_loss_scale_ends_on_all_ranks(pool):
    layouts = [Layout("zero2", 2), Layout("gemini", 2), Layout("fsdp", 2), hybrid(2), hybrid(2, pp=2)]
    for results in pool(2).run(finite_cases.overflowing_for_good, layouts=layouts):
        for message, num_steps in results:
            assert "fp16 gradients overflowed in 20 steps in a row at the smallest loss scale (1)" in message
            assert f"up to step {num_steps}: no weight moves any more" in message
            assert "--mixed_precision bf16" in message
            assert 20 < num_steps < 30


def test_a_state_that_is_not_finite_is_neither_saved_nor_resumed_from(pool, tmp_path):
    layouts = [Layout("zero2", 2), Layout("gemini", 2), Layout("fsdp", 2), hybrid(2, tp=2), hybrid(2, pp=2)]
    for results in pool(2).run(finite_cases.spoiled_state, layouts=layouts, folder=str(tmp_path)):
        for layout, (refused, saved, resumed) in zip(layouts, results):
            assert "is not finite after step 3: not saved; resume from" in refused, layout
            assert f"{layout}/step_00000002, whose weights are finite" in refused
            assert saved == ["latest", "step_00000002"]
            assert f"{layout}/step_00000003: " in resumed and "values that are not finite" in resumed


def test_a_state_that_is_not_finite_is_not_saved_in_the_background_either(pool, tmp_path):
    layouts = [Layout("ddp", 2), Layout("zero2", 2), hybrid(2, pp=2)]
    for results in pool(2).run(finite_cases.spoiled_in_the_background, layouts=layouts, folder=str(tmp_path)):
        for layout, (refused, left) in zip(layouts, results):
            assert f"could not write checkpoint {tmp_path}/{layout}/step_00000001: " in refused
            assert re.search(r"exp_avg_sq of \S+ is not finite after step 1: not saved; go on from the one", refused)
            assert left == []


SKIPPING = [
    (Layout("zero2", 2), "bf16", True),
    (Layout("fsdp", 2), "fp32", True),
    (Layout("ddp", 2), "fp32", False),
    (Layout("gemini", 2), "bf16", False),
    *(
        pytest.param(layout, precision, late, marks=pytest.mark.matrix)
        for layout in (*(Layout(name, 2) for name in ("zero1", "zero2", "fsdp", "ddp")), hybrid(2, tp=2))
        for precision, late in (("bf16", False), ("bf16", True), ("fp16", False))
    ),
    *(
        pytest.param(layout, precision, False, marks=pytest.mark.matrix)
        for layout in (
            Layout("zero2_cpu", 2),
            Layout("fsdp_cpu", 2),
            Layout("gemini_auto", 2),
            Layout("gemini", 2, tp=2),
            Layout("hsdp", 4, flags=(("shard_size", 2),)),
            hybrid(2, pp=2),
            hybrid(4, tp=2, pp=2),
            hybrid(4, pp=2, zero=1),
            hybrid(2, pp=2, pp_style="zbv"),
        )
        for precision in ("bf16", "fp16")
    ),
]


@pytest.mark.parametrize(("layout", "precision", "late"), SKIPPING, ids=str)
def test_steps_that_are_no_good_leave_no_trace_but_their_count(pool, tmp_path, layout, precision, late):
    """Losses, norms, weights, moments and Adam's count to the last bit, resumed in the midst of such steps too."""
    for found in pool(layout.world_size).run(
        finite_cases.skipping, layout=layout, precision=precision, late=late, folder=str(tmp_path)
    ):
        assert found == {"loss": [], "gradient": []}


def test_too_many_of_them_in_a_row_end_the_run(pool):
    for results in pool(2).run(finite_cases.too_many_spoiled, layouts=[Layout("zero2", 2)]):
        for message, num_steps, num_bad, told in results:
            assert "loss is nan at step 6: the last of 3 in a row that were not finite (--skip_nonfinite)" in message
            assert "none changed the weights; begin again with a lower --lr" in message
            assert (num_steps, num_bad) == (6, 4)
            assert [line.rpartition("(")[2] for line in told] == [
                "1 in a row, 1 in all; 3 in a row end the run)",
                "1 in a row, 2 in all; 3 in a row end the run)",
                "2 in a row, 3 in all; 3 in a row end the run)",
            ]
