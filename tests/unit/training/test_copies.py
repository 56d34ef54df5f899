"""The sum of a tensor's bits tells any one bit that is not the same; who differs is told by what most hold."""

from __future__ import annotations

import pytest
import torch

from llama_dyt.config.run import RunConfig
from llama_dyt.training.health.copies import Difference, _first_difference, sum_of_bits
from llama_dyt.training.health.settings import health_problems


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn])
def test_every_single_bit_changes_the_sum(dtype):
    tensor = torch.randn(7, 3).to(dtype)  # no multiple of eight bytes
    bits = tensor.element_size() * 8
    whole = tensor.view({8: torch.int8, 16: torch.int16, 32: torch.int32, 64: torch.int64}[bits])
    before = int(sum_of_bits(tensor))
    for bit in range(bits):
        flip = torch.tensor(1 << bit if bit < bits - 1 else -(1 << bit), dtype=whole.dtype)
        for place in ((4, 1), (6, 2)):
            whole[place] ^= flip
            assert int(sum_of_bits(tensor)) != before, (bit, place)
            whole[place] ^= flip
    assert int(sum_of_bits(tensor)) == before
    shifted = torch.cat([tensor.new_zeros(1), tensor.view(-1)])[1:]
    assert int(sum_of_bits(shifted)) == before == int(sum_of_bits(tensor.T.contiguous().T))


def test_nothing_and_a_scalar_have_sums_and_minus_nothing_is_not_nothing():
    assert int(sum_of_bits(torch.empty(0))) == 0
    assert int(sum_of_bits(torch.tensor(-0.0))) != int(sum_of_bits(torch.tensor(0.0)))
    assert int(sum_of_bits(torch.tensor(float("nan")))) != int(sum_of_bits(torch.tensor(0.0)))


def sums(**of_a) -> dict:
    return {"all": of_a}


def test_the_few_that_differ_are_named_and_where_it_cannot_be_told_that_is_said():
    hosts = ["a", "a", "b", "b"]
    good, bad = sums(v=1, w=2, x=3), sums(v=1, w=5, x=6)
    found = _first_difference([good, good, bad, good])
    assert found == Difference("w", 1, odd=(2,), even=(0, 1, 3), tie=False)
    assert found.in_words(hosts) == "rank 2 (host b) holds another w (and 1 tensor more) than ranks 0-1, 3"
    found = _first_difference([bad, good, good, bad])
    more = "hold another w (and 1 tensor more) than"
    assert found.in_words(hosts) == f"ranks 1-2 (hosts a, b) {more} ranks 0, 3; which of them is right cannot be told"


def test_ranks_that_hold_other_parts_are_not_compared():
    found = _first_difference([{"0": {"w": 1}}, {"1": {"w": 2}}, {"0": {"w": 1}}, {"1": {"w": 3}}])
    assert (found.odd, found.even, found.tie) == ((3,), (1,), True)


def test_one_process_has_nothing_to_compare_and_is_told_so():
    run = RunConfig.build("pretrain", plugin="ddp", checksum_interval=5)
    (problem,) = health_problems(run, world_size=1)
    assert str(problem).startswith("--checksum_interval 5 compares what several ranks hold")
    assert list(health_problems(run, world_size=2)) == list(health_problems(run, world_size=None)) == []
