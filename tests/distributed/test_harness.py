"""The harness itself: results in order, failures of any kind reported with their rank, and processes replaced."""

import os
import time

import pytest

from tests.distributed.harness import CaseError

pytestmark = pytest.mark.distributed


def sum_of_ranks(offset: int) -> tuple[int, float]:
    import torch
    import torch.distributed as dist

    total = torch.tensor(float(dist.get_rank() + offset))
    dist.all_reduce(total)
    return dist.get_rank(), total.item()


def fail_on(rank: int, how: str) -> None:
    import torch.distributed as dist

    if dist.get_rank() == rank:
        if how == "raise":
            raise ValueError("not this rank's day")
        if how == "die":
            os._exit(7)
        time.sleep(60)
    dist.barrier()


def test_every_rank_returns_its_own_result(pool):
    assert pool(2).run(sum_of_ranks, offset=1) == [(0, 3.0), (1, 3.0)]
    assert pool(2).run("tests.distributed.test_harness:sum_of_ranks", offset=2) == [(0, 5.0), (1, 5.0)]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raise", ["rank 1 raised", "not this rank's day", "rank 0 did not end", "in fail_on"]),
        ("die", ["rank 1 died, exit status 7"]),
        ("hang", ["rank 0 did not end in 3 s", "rank 1 did not end in 3 s", "in fail_on"]),
    ],
)
def test_a_failing_rank_is_reported_and_the_pool_goes_on(pool, monkeypatch, how, told):
    monkeypatch.setattr("tests.distributed.harness.GRACE_SECONDS", 1.0)
    with pytest.raises(CaseError) as caught:
        pool(2).run(fail_on, timeout=3, rank=1, how=how)
    for words in told:
        assert words in str(caught.value)
    assert pool(2).run(sum_of_ranks, offset=0) == [(0, 1.0), (1, 1.0)]
