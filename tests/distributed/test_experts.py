"""A decoder with experts computes what plain PyTorch computes, its routers' losses among it: over all ranks, layers,
stages and micro batches together, as transformers' function has them."""

from __future__ import annotations

import pytest

from tests.distributed import cases
from tests.distributed.matrix import MATRIX_LAYOUTS
from tests.distributed.parity import check_grad_norms, check_gradients, check_losses, check_weights
from tests.distributed.small_run import Layout, hybrid, micro_batch_rows

pytestmark = pytest.mark.distributed

FAMILY = "mixtral_8x2m"
EVERY_TIME = [
    (Layout("ddp", 2), "rmsnorm", 2),
    (Layout("fsdp", 2), "dyt", 2),
    (Layout("zero2", 2), "dyt", 2),
    (hybrid(2, tp=2), "dyt", 1),
    (hybrid(2, sp=2), "dyt", 2),
    (hybrid(4, tp=2, pp=2, sp_mode="split_gather"), "dyt", 1),
    (hybrid(2, pp=2, pp_style="zbv"), "rmsnorm", 1),
    (hybrid(2, pp=2, pp_style="interleaved"), "dyt", 2),
]
CASES = EVERY_TIME + [
    pytest.param(layout, norm, accumulation, marks=pytest.mark.matrix)
    for layout in MATRIX_LAYOUTS
    for norm in ("rmsnorm", "dyt")
    for accumulation in (1, 2)
    if (layout, norm, accumulation) not in EVERY_TIME and layout.precisions[0] == "fp32"
    if 8 // (layout.dp * accumulation) >= (2 if layout.pp > 1 else 1)
]


@pytest.mark.parametrize(("layout", "norm", "accumulation"), CASES, ids=str)
def test_boosted_training_equals_plain_pytorch(pool, layout: Layout, norm: str, accumulation: int):
    model = {"family": FAMILY, "norm": norm}
    results = pool(layout.world_size).run(
        cases.train, layout=layout, precision="fp32", accumulation=accumulation, **model
    )
    exact = {**model, "micro_batches": micro_batch_rows(layout, accumulation)}
    check_gradients(results, "fp32", **exact)
    check_grad_norms(results, "fp32", **exact)
    check_losses(results, "fp32", **exact)
    check_weights(results, "fp32", **exact)
