"""A validation finds what plain PyTorch finds by the same weights, under every booster, and changes nothing."""

import pytest
import torch

from tests.distributed import reference, small_run, validation_cases
from tests.distributed.parity import merged
from tests.distributed.small_run import Layout, hybrid
from tests.distributed.validation_cases import NUM_BATCHES, NUM_STEPS, Course, validation_numbers

pytestmark = pytest.mark.distributed

EXACT = 1e-6
"""Bound in fp32 on the difference of two losses by their size."""
HALF = {"bf16": 3e-4, "fp16": 3e-5}
"""The same in half precision, against a plain model in it. Measured: at most 5e-5 and 2e-7."""

LAYOUTS = [
    (Layout("zero2", 2), "fp32"),
    (Layout("gemini", 2), "bf16"),
    (Layout("fsdp", 2), "fp32"),
    (hybrid(2, tp=2), "fp32"),
    (hybrid(4, pp=2, zero=1), "bf16"),
    (hybrid(4, pp=2, pp_style="zbv", sp=2), "fp32"),
]
OTHERS = [
    (Layout("ddp", 2), "fp32"),
    (Layout("gemini_auto", 2), "fp16"),
    (Layout("hsdp", 4, flags=(("shard_size", 2),)), "fp32"),
    (hybrid(2, pp=2, pp_style="interleaved"), "fp32"),
    (hybrid(2, tp=2, sp_mode="split_gather"), "fp32"),
    (Layout("zero1", 2), "bf16"),
    (Layout("zero2_cpu", 2), "fp16"),
    (Layout("gemini", 4, tp=2), "bf16"),
    (Layout("fsdp_cpu", 2), "bf16"),
    (hybrid(2, pp=2), "fp32"),
    (hybrid(4, tp=2, pp=2), "fp32"),
    (hybrid(2, pp=2, pp_style="zbv"), "fp32"),
    (hybrid(2, sp=2), "fp32"),
    (Layout("hybrid_parallel_cpu", 2, tp=2), "bf16"),
]
CASES = [*LAYOUTS, *(pytest.param(*case, marks=pytest.mark.matrix) for case in OTHERS)]


def plain_losses(weights: dict[str, torch.Tensor], precision: str) -> dict[str, float]:
    """The loss of every set by one process: all label tokens of its batches weigh the same."""
    model = small_run.small_model().eval()
    model.load_state_dict(weights, strict=True)
    model = model.to(reference.HALF.get(precision, torch.float32))
    losses = {}
    for name in NUM_BATCHES:
        counts = [small_run.num_label_tokens(small_run.global_batch(number)[1]) for number in validation_numbers(name)]
        with torch.no_grad():
            means = [reference.loss_of(model, number).item() for number in validation_numbers(name)]
        losses[name] = sum(mean * count for mean, count in zip(means, counts)) / sum(counts)
    return losses


def check_figures(course: Course, weights: dict[str, torch.Tensor], which: int, precision: str) -> None:
    expected = plain_losses(weights, precision)
    for name, found in course.figures[which].items():
        assert found.loss == pytest.approx(expected[name], rel=HALF.get(precision, EXACT)), name
        assert found.num_tokens == sum(
            small_run.num_label_tokens(small_run.global_batch(number)[1]) for number in validation_numbers(name)
        )


@pytest.mark.parametrize(("layout", "precision"), CASES, ids=str)
def test_a_validation_equals_plain_pytorch_and_leaves_no_trace(pool, layout: Layout, precision: str):
    results = pool(layout.world_size).run(validation_cases.courses, layout=layout, precision=precision, accumulation=2)
    without, validated = zip(*results)
    for before, after in zip(without, validated):
        assert len(before.losses) == NUM_STEPS and before.figures == []
        assert before.losses == after.losses
        assert before.grad_norms == after.grad_norms
        assert before.draws == after.draws
        assert before.weights.keys() == after.weights.keys()
        assert [name for name in before.weights if not torch.equal(before.weights[name], after.weights[name])] == []
        assert after.left == []
        assert after.figures == validated[0].figures, "all ranks know the same"
    check_figures(validated[0], small_run.small_model().state_dict(), 0, precision)
    check_figures(validated[0], merged(validated, "weights"), -1, precision)
    assert len(validated[0].figures) == NUM_STEPS // 2 + 1


def test_sets_differ_and_fall_as_the_model_learns(pool):
    """Else a validation that looks at other batches, or at other weights, would pass."""
    _, course = pool(2).run(validation_cases.courses, layout=Layout("zero2", 2), precision="fp32")[0]
    first, *_, last = course.figures
    assert abs(first["short"].loss - first["long"].loss) > 100 * EXACT
    for name in NUM_BATCHES:
        assert last[name].loss < first[name].loss - 0.01
    unweighted = [plain_losses(small_run.small_model().state_dict(), "fp32")["long"]]
    means = [reference.loss_of(small_run.small_model(), number).item() for number in validation_numbers("long")]
    assert abs(unweighted[0] - sum(means) / len(means)) > 100 * EXACT, "batches of unlike weight"


def test_all_ranks_stop_validating_when_one_is_asked_to(pool):
    total = sum(NUM_BATCHES.values())
    for ended in pool(2).run(validation_cases.interrupted, layout=Layout("zero2", 2), asked=[0, total - 1, total]):
        assert ended == [False, False, True]


@pytest.mark.parametrize(("max_steps", "told"), [(10, "saved and stopped on a signal"), (2, "finished")])
def test_a_signal_during_a_validation_ends_the_run_with_a_save(pool, tmp_path, max_steps, told):
    """Behind the last step nothing is left to go on with: the run has finished."""
    case = {"layout": Layout("zero2", 2), "folder": str(tmp_path), "max_steps": max_steps}
    for ending, step, validated in pool(2).run(validation_cases.signalled, **case):
        assert (ending, step, validated) == (told, 2, False)
    assert {path.name for path in tmp_path.iterdir()} == {"step_00000002", "latest"}
    assert (tmp_path / "step_00000002" / "COMPLETE").is_file()


def test_signals_during_a_save_end_the_run_when_it_is_complete(pool, tmp_path):
    results = pool(2).run(validation_cases.signalled_in_a_save, layout=Layout("zero2", 2), folder=str(tmp_path))
    assert results == [("saved and stopped on a signal", 2, 1)] * 2
    assert (tmp_path / "step_00000002" / "COMPLETE").is_file()


def test_a_run_validates_at_every_interval_and_at_its_end(pool, tmp_path):
    for steps in pool(2).run(validation_cases.validated_steps, layout=Layout("zero2", 2), max_steps=5):
        assert steps == [2, 4, 5]
