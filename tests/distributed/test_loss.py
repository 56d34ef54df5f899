"""The loss without whole logits where ranks share it, and where which layout takes it."""

import pytest

from tests.distributed import loss_cases
from tests.distributed.parity import check_grad_norms, check_gradients, merged
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("ranks", "vocabulary", "fused"),
    [  # whole; padded; two ranks of padding alone; a last rank in part
        (2, 128, True),
        (2, 97, False),
        (4, 97, True),
        *(
            pytest.param(*case, marks=pytest.mark.matrix)
            for case in ((2, 97, True), (4, 250, True), (2, 128, False), (4, 97, False), (4, 250, False))
        ),
    ],
)
def test_a_vocabulary_cut_over_ranks_has_the_loss_and_gradients_of_the_whole(pool, ranks, vocabulary, fused):
    for z_loss, chunk_rows, ignored in ((0.0, 7, 0.3), (0.1, 26, 0.3), (0.1, 1, 0.0), (0.1, 7, 1.0)):
        for measured in pool(ranks).run(
            loss_cases.over_ranks,
            vocabulary=vocabulary,
            z_loss=z_loss,
            chunk_rows=chunk_rows,
            fused=fused,
            ignored=ignored,
        ):
            assert max(measured.values()) < 1e-6, (z_loss, chunk_rows, ignored, measured)
            assert measured["padding"] == 0


def test_a_target_that_no_rank_has_makes_an_infinite_loss(pool):
    assert pool(2).run(loss_cases.lost_target) == [float("inf")] * 2


# Times the loss of a rank that holds the head is made of hidden states: once a micro batch.
LAYOUTS = [
    (Layout("ddp", 2), "fp32", {1}),
    (Layout("zero2", 2), "fp32", {1}),
    (Layout("zero2", 2), "fp16", {1}),
    (Layout("gemini", 2), "bf16", {1}),
    (Layout("gemini", 2, tp=2), "bf16", {1}),
    (Layout("fsdp", 2), "fp32", {1}),
    (hybrid(2, tp=2), "fp32", {1}),
    (hybrid(2, tp=2, sp_mode="split_gather"), "fp32", {1}),
    (hybrid(2, sp=2), "fp32", {1}),
    (hybrid(2, pp=2), "fp32", {0, 4}),
    (hybrid(2, pp=2, pp_style="interleaved"), "fp32", {0, 4}),
    (hybrid(4, tp=2, zero=1), "bf16", {1}),
    (hybrid(2, pp=2, pp_style="zbv"), "fp32", {0}),  # the head leaves its weight's gradient for later
    (hybrid(4, tp=2, pp=2, pp_style="zbv"), "fp32", {0}),
]


@pytest.mark.parametrize(("layout", "precision", "calls"), LAYOUTS, ids=str)
def test_every_layout_takes_its_way_and_has_the_gradients_of_plain_pytorch(pool, layout, precision, calls):
    outcomes = pool(layout.world_size).run(
        loss_cases.train, layout=layout, precision=precision, chunk_rows=5, z_loss=0.05
    )
    results = [result for result, _ in outcomes]
    check_gradients(results, precision, z_loss=0.05, num_steps=1)
    check_grad_norms(results, precision, z_loss=0.05, num_steps=1)
    assert {count for _, count in outcomes} == calls


def test_the_comparison_notices_a_z_loss_that_is_left_out(pool):
    outcomes = pool(2).run(loss_cases.train, layout=hybrid(2, tp=2), precision="fp32", chunk_rows=5, z_loss=0.0)
    results = [result for result, _ in outcomes]
    assert merged(results, "gradients")
    with pytest.raises(AssertionError, match="gradients, "):
        check_gradients(results, "fp32", z_loss=0.05, num_steps=1)


@pytest.mark.parametrize("layout", [Layout("fsdp", 2), hybrid(2, tp=2), hybrid(2, pp=2)], ids=str)
def test_validation_measures_the_cross_entropy_alone(pool, layout):
    for plain, with_z_loss, of_logits in pool(2).run(loss_cases.validate_with_z_loss, layout=layout, precision="fp32"):
        assert plain == with_z_loss
        assert plain == pytest.approx(of_logits, rel=1e-6)
