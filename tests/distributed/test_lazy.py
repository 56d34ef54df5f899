"""A model is built where it is needed: no rank reads, draws or holds more of it than its part."""

import pytest

from tests.distributed import lazy_cases
from tests.distributed.small_run import Layout, hybrid

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("layout", "share"),
    [
        (Layout("fsdp", 2), 1 / 2),
        (hybrid(2, tp=2), 1 / 2),
        (hybrid(2, pp=2), 1 / 2),
        (hybrid(2, pp=2, pp_style="zbv"), 1 / 2),
        (hybrid(4, tp=2, pp=2), 1 / 4),
        # ZeRO 1 and 2 have all working weights on every rank, which are filled beside the masters' share of them.
        (Layout("zero2", 2), 1 + 1 / 2),
        (hybrid(4, tp=2, zero=1), (1 + 1 / 2) / 2),
    ],
    ids=str,
)
def test_a_rank_reads_its_part_alone(pool, layout: Layout, share: float):
    ranks = pool(layout.world_size).run(lazy_cases.elements_read, layout=layout, precision=layout.precisions[0])
    total = sum(ranks[0][1].values())
    for read, _ in ranks:
        # Norms are whole on tensor-parallel ranks, stages are not of one size, slices are rounded up to rows.
        assert sum(read.values()) == pytest.approx(total * share, rel=0.2)
    together = {name for read, _ in ranks for name in read}
    assert together == set(ranks[0][1])
