"""What a rank holds comes back from a slot to the last bit, under every plugin: nothing is gathered on the way."""

from __future__ import annotations

import pytest

from tests.distributed import snapshot_cases, transfer_cases
from tests.distributed.small_run import LAYOUTS, Layout, hybrid

pytestmark = pytest.mark.distributed

USUAL = [
    Layout("zero2", 2),
    Layout("zero2_cpu", 2),
    Layout("gemini", 2),
    Layout("ddp", 2),
    Layout("fsdp", 2),
    hybrid(2, tp=2),
    hybrid(2, pp=2),
]


def cases() -> list:
    """Of each plugin one, in bf16 where it can, and under the matrix every layout in every precision."""
    found = []
    for layout in LAYOUTS:
        precisions = layout.precisions
        for precision in precisions:
            usual = layout in USUAL and precision == ("bf16" if "bf16" in precisions else precisions[0])
            marks = [] if usual else [pytest.mark.matrix]
            found.append(pytest.param(layout, precision, id=f"{layout}-{precision}", marks=marks))
    return found


@pytest.mark.parametrize(("layout", "precision"), cases())
def test_a_run_goes_on_from_its_ranks_own_parts_with_the_same_numbers(pool, tmp_path, layout, precision):
    ranks = pool(layout.world_size).run(
        snapshot_cases.there_and_back, layout=layout, precision=precision, folder=str(tmp_path)
    )
    for rank in ranks:
        assert rank.went_on == rank.came_back and len(set(rank.went_on)) == len(rank.went_on)
    largest = max(ranks, key=lambda rank: rank.size)
    assert largest.size == pytest.approx(largest.expected, rel=0.15), "--dry_run says otherwise"


def test_a_tied_head_on_the_last_stage_comes_back_too(pool, tmp_path):
    layout = hybrid(2, pp=2)
    ranks = pool(2).run(snapshot_cases.there_and_back, layout=layout, precision="bf16", folder=str(tmp_path), tied=True)
    assert all(rank.went_on == rank.came_back for rank in ranks)


def test_slots_of_unlike_sizes_go_round_in_pieces(pool):
    sizes = [1, 100_003, 65_536]
    ranks = pool(3).run(transfer_cases.ring, sizes=sizes, piece_bytes=4096, to={0: 1, 1: 2, 2: 0})
    assert ranks == [
        [(2, 0, '{"of": "2 é"}', True)],
        [(0, 0, '{"of": "0 é"}', True)],
        [(1, 1, "", True)],  # one that is not to be kept
    ]


def test_one_rank_keeps_the_slots_of_several(pool):
    ranks = pool(3).run(transfer_cases.ring, sizes=[9_000, 0, 70_000], piece_bytes=4096, to={0: 1, 2: 1})
    assert ranks == [[], [(0, 0, '{"of": "0 é"}', True), (2, 0, '{"of": "2 é"}', True)], []]
