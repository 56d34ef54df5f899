"""Any range of a tensor-parallel part is read from the whole, and nothing else of it is."""

import pytest
import torch

from llama_dyt.boosters import tensor_parts
from llama_dyt.boosters.grid import Grid


class Counted:
    """A whole tensor that remembers how many elements were read."""

    def __init__(self, whole: torch.Tensor) -> None:
        self.whole = whole
        self.num_read = 0

    def __getitem__(self, index):
        part = self.whole[index]
        self.num_read += part.numel()
        return part


def cut_of(monkeypatch, whole, part_shape, dimension, tp_rank) -> tensor_parts.TensorParallelPart:
    monkeypatch.setattr(tensor_parts, "cut_dimension", lambda parameter: dimension)
    parameter = torch.nn.Parameter(torch.empty(part_shape, device="meta"))
    return tensor_parts.TensorParallelPart(parameter, whole.shape, Grid(0, 1, tp_rank=tp_rank, tp_size=2))


@pytest.mark.parametrize(
    ("shape", "part_shape", "dimension"),
    [
        ((7, 6), (7, 6), None),
        ((8, 6), (4, 6), 0),
        ((7, 6), (7, 3), 1),
        ((5, 3), (4, 3), 0),  # padded: three rows of the second part are not in the whole
        ((3, 2), (4, 2), 0),  # padded so far that the second part is nothing else
        ((5,), (5,), None),
        ((6,), (3,), 0),
    ],
)
@pytest.mark.parametrize("tp_rank", [0, 1])
def test_every_range_of_a_part(monkeypatch, shape, part_shape, dimension, tp_rank):
    whole = torch.randn(shape)
    cut = cut_of(monkeypatch, whole, part_shape, dimension, tp_rank)
    expected = whole
    if dimension is not None:
        padded = torch.zeros([size * 2 if i == dimension else size for i, size in enumerate(part_shape)])
        padded[tuple(map(slice, shape))] = whole
        expected = padded.chunk(2, dim=dimension)[tp_rank]
    expected = expected.flatten()
    assert torch.equal(cut.read(whole), expected)
    for begin in range(len(expected)):
        for end in range(begin, len(expected) + 1):
            assert torch.equal(cut.read(whole, begin, end), expected[begin:end])


def test_only_the_rows_and_columns_of_the_part_are_read(monkeypatch):
    source = Counted(torch.randn(100, 10))
    cut = cut_of(monkeypatch, source.whole, (100, 5), 1, tp_rank=1)
    assert len(cut.read(source, 52, 58)) == 6
    assert source.num_read == 10  # rows 10 and 11, five columns each


def test_only_the_vocabulary_that_exists_is_read(monkeypatch):
    source = Counted(torch.randn(5, 3))
    cut = cut_of(monkeypatch, source.whole, (4, 3), 0, tp_rank=1)
    assert cut.read(source).count_nonzero() == 3
    assert source.num_read == 3
