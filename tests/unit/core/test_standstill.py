"""Ranks that wait may agree to stay; whoever goes on first has all go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import pytest
import torch.distributed as dist

from llama_dyt.core import ranks
from llama_dyt.core.place import Place
from llama_dyt.core.standstill import Standstill, asked_anywhere
from llama_dyt.core.watch import Watch


@pytest.fixture
def of_rank(monkeypatch) -> Iterator[Callable[[int], None]]:
    """Makes this process one of three ranks."""
    store = dist.HashStore()
    watches = [Watch(store, Place(rank=rank, world_size=3), 10.0) for rank in range(3)]
    yield lambda rank: monkeypatch.setattr(ranks, "watch", lambda: watches[rank])


def come(of_rank, *which: int) -> dict[int, Standstill]:
    found = {}
    for rank in which:
        of_rank(rank)
        found[rank] = Standstill("step 7")
    return found


def test_all_stay_once_the_last_has_come(of_rank):
    here = come(of_rank, 2, 0)
    assert not any(one.all_stay() for one in here.values())
    here |= come(of_rank, 1)
    assert all(one.all_stay() for one in here.values())
    assert not here[0].may_go(), "what one of them waited for came too late"


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_where_one_went_on_nobody_stays(of_rank, order):
    first, *others = order
    here = come(of_rank, first)
    assert here[first].may_go()
    here |= come(of_rank, *others)
    assert not any(one.all_stay() for one in here.values())
    assert all(one.may_go() for one in here.values())


def test_ranks_that_wait_learn_that_one_was_asked(of_rank):
    of_rank(0)
    assert not asked_anywhere(False)
    of_rank(2)
    assert asked_anywhere(True)
    of_rank(0)
    assert asked_anywhere(False)


def test_one_process_alone_stays_when_it_likes():
    assert not asked_anywhere(False) and asked_anywhere(True)
    assert Standstill("step 7").all_stay() and Standstill("step 8").may_go()
