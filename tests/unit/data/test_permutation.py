"""A computed order is a permutation, the same for ever, and looks random."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_dyt.data.order.permutation import Permutation


@settings(max_examples=100)
@given(st.integers(0, 3000), st.integers(0, 2**32))
def test_every_number_comes_once(n, seed):
    assert sorted(Permutation(n, seed)(np.arange(n)).tolist()) == list(range(n))


def test_orders_never_change():
    """Golden values: a run resumed with a later version must be given the same order."""
    assert Permutation(10, 42, "a", 0)(np.arange(10)).tolist() == [4, 6, 1, 3, 2, 9, 8, 5, 0, 7]
    large = Permutation(2**40 + 7, 42, "a", 1)
    assert large(np.array([0, 1, 2**40 + 6])).tolist() == [421530461483, 900389277637, 829722986115]
    assert Permutation(2, 0)(np.arange(2)).tolist() == [0, 1]


def test_the_shape_and_the_kind_of_integer_do_not_matter():
    order = Permutation(1000, 7)
    expected = order(np.arange(12))
    assert order(np.arange(12, dtype=np.uint32).reshape(3, 4)).tolist() == expected.reshape(3, 4).tolist()
    assert int(order(np.int16(5))) == expected[5]


def test_every_part_of_the_key_gives_another_order():
    keys = [(1,), (2,), (1, "a"), (1, "b"), (1, "a", 0), (1, "a", 1), (1, "a", "1")]
    assert len({Permutation(500, *key)(np.arange(500)).tobytes() for key in keys}) == len(keys)


def test_numbers_outside_are_refused():
    for wrong in (-1, 10):
        with pytest.raises(IndexError):
            Permutation(10, 0)(np.array([3, wrong]))
    with pytest.raises(ValueError, match="2\\*\\*62"):
        Permutation(2**63, 0)


def test_orders_look_random():
    n, num_orders = 6, 6000
    placed = np.zeros((n, n))
    for seed in range(num_orders):
        placed[np.arange(n), Permutation(n, seed)(np.arange(n))] += 1
    expected = num_orders / n
    assert ((placed - expected) ** 2 / expected).sum() < 70  # chi-square with 25 degrees of freedom: 3e-6 by chance
    order = Permutation(100_000, 3)(np.arange(100_000))
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.02  # neighbours part
    assert 0.45 < (np.diff(order) > 0).mean() < 0.55
