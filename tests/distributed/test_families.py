"""Every family computes what plain PyTorch computes, with its own norm and with DyT: some layouts of each, all of them
under the matrix."""

from __future__ import annotations

import pytest

from tests.distributed import cases, family_cases
from tests.distributed.matrix import MATRIX_LAYOUTS
from tests.distributed.parity import check_all
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed

FAMILIES = {
    "mistral_7b": {"norm": "rmsnorm", "tied": False},
    "gemma_2b": {"norm": "unit_offset_rmsnorm", "tied": True},
    "phi_2": {"norm": "layernorm", "tied": False},
}
UNSEEN = ("self_attn.k_proj.bias",)
"""A softmax does not see what a key's bias adds where positions do not turn it: its gradient is rounding, which Adam
makes steps of. Only Phi has one."""
EVERY_TIME = [
    ("mistral_7b", "rmsnorm", Layout("fsdp", 2)),
    ("mistral_7b", "dyt", hybrid(2, sp=2)),
    ("mistral_7b", "dyt", hybrid(4, tp=2, pp=2, sp_mode="split_gather")),
    ("gemma_2b", "unit_offset_rmsnorm", hybrid(4, tp=2, pp=2)),
    ("gemma_2b", "unit_offset_rmsnorm", Layout("gemini", 2, tp=2)),
    ("gemma_2b", "dyt", Layout("zero2", 2)),
    ("phi_2", "layernorm", Layout("zero2", 2)),
    ("phi_2", "dyt", hybrid(4, tp=2, pp=2, sp_mode="split_gather")),
    ("phi_2", "dyt", Layout("gemini", 2, tp=2)),
    ("phi_2", "layernorm", hybrid(2, pp=2, pp_style="zbv")),
]
CASES = EVERY_TIME + [
    pytest.param(*case, marks=pytest.mark.matrix)
    for family, model in FAMILIES.items()
    for norm in (model["norm"], "dyt")
    for case in ((family, norm, layout) for layout in MATRIX_LAYOUTS)
    if case not in EVERY_TIME
]


@pytest.mark.parametrize(("family", "norm", "layout"), CASES, ids=str)
def test_boosted_training_equals_plain_pytorch(pool, family: str, norm: str, layout: Layout):
    model = {"family": family, "norm": norm, "tied": FAMILIES[family]["tied"]}
    precision = layout.precisions[0]
    results = pool(layout.world_size).run(cases.train, layout=layout, precision=precision, accumulation=2, **model)
    check_all(results, precision, UNSEEN, **model)


@pytest.mark.parametrize("layout", [hybrid(2, tp=2), hybrid(2, tp=2, sp_mode="split_gather")], ids=str)
def test_dropout_leaves_what_ranks_hold_alike_alike(pool, layout: Layout):
    """Tensor-parallel ranks drop the same numbers of the hidden states that all of them have, or their norms part."""
    first, second = pool(2).run(family_cases.norms_after_training_with_dropout, layout=layout)
    assert first and first == second
