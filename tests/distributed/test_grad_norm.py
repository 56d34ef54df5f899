"""The norm of a long gradient is the same number under every booster, to seven digits; sums in fp32 are not rounded."""

from dataclasses import replace

import pytest

from tests.distributed import norm_cases
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed

LAYOUTS = [Layout("ddp", 2), Layout("fsdp", 2), Layout("zero2", 2), Layout("zero2_cpu", 2), hybrid(2, tp=2)]
OFFLOADED = Layout("gemini", 2, flags=(("offload_optim_frac", 1.0),))
HALF = [*LAYOUTS, Layout("gemini", 2), Layout("gemini", 2, tp=2), OFFLOADED]


def test_long_gradients_have_one_norm_in_every_layout(pool):
    for results in pool(2).run(norm_cases.reported_and_exact, layouts=LAYOUTS, precision="fp32"):
        for reported, exact in results:
            assert reported == pytest.approx(exact, rel=1e-7)
            assert reported == pytest.approx(results[0][0], rel=1e-6)


def test_long_gradients_in_half_precision_have_their_exact_norm(pool):
    for results in pool(2).run(norm_cases.reported_and_exact, layouts=HALF, precision="bf16"):
        for layout, (reported, exact) in zip(HALF, results):
            assert reported == pytest.approx(exact, rel=1e-6), layout


def test_fp32_gradients_are_sums_that_no_micro_batch_or_rank_was_rounded_in(pool):
    plain = [Layout("zero1", 2), Layout("zero2", 2), Layout("zero2_cpu", 2), hybrid(2, zero=1), hybrid(2, zero=2)]
    wide = [replace(layout, flags=(("fp32_gradients", True),)) for layout in plain]
    rounded, *_ = pool(2).run(norm_cases.rounding_of_sums, layouts=plain)
    exact, *_ = pool(2).run(norm_cases.rounding_of_sums, layouts=wide)
    assert min(rounded) > 1e-4
    assert max(exact) < 1e-6
