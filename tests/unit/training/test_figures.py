"""Figures keep their digits: a small one is not 0.00."""

import pytest

from llama_dyt.training.measurement.figures import figure, percentage


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234.5, "1234.50"),
        (12.345, "12.35"),
        (1.0, "1.00"),
        (0.999, "0.999"),
        (0.1, "0.100"),
        (0.00123456, "0.00123"),
        (-0.0456, "-0.0456"),
        (0.0, "0.00"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_a_figure_has_two_decimals_or_three_significant_digits(value, text):
    assert figure(value) == text


def test_shares_and_other_decimals():
    assert figure(0.5, 3) == "0.500" and figure(1234.56, 1) == "1234.6"
    assert percentage(0.4567) == "45.7%" and percentage(0.000456) == "0.0456%"
