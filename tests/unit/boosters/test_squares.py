"""Sums of squares of long tensors lose nothing, whatever their type, length and layout."""

import pytest
import torch

from llama_dyt.boosters.squares import sum_of_squares


@pytest.fixture(scope="module")
def numbers() -> torch.Tensor:
    """As gradients are: rows of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(20_011, 1, generator=generator).exp()
    return rows * torch.randn(20_011, 600, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_twelve_million_elements_are_summed_to_seven_digits(numbers, dtype):
    tensor = numbers.to(dtype)
    exact = float(tensor.double().square().sum())
    naive = float(torch.linalg.vector_norm(tensor, dtype=torch.float32).double().square())
    assert naive != pytest.approx(exact, rel=1e-5), "torch has mended its kernel: this file can go"
    assert float(sum_of_squares([tensor])) == pytest.approx(exact, rel=2e-7)
    assert float(sum_of_squares([tensor.t()])) == pytest.approx(exact, rel=2e-7)


def test_short_long_and_empty_tensors_count_alike(numbers):
    parts = [numbers[:1], numbers[:0], numbers[1:900], numbers[900], numbers[901:].bfloat16().float()]
    whole = torch.cat([part.reshape(-1) for part in parts])
    assert float(sum_of_squares(parts)) == pytest.approx(float(whole.double().square().sum()), rel=1e-7)
    assert sum_of_squares(parts).dtype == torch.float64


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_one_number_that_is_not_finite_is_seen(numbers, dtype, value):
    for length in (10, 5000):
        spoiled = numbers.reshape(-1)[:length].to(dtype).clone()
        spoiled[length // 2] = value
        assert not torch.isfinite(sum_of_squares([spoiled]))
