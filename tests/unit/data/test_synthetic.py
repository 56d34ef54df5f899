"""Random batches: the interface of the real loaders, the same global batch for any number of ranks."""

import pytest
import torch

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.loaders.synthetic import SyntheticBatches


def rows(steps):
    return [torch.cat([batch["input_ids"] for batch in step.micro_batches]) for step in steps]


def test_global_batches_do_not_depend_on_the_number_of_ranks():
    whole = rows(SyntheticBatches(100, 8, 4, num_steps=3))
    ranks = [rows(SyntheticBatches(100, 8, 1, 2, rank, 2, num_steps=3)) for rank in range(2)]
    for step in range(3):
        assert whole[step].equal(torch.cat([rank[step] for rank in ranks]))
    assert not ranks[0][0].equal(ranks[1][0])
    assert not whole[0].equal(whole[1])


def test_step_says_what_it_holds():
    (step,) = SyntheticBatches(100, 8, 2, 3, 1, 4, num_steps=1)
    assert [tuple(batch["input_ids"].shape) for batch in step.micro_batches] == [(2, 8)] * 3
    assert all(batch["labels"].equal(batch["input_ids"]) for batch in step.micro_batches)
    assert (step.num_tokens, step.num_label_tokens) == (24 * 8, 24 * 7)
    assert step.micro_batches[0]["input_ids"].dtype == torch.int64
    assert int(step.micro_batches[0]["input_ids"].min()) >= 0
    assert int(step.micro_batches[0]["input_ids"].max()) < 100


def test_resume_and_endless_stream():
    first = list(SyntheticBatches(100, 8, 1, num_steps=4))
    rest = list(SyntheticBatches(100, 8, 1, num_steps=4, state=first[1].position))
    assert [a.equal(b) for a, b in zip(rows(first[2:]), rows(rest), strict=True)] == [True, True]
    with SyntheticBatches(100, 8, 1) as endless:
        assert rows([next(endless)])[0].equal(rows(first[:1])[0])


def test_max_length_below_two_is_refused():
    with pytest.raises(ConfigurationError):
        SyntheticBatches(100, 1, 1)
