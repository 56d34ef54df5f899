"""Every booster computes what plain PyTorch computes: gradients, grad norms, losses and weights, over the same batches.

Losses alone would prove little, since AdamW forgives gradients of the wrong size; so gradients are compared before the
optimizer sees them, and the comparison itself is tested with gradients that were spoiled on purpose.
"""

import functools
import math

import pytest
import torch

from tests.distributed import cases, reference, small_run
from tests.distributed.parity import check_all, check_grad_norms, check_gradients, check_losses, merged
from tests.distributed.small_run import LAYOUTS, Layout, hybrid

pytestmark = pytest.mark.distributed

# Every layout once, and one of each thing that precision, accumulation and what is added to a layout can change; all of
# it is in the matrix.
CASES = [(layout, layout.precisions[0], 2) for layout in LAYOUTS if layout.world_size > 1 or layout.plugin == "zero2"]
CASES += [
    (Layout("zero2", 2), "fp16", 2),
    (Layout("gemini", 2), "fp16", 1),
    (Layout("fsdp", 2), "bf16", 1),
    (hybrid(2, tp=2), "bf16", 2),
    (hybrid(4, tp=2, pp=2), "fp16", 2),
    (Layout("zero1", 2, flags=(("fp32_gradients", True),)), "fp16", 2),
    (Layout("hybrid_parallel_cpu", 2, pp=2), "bf16", 2),
    # Sequence parallelism: both modes, over tensor parallelism, with fewer key and value heads (2) than ranks.
    (hybrid(4, tp=2, zero=2, sp_mode="split_gather"), "bf16", 2),
    (hybrid(4, tp=2, sp=2), "fp32", 1),
    (hybrid(4, sp=4), "fp32", 1),
    # The other pipelines: over both kinds of sequence parallelism, over ZeRO.
    (hybrid(4, tp=2, pp=2, pp_style="interleaved", sp_mode="split_gather"), "fp32", 2),
    (hybrid(2, pp=2, pp_style="zbv"), "fp16", 2),
    (hybrid(4, pp=2, pp_style="zbv", sp=2), "fp32", 2),
    (hybrid(4, pp=2, pp_style="zbv", zero=1), "bf16", 2),
]
SHARED = [
    Layout("zero2", 2),
    Layout("fsdp", 2),
    Layout("hsdp", 4, flags=(("shard_size", 2),)),
    hybrid(4, tp=2, pp=2),
    hybrid(4, sp=2, zero=1),
    hybrid(2, tp=2, sp_mode="split_gather"),
    Layout("gemini", 4, tp=2),
    Layout("gemini", 4, flags=(("extra_dp", 2),)),
]
"""One of each way to share; the others are shared by the same code."""
FAULTY = [
    (Layout("zero2", 2), "bf16", list(cases.FAULTS)),
    *(
        (layout, precision, ["halve alpha"])
        for layout, precision in [
            (Layout("zero2", 2), "fp32"),
            (Layout("gemini", 2), "bf16"),
            (Layout("fsdp", 2), "fp32"),
            (hybrid(2, tp=2), "fp32"),
            (hybrid(2, pp=2), "fp32"),
        ]
    ),
]
"""Every fault in one layout, the hardest to see in the others."""


@pytest.mark.parametrize(("layout", "precision", "accumulation"), CASES, ids=lambda value: str(value))
def test_boosted_training_equals_plain_pytorch(pool, layout: Layout, precision: str, accumulation: int):
    results = pool(layout.world_size).run(cases.train, layout=layout, precision=precision, accumulation=accumulation)
    check_all(results, precision)


@pytest.fixture(scope="module")
def first_step(pool):
    """One bf16 step in a layout, run once for all tests that look at it."""

    @functools.cache
    def run(layout: Layout) -> list[cases.RankResult]:
        return pool(layout.world_size).run(cases.train, layout=layout, precision="bf16", num_steps=1)

    return run


@pytest.mark.parametrize("layout", SHARED, ids=str)
def test_data_parallel_ranks_read_different_rows_and_the_others_the_same(first_step, layout: Layout):
    rows_of: dict[int, list[list[int]]] = {}
    for result in first_step(layout):
        assert rows_of.setdefault(result.dp_rank, result.first_rows) == result.first_rows
    assert sorted(rows_of) == list(range(layout.dp))
    assert len({str(rows) for rows in rows_of.values()}) == layout.dp


@pytest.mark.parametrize("layout", SHARED, ids=str)
def test_every_rank_holds_its_share_alone(first_step, layout: Layout):
    """Equal results would prove little of a booster that kept all of it everywhere."""
    results = first_step(layout)
    # Replicated norms, padding and whole chunks make shares uneven.
    assert max(result.held_share for result in results) == pytest.approx(1 / layout.cuts, rel=0.2)
    assert sum(result.gathered_chunks for result in results) == 0


@pytest.mark.parametrize("layout", SHARED, ids=str)
def test_masters_start_as_the_unrounded_weights(first_step, layout: Layout):
    start = merged(first_step(layout), "start")
    for name, parameter in small_run.small_model().named_parameters():
        assert torch.equal(start[name], parameter.detach()), name


