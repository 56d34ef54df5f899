"""Packed rows with documents apart give, under every booster, the gradients of the documents one by one."""

import functools

import pytest

from tests.distributed import document_cases, reference
from tests.distributed.document_cases import OneStep, Ways
from tests.distributed.parity import EXACT_GRADIENTS, merged
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed

BOTH, POSITIONS, ATTENTION = Ways(True, True), Ways(True, False), Ways(False, True)
EXACT_LOSS = 1e-6
HALF_LOSS = 2e-3
NOISE = 0.03
"""Bound in bf16 on a gradient's distance: above the noise that parity.py tells of, far below what a mistake makes."""
MISTAKE = 0.1

CASES = [
    (Layout("zero2", 2), "fp32", BOTH),
    (Layout("zero2", 2), "fp32", POSITIONS),
    (Layout("zero2", 2), "fp32", ATTENTION),
    (Layout("fsdp", 2), "fp32", BOTH),
    (Layout("gemini", 2), "bf16", BOTH),
    (hybrid(2, tp=2), "fp32", ATTENTION),
    (hybrid(2, pp=2), "fp32", BOTH),
    (hybrid(2, sp=2), "fp32", BOTH),
    (hybrid(2, tp=2, sp_mode="split_gather"), "fp32", POSITIONS),
]
OTHERS = [
    (hybrid(2, pp=2), "fp32", POSITIONS),
    (hybrid(2, pp=2, pp_style="interleaved"), "fp32", ATTENTION),
    (hybrid(2, sp=2), "fp32", POSITIONS),
    (hybrid(4, tp=2, pp=2, pp_style="zbv", sp_mode="split_gather"), "fp32", BOTH),
    (hybrid(4, pp=2, sp=2), "fp32", ATTENTION),
]


@functools.cache
def plain(ways: Ways) -> OneStep:
    return document_cases.plain_step(ways)


def worst_distance(results: list[OneStep], expected: OneStep) -> float:
    gradients = merged(results, "gradients")
    assert set(gradients) == set(expected.gradients)
    return max(reference.distances(gradients, expected.gradients).values())


@pytest.mark.parametrize(
    ("layout", "precision", "ways"),
    [*CASES, *(pytest.param(*case, marks=pytest.mark.matrix) for case in OTHERS)],
    ids=str,
)
def test_a_packed_step_equals_documents_one_by_one(pool, layout: Layout, precision: str, ways: Ways):
    accumulation = 2 if layout.pp > 1 or ways is BOTH else 1
    results = pool(layout.world_size).run(
        document_cases.one_step, layout=layout, precision=precision, ways=ways, accumulation=accumulation
    )
    expected, exact = plain(ways), precision == "fp32"
    for result in results:
        assert result.num_label_tokens == expected.num_label_tokens
        for loss in (result.loss, result.evaluated):
            assert loss == pytest.approx(expected.loss, rel=EXACT_LOSS if exact else HALF_LOSS)
    assert worst_distance(results, expected) < (EXACT_GRADIENTS if exact else NOISE)


@pytest.mark.parametrize("layout", [Layout("zero2", 2), hybrid(2, pp=2), hybrid(2, sp=2)], ids=str)
def test_the_three_ways_are_told_apart(pool, layout: Layout):
    """A booster that forgot the mask, or the positions, would fail the comparison. Within documents alone positions
    may begin anywhere: rotary embeddings are relative."""
    for ways, other in ((BOTH, POSITIONS), (POSITIONS, Ways(False, False))):
        results = pool(2).run(document_cases.one_step, layout=layout, precision="fp32", ways=ways)
        assert worst_distance(results, plain(other)) > MISTAKE
