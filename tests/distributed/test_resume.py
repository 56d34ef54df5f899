"""A run that is saved, ended and resumed is the run that was never ended, to the last bit; and saves that fail."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.distributed import small_run, training_cases
from tests.distributed.small_run import LAYOUTS, Layout, hybrid
from tests.distributed.training_cases import OVERFLOW_AT, SAVE_AT, TOTAL_STEPS, Trace

pytestmark = pytest.mark.distributed

EVERY_TIME = [
    # fp16 has all that bf16 and fp32 have, and a loss scale; one rank would show nothing that two do not.
    (Layout("zero2", 2), "fp16"),
    (Layout("zero2_cpu", 2), "fp16"),
    (Layout("ddp", 2), "fp16"),
    (Layout("ddp", 4), "fp32"),  # a sum of two is the same in either order, one of more is not
    (Layout("fsdp", 2), "fp16"),
    (Layout("fsdp", 2), "fp32"),
    (Layout("hsdp", 4, flags=(("shard_size", 2),)), "fp16"),
    (Layout("gemini", 2, tp=2), "fp16"),
    (hybrid(2, zero=1), "fp16"),
    (hybrid(4, tp=2, pp=2), "fp16"),
    (hybrid(4, sp=2, zero=1), "bf16"),
    (hybrid(2, pp=2, pp_style="zbv"), "fp16"),
]
"""One of each kind of state; all others are resumed with the matrix."""
MORE_THAN_TWO = [Layout("zero1", 4), Layout("zero2", 4), Layout("fsdp", 4), Layout("gemini", 4), hybrid(4)]
CASES = EVERY_TIME + [
    pytest.param(layout, precision, marks=pytest.mark.matrix)
    for layout in [*LAYOUTS, hybrid(2, pp=2, pp_style="interleaved"), *MORE_THAN_TWO]
    if layout.world_size > 1
    for precision in layout.precisions
    if (layout, precision) not in EVERY_TIME
]


def check_same(straight: Trace, resumed: Trace) -> None:
    """The steps of both after the save, and everything that decides how they would go on."""
    for name in ("losses", "lrs", "grad_norms", "skipped", "loss_scales", "draws"):
        assert getattr(straight, name)[SAVE_AT:] == getattr(resumed, name), name
    assert straight.optimizer_steps == resumed.optimizer_steps
    assert straight.scaler == resumed.scaler
    assert straight.progress == resumed.progress
    assert straight.tensors.keys() == resumed.tensors.keys()
    for name, tensor in straight.tensors.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, resumed.tensors[name]), name


@pytest.mark.parametrize(("layout", "precision"), CASES, ids=str)
def test_a_run_saved_and_resumed_is_the_run_that_never_ended(pool, tmp_path, layout: Layout, precision: str):
    results = pool(layout.world_size).run(
        training_cases.resume, layout=layout, precision=precision, folder=str(tmp_path)
    )
    for straight, resumed in results:
        assert len(straight.losses) == TOTAL_STEPS
        if precision == "fp16":
            # The checkpoint lies among skipped steps, so every part of the loss scaler's state matters.
            assert straight.skipped[OVERFLOW_AT:SAVE_AT] == [True, True]
            assert straight.skipped[SAVE_AT]
            assert not straight.skipped[-1]
        else:
            assert not any(straight.skipped)
        check_same(straight, resumed)
    # Some rank wrote each of them; a comparison of nothing would pass.
    names = [name for straight, _ in results for name in straight.tensors]
    num_layers = training_cases.num_layers(small_run.run_config(layout, precision))
    assert len(names) == len(set(names)) == 3 * (2 + 11 * num_layers + 2 + 1)


def test_a_difference_fails_the_comparison(pool, tmp_path):
    layout = Layout("zero2", 2)
    straight, resumed = pool(2).run(training_cases.resume, layout=layout, precision="bf16", folder=str(tmp_path))[0]
    check_same(straight, resumed)
    name = "exp_avg.lm_head.weight"
    nudged = straight.tensors[name].clone()
    nudged[0, 0] = torch.nextafter(nudged[0, 0], torch.tensor(1.0))
    with pytest.raises(AssertionError, match=name):
        check_same(straight, replace(resumed, tensors={**resumed.tensors, name: nudged}))


def test_resuming_goes_on_in_the_text_where_it_was(pool, tmp_path):
    """The real loader's position, through trainer_state.json."""
    text = small_run.write_counting(tmp_path / "text.jsonl", 200)
    results = pool(2).run(
        training_cases.resume, layout=Layout("zero2", 2), precision="fp32", folder=str(tmp_path / "run"), text=text
    )
    for straight, resumed in results:
        assert straight.progress["position"] is not None
        check_same(straight, resumed)


@pytest.mark.parametrize(
    ("layout", "failing_rank"),
    [(Layout("zero2", 2), 0), (Layout("gemini", 2), 0), (hybrid(2, pp=2), 0), (hybrid(2, pp=2), 1)],
    ids=str,
)
def test_a_rank_that_cannot_write_fails_the_save_on_all_and_harms_nothing(
    pool, tmp_path, layout: Layout, failing_rank: int
):
    results = pool(layout.world_size).run(
        training_cases.failing_save, layout=layout, folder=str(tmp_path), failing_rank=failing_rank, timeout=60
    )
    for message, left, third in results:
        assert f"rank {failing_rank}: " in message
        assert "No space left on device" in message
        assert str(tmp_path / "step_00000002") in message
        assert "step_00000001" in message  # the one to go back to
        assert left == ["latest", "step_00000001"]
        assert Path(third).name == "step_00000002"
    assert (tmp_path / "step_00000002" / "COMPLETE").is_file()
    first = pool(layout.world_size).run(
        training_cases.load, layout=layout, precision="bf16", path=str(tmp_path / "step_00000001")
    )
    assert all(loss > 0 for _, loss in first)


@pytest.mark.parametrize(
    "layout",
    [Layout("ddp", 2), Layout("zero2", 2), Layout("gemini", 2, tp=2), Layout("fsdp", 2), hybrid(4, tp=2, pp=2)]
    + [pytest.param(layout, marks=pytest.mark.matrix) for layout in LAYOUTS],
    ids=str,
)
def test_an_asynchronous_save_writes_the_bytes_of_a_synchronous_one(pool, tmp_path, layout: Layout):
    first, *_ = pool(layout.world_size).run(training_cases.both_saves, layout=layout, folder=str(tmp_path), timeout=60)
    assert len(first) == 2
    for at_once, aside in first:
        assert at_once == aside
        assert len(json.loads(aside)) > 12  # several shards each


def test_a_save_dir_that_is_no_folder_fails_the_save_on_all(pool, tmp_path):
    file = tmp_path / "file"
    file.write_text("in the way")
    for message in pool(2).run(training_cases.save_into, layout=Layout("zero2", 2), folder=str(file)):
        assert "rank 0: " in message
        assert str(file) in message
    assert file.read_text() == "in the way"
