import math

import pytest

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.training.schedule import FINAL_FRACTION, learning_rate_factor

NAMES = ("cosine", "quadratic", "linear", "constant")


def factors(name, warmup, total):
    return [learning_rate_factor(name, step, warmup, total) for step in range(total)]


@pytest.mark.parametrize("name", NAMES)
def test_no_step_is_spent_at_rate_zero_and_none_passes_the_peak(name):
    for warmup, total in [(0, 1), (1, 1), (5, 40), (40, 40), (100, 19), (2000, 100_000 // 50)]:
        values = factors(name, warmup, total)
        assert min(values) > 0
        assert max(values) <= 1.0


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_never_rises_again_after_its_peak_nor_past_the_last_step(name):
    values = [learning_rate_factor(name, step, 10, 100) for step in range(150)]
    peak = values.index(max(values))
    assert all(later <= earlier for earlier, later in zip(values[peak:], values[peak + 1 :], strict=False))
    assert values[99:] == [values[99]] * 51


def test_cosine_is_colossal_ais_linear_warm_up_then_a_cosine_from_its_end():
    warmup, total = 20, 120
    values = factors("cosine", warmup, total)
    assert values[:warmup] == pytest.approx([(t + 1) / warmup for t in range(warmup)])
    expected = [0.1 + 0.45 * (1 + math.cos(math.pi * (t - warmup) / (total - warmup))) for t in range(warmup, total)]
    assert values[warmup:] == pytest.approx(expected)


def test_quadratic_is_the_dyt_authors_schedule_one_step_on():
    """Theirs is a function of n = steps done, so that their first step has rate 0; ours uses n + 1."""
    total = 400
    warmup = min(2000, total // 20)

    def theirs(n):
        rising = 1 - (1 - min(n, warmup) / warmup) ** 2
        return min(rising, 0.1 + 0.45 * (1 + math.cos(math.pi * min(n, total) / total)))

    assert theirs(0) == 0
    assert factors("quadratic", 2000, total) == pytest.approx([theirs(n) for n in range(1, total + 1)])
    assert factors("quadratic", 2000, total)[-1] == pytest.approx(FINAL_FRACTION)


def test_quadratic_survives_runs_shorter_than_twenty_steps():
    assert len(factors("quadratic", 2000, 7)) == 7


def test_linear_anneals_towards_zero_and_constant_stays():
    assert factors("linear", 0, 4) == [1.0, 0.75, 0.5, 0.25]
    assert factors("constant", 2, 4) == [0.5, 1.0, 1.0, 1.0]


def test_an_unknown_schedule_is_named_with_the_choices():
    with pytest.raises(ConfigurationError, match="'cosin'.*cosine, quadratic, linear or constant"):
        learning_rate_factor("cosin", 0, 0, 10)
