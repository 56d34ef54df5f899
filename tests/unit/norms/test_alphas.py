"""Starting alphas by width: the published ones where there are, between them otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_dyt.norms import PUBLISHED_ALPHAS, default_alphas


@pytest.mark.parametrize(
    ("width", "alphas"),
    [(1024, (1.0, 1.0)), (2048, (1.0, 0.5)), (4096, (0.8, 0.2)), (5120, (0.6, 0.15)), (8192, (0.2, 0.05))],
)
def test_published_widths_give_the_published_alphas(width, alphas):
    assert default_alphas(width) == alphas


def test_widths_outside_the_table_take_the_nearest_end():
    assert default_alphas(64) == default_alphas(1024)
    assert default_alphas(16384) == default_alphas(8192)


def test_between_two_widths_alpha_is_linear_in_the_logarithm():
    # 2896 is 2048 * sqrt(2): half way from 2048 to 4096.
    attention, others = default_alphas(2896)
    assert attention == pytest.approx(0.9, abs=2e-4) and others == pytest.approx(0.35, abs=2e-4)


@given(st.integers(1, 20000), st.integers(0, 4000))
def test_a_wider_model_never_starts_with_a_larger_alpha(width, more):
    narrow, wide = default_alphas(width), default_alphas(width + more)
    assert wide[0] <= narrow[0] and wide[1] <= narrow[1]
    assert wide[1] <= wide[0], "the norm before attention has the largest alpha at every published width"


def test_table_is_not_changed_by_interpolating():
    before = dict(PUBLISHED_ALPHAS)
    default_alphas(3000)
    assert before == PUBLISHED_ALPHAS


def test_width_must_be_positive():
    with pytest.raises(ValueError, match="hidden_size is 0"):
        default_alphas(0)
