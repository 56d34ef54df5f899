"""A loss far above the last ones is a spike; noise, a fall, a slow rise and the beginning of a run are none."""

from __future__ import annotations

import math
import random

import pytest

from llama_dyt.config.run import RunConfig
from llama_dyt.training.health.settings import health_problems
from llama_dyt.training.health.spikes import FEWEST, LEAST_RISE, WINDOW, look, remember

FACTOR = 8.0


def found(losses: list[float], factor: float = FACTOR) -> list[int]:
    """Which of the losses of a run are spikes."""
    recent: list[float] = []
    steps = []
    for step, loss in enumerate(losses):
        if look(recent, loss, factor) is not None:
            steps.append(step)
        remember(recent, loss)
    assert len(recent) <= WINDOW
    return steps


def course(steps: int, noise: float = 0.05, seed: int = 0) -> list[float]:
    """A run that learns: from 10 to about 3, with noise."""
    drawn = random.Random(seed)
    return [3 + 7 * math.exp(-step / 100) + drawn.gauss(0, noise) for step in range(steps)]


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_learns_has_none_and_one_that_jumps_has(seed):
    losses = course(2000, seed=seed)
    assert found(losses) == []
    losses[900:903] = [4.2, 5.1, 3.9]
    assert found(losses) == [900, 901, 902]


def test_the_threshold_is_the_median_and_so_many_robust_deviations():
    recent = [float(number) for number in range(101)]  # median 50, median absolute deviation 25
    usual = 50 + FACTOR * 1.4826 * 25
    assert look(recent, usual - 0.01, FACTOR) is None
    spike = look(recent, usual + 0.01, FACTOR)
    assert (spike.usual, spike.threshold, spike.losses) == (50.0, pytest.approx(usual), 101)


def test_where_losses_hardly_differ_a_spike_is_a_rise_of_some_size():
    assert found([1.0] * 100 + [1.0 + 0.9 * LEAST_RISE]) == []
    assert found([1.0] * 100 + [1.0 + 1.1 * LEAST_RISE]) == [100]


def test_one_spike_does_not_hide_the_next_and_a_level_that_stays_is_none():
    losses = [3.0, 3.01, 2.99, 3.02] * 50
    assert found([*losses, 30.0, *losses[:40], 4.0]) == [200, 241]
    steps = found([*losses, *[5.0] * 300])
    assert steps == list(range(200, 200 + len(steps)))
    assert len(steps) <= WINDOW // 2 + 1, "half of what is compared with is of the new level then"


def test_the_first_steps_are_not_judged():
    assert found([3.0] * (FEWEST - 1) + [50.0]) == []
    assert found([3.0] * FEWEST + [50.0]) == [FEWEST]


def test_to_go_back_from_what_is_not_looked_for_is_told():
    run = RunConfig.build("pretrain", plugin="ddp", rollback_on_spike=2, spike_factor=None)
    (problem,) = health_problems(run, world_size=2)
    assert "has no effect without --spike_factor" in str(problem)


def test_gates_that_were_opened_are_not_gone_back_from():
    run = RunConfig.build("pretrain", plugin="ddp", rollback_on_spike=2, taper_steps=10)
    (problem,) = health_problems(run, world_size=2)
    assert "cannot close the gates again" in str(problem) and "--taper_steps" in str(problem)
