"""fp16 from the first step on: the loss scale shows in nothing that is logged, and an overflow costs one step."""

import numpy as np
import pytest

from tests.distributed import cases, reference, training_cases
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed

LAYOUTS = [
    Layout("zero2", 2),
    Layout("fsdp", 2),
    Layout("hsdp", 4, flags=(("shard_size", 2),)),
    Layout("gemini", 2, tp=2),
    hybrid(2, zero=1),
    hybrid(2, pp=2),
    hybrid(2, pp=2, pp_style="zbv"),
    hybrid(2, sp=2),
    *(
        pytest.param(layout, marks=pytest.mark.matrix)
        for layout in (Layout("gemini", 2), hybrid(2), hybrid(2, tp=2), Layout("hybrid_parallel_cpu", 2, tp=2))
    ),
]
AT = 2
NUM_STEPS = 7


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_no_step_is_lost_at_the_start_and_norms_are_those_of_fp32(pool, layout: Layout):
    results = pool(layout.world_size).run(cases.train, layout=layout, precision="fp16", num_steps=3)
    for result in results:
        assert None not in result.grad_norms  # a skipped step has none
        # fp16's own noise is 2e-4 (see test_parity); a scale left in would be a factor of 65,536.
        np.testing.assert_allclose(result.grad_norms, reference.train().grad_norms[:3], rtol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_overflow_skips_the_step_and_lowers_the_scale(pool, layout: Layout):
    results = pool(layout.world_size).run(
        training_cases.overflow, layout=layout, scale=training_cases.TOO_LARGE_SCALE, at=AT, num_steps=NUM_STEPS
    )
    for trace, moved in results:
        lost = sum(trace.skipped)
        assert not any(trace.skipped[:AT])
        assert trace.skipped[AT]
        assert 0 < lost < NUM_STEPS - AT
        assert moved == [not skipped for skipped in trace.skipped]
        assert [norm is None for norm in trace.grad_norms] == trace.skipped
        assert trace.progress["step"] == NUM_STEPS
        assert trace.progress["skipped_steps"] == lost
        assert trace.optimizer_steps == NUM_STEPS - lost
        # The schedule, which warms up all the while, waits for a step that counts.
        waited = [rate == following for rate, following in zip(trace.lrs, trace.lrs[1:])]
        assert waited == trace.skipped[:-1]
        assert trace.loss_scales[AT] == training_cases.TOO_LARGE_SCALE
        assert trace.scaler["scale"] < training_cases.TOO_LARGE_SCALE
        # The data goes on: what was skipped is not read again.
        assert trace.progress["position"] == {"step": NUM_STEPS}


def test_a_skipped_step_leaves_no_gradient_behind(pool):
    """After an overflow, the next step's norm is that of its own gradients alone, also when accumulating."""
    for layout in (Layout("zero2", 2), Layout("gemini", 2), Layout("fsdp", 2)):
        (trace, _), *_ = pool(2).run(
            training_cases.overflow,
            layout=layout,
            scale=training_cases.TOO_LARGE_SCALE,
            at=0,
            num_steps=8,
            accumulation=2,
        )
        first = trace.skipped.index(False)
        assert first > 0
        # No weight has moved, so it is the gradient of the initial weights on that step's batch.
        exact = reference.grad_norm_at_start(first, training_cases.NUM_LAYERS)
        assert trace.grad_norms[first] == pytest.approx(exact, rel=1e-3)