@pytest.mark.parametrize(
    ("layout", "precision", "fault"),
    [(layout, precision, fault) for layout, precision, faults in FAULTY for fault in faults],
    ids=str,
)
def test_spoiled_gradients_fail_the_comparison(pool, layout: Layout, precision: str, fault: str):
    results = pool(layout.world_size).run(cases.train, layout=layout, precision=precision, num_steps=1, fault=fault)
    with pytest.raises(AssertionError, match="gradients, "):
        check_gradients(results, precision)
    if fault == "halve all":
        with pytest.raises(AssertionError, match="Not equal to tolerance"):
            check_grad_norms(results, precision)


@pytest.mark.parametrize("fault", [cases.WRONG_WORLD_SIZE, cases.OTHER_SEEDS])
@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        (Layout("zero2", 2), "fp32"),
        (Layout("gemini", 2), "bf16"),
        (Layout("fsdp", 2), "fp32"),
        (hybrid(2, tp=2), "fp32"),
        (hybrid(2, pp=2), "fp32"),
        (hybrid(2, sp=2), "fp32"),
    ],
    ids=str,
)
def test_a_wrong_factor_and_weights_that_differ_fail_the_comparison(pool, layout: Layout, precision: str, fault: str):
    results = pool(2).run(cases.train, layout=layout, precision=precision, num_steps=1, fault=fault)
    with pytest.raises(AssertionError, match="gradients, "):
        check_gradients(results, precision)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_gradients_of_slices_that_are_not_summed_fail_the_comparison(pool, accumulation: int):
    """What split_gather adds to tensor parallelism: alpha and weight of a norm see another slice on every rank."""
    results = pool(2).run(
        cases.train,
        layout=hybrid(2, tp=2, sp_mode="split_gather"),
        precision="fp32",
        accumulation=accumulation,
        num_steps=1,
        fault=cases.UNSUMMED,
    )
    spoiled = {"input_layernorm", "post_attention_layernorm", "model.norm"}
    with pytest.raises(AssertionError, match="gradients, ") as failure:
        check_gradients(results, "fp32")
    beyond = {kind for kind in reference.by_kind(reference.train().gradients) if f"'{kind}'" in str(failure.value)}
    assert beyond == {f"{norm}.{parameter}" for norm in spoiled for parameter in ("alpha", "weight")}


def test_losses_alone_do_not_notice_halved_gradients(pool):
    """Why gradients are compared at all."""
    layout = Layout("zero2", 2)
    results = pool(2).run(cases.train, layout=layout, precision="bf16", fault="halve all", gradient_clipping=0.0)
    check_losses(results, "bf16")


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        (Layout("zero2", 2), "fp32"),
        (Layout("gemini", 2), "bf16"),
        (Layout("fsdp", 2), "fp32"),
        (hybrid(2, tp=2, sp_mode="split_gather"), "fp32"),
        (hybrid(2, pp=2, pp_style="zbv"), "fp32"),
    ],
    ids=str,
)
def test_recomputing_layers_run_twice_and_change_nothing(pool, layout: Layout, precision: str):
    kept, whole, half = (
        pool(layout.world_size).run(cases.train, layout=layout, precision=precision, num_steps=1, **flags)
        for flags in ({}, {"gradient_checkpoint": True}, {"selective_checkpointing": 0.5})
    )
    assert {layer for result in kept for layer in result.layer_runs} == {0, 1, 2, 3}
    for recomputed, chosen in ((whole, {0, 1, 2, 3}), (half, {0, 2})):
        for result, before in zip(recomputed, kept):
            assert result.layer_runs == {k: n * (2 if k in chosen else 1) for k, n in before.layer_runs.items()}
        gradients = merged(recomputed, "gradients")
        for name, gradient in merged(kept, "gradients").items():
            assert torch.equal(gradient, gradients[name]), name


@pytest.mark.parametrize("layout", [Layout("zero2", 2), hybrid(4, tp=2, pp=2)], ids=str)
def test_the_rmsnorm_baseline_equals_plain_pytorch(pool, layout: Layout):
    results = pool(layout.world_size).run(cases.train, layout=layout, precision="fp32", accumulation=2, norm="rmsnorm")
    check_all(results, "fp32", norm="rmsnorm")


@pytest.mark.parametrize(
    ("layout", "precision"),
    [
        (hybrid(2, pp=2, pp_style="zbv"), "fp32"),
        (hybrid(4, tp=2, pp=2, sp_mode="split_gather"), "fp32"),
        (Layout("gemini", 2, tp=2), "bf16"),
    ],
    ids=str,
)
def test_a_head_tied_to_the_embedding_equals_plain_pytorch(pool, layout: Layout, precision: str):
    """Under a pipeline it is on two stages, which must go on alike."""
    results = pool(layout.world_size).run(cases.train, layout=layout, precision=precision, accumulation=2, tied=True)
    assert "lm_head.weight" not in merged(results, "weights")
    check_all(results, precision, tied=True)


def test_a_tied_head_on_a_stage_of_its_own_goes_on_where_it_was(pool):
    """The last stage's copy is in no checkpoint by its own name: it takes weight and moments from the embedding's."""
    for straight, resumed in pool(2).run(
        cases.go_on_from_own_state, layout=hybrid(2, pp=2), precision="bf16", tied=True
    ):
        assert straight == resumed


def test_clipping_takes_part_in_some_steps_and_not_in_others():
    """Else the comparison would not see a booster that never clips, or always does."""
    norms = reference.train().grad_norms
    assert min(norms) < small_run.CLIPPING < max(norms)
    assert all(math.isfinite(value) for value in norms)
