"""Turns follow the weights at every moment, exactly, whatever stops and wherever a run is resumed."""

import json
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_dyt.data.order.mixture import MixtureSchedule

weights = st.lists(st.fractions(Fraction(1, 10_000), 1000), min_size=1, max_size=9)


def assert_within_one(dealt, weights, running):
    total = sum(weights[number] for number in running)
    counts = Counter()
    bound = 1 - Fraction(1, 2 * len(running) - 2) if len(running) > 1 else 0
    for turn, number in enumerate(dealt, start=1):
        counts[number] += 1
        for other in running:
            assert abs(counts[other] - weights[other] / total * turn) <= bound


@settings(max_examples=150)
@given(weights, st.integers(1, 150))
def test_every_source_is_within_one_of_its_share_at_every_prefix(weights, turns):
    schedule = MixtureSchedule(weights)
    assert_within_one([schedule.next() for _ in range(turns)], weights, range(len(weights)))


@settings(max_examples=100)
@given(weights, st.data())
def test_after_a_stop_the_others_keep_their_relative_weights(weights, data):
    schedule = MixtureSchedule(weights)
    while schedule.running:
        dealt = [schedule.next() for _ in range(data.draw(st.integers(0, 40)))]
        assert_within_one(dealt, weights, schedule.running)
        schedule.stop(data.draw(st.sampled_from(schedule.running)))
    with pytest.raises(IndexError):
        schedule.next()


@settings(max_examples=60)
@given(weights, st.integers(0, 60), st.booleans())
def test_a_schedule_made_from_a_state_goes_on(weights, turns, one_stops):
    schedule = MixtureSchedule(weights)
    stopped = [0] if one_stops and len(weights) > 1 else []
    for number in stopped:
        schedule.stop(number)
    for _ in range(turns):
        schedule.next()
    again = MixtureSchedule(weights, json.loads(json.dumps(schedule.state)), stopped)
    assert [again.next() for _ in range(50)] == [schedule.next() for _ in range(50)]


def test_equal_weights_take_turns_and_whole_periods_are_exact():
    schedule = MixtureSchedule([Fraction(1)] * 3)
    dealt = [schedule.next() for _ in range(9)]
    assert all(sorted(dealt[i : i + 3]) == [0, 1, 2] for i in (0, 3, 6))
    red_pajama = [Fraction(w) for w in (878, 175, 59, 26, 28, 24, 20)]
    schedule = MixtureSchedule(red_pajama)
    assert Counter(schedule.next() for _ in range(1210)) == dict(enumerate(map(int, red_pajama)))


@pytest.mark.parametrize("wrong", [[], [Fraction(1), Fraction(0)], [Fraction(-1)]])
def test_weights_that_are_no_shares_are_refused(wrong):
    with pytest.raises(ValueError, match="above 0"):
        MixtureSchedule(wrong)
