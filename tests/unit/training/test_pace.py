"""A rank that holds up the others is named once it has done so for a while; what passes is not told."""

from __future__ import annotations

import pytest

from llama_dyt.training.health.pace import RECORDS, SECONDS, Own, Pace, slowest

USUAL = Own(layer=0.010, data=0.0, between=0.001)
NAMES = [f"rank {rank} (host b{rank // 2})" for rank in range(8)]


def of_ranks(count: int, at: int, **slow: float) -> list[Own]:
    return [Own(**{**vars(USUAL), **slow}) if rank == at else USUAL for rank in range(count)]


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize(
    ("slow", "factor"),
    [({"layer": 0.019}, 1.9), ({"data": 0.8}, 5.0), ({"between": 0.501}, 2.0), ({"data": 0.04}, 1.0)],
)
def test_the_slowest_rank_is_found_and_by_how_much(count, slow, factor):
    found = slowest(of_ranks(count, 1, **slow), step_seconds=1.0)
    assert found.factor == pytest.approx(factor)
    if factor > 1:
        assert found.rank == 1 and found.usual == USUAL


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def hear(pace: Pace, clock: Clock, at: int, times: int, seconds: float = SECONDS, **slow: float) -> list[str]:
    told = []
    for _ in range(times):
        told.append(pace.hear(slowest(of_ranks(8, at, **slow), 1.0)))
        clock.now += seconds
    return [line for line in told if line is not None]


def test_one_that_stays_slow_is_named_once_and_once_more_when_it_no_longer_is():
    clock = Clock()
    pace = Pace(1.5, NAMES, clock)
    assert hear(pace, clock, 5, RECORDS - 1, layer=0.019, data=0.8) == []
    (told,) = hear(pace, clock, 5, 10, layer=0.019, data=0.8)
    why = "a layer 1.9x the median, data wait 0.80 s a step (median 0.00 s)"
    assert told == f"rank 5 (host b2) is slow: {why}, in 3 records in a row"
    assert hear(pace, clock, 5, RECORDS - 1) == []
    assert hear(pace, clock, 5, 10) == ["rank 5 (host b2) keeps up with the others again"]
    (again,) = hear(pace, clock, 5, 10, between=0.7)
    assert "busy beside its steps 0.70 s a step (median 0.00 s)" in again


def test_what_is_short_or_goes_from_rank_to_rank_is_not_told():
    clock = Clock()
    pace = Pace(1.5, NAMES, clock)
    assert hear(pace, clock, 5, 100, seconds=SECONDS / 200, layer=0.03) == []
    for _ in range(10):
        assert hear(pace, clock, 1, RECORDS - 1, layer=0.03) + hear(pace, clock, 2, RECORDS - 1, layer=0.03) == []
    assert hear(pace, clock, 1, 100, layer=0.0149) == []


def test_another_slow_rank_is_named_beside_the_first():
    clock = Clock()
    pace = Pace(1.5, NAMES, clock)
    lines = hear(pace, clock, 1, 5, layer=0.03) + hear(pace, clock, 7, 5, layer=0.03)
    assert [line.partition(":")[0] for line in lines] == [
        "rank 1 (host b0) is slow",
        "rank 1 (host b0) keeps up with the others again",
        "rank 7 (host b3) is slow",
    ]
