"""Slices of a batch for the ranks of all_to_all, and the attention over them; the rest is in the parity test."""

import pytest
import torch

from llama_dyt.boosters.sequence import attention_over_all_to_all, cut_batch


def test_slices_join_to_the_whole_with_labels_shifted_across_their_edges():
    ids = torch.arange(24).view(2, 12)
    labels = ids + 100
    parts = [cut_batch({"input_ids": ids, "labels": labels}, rank, 3) for rank in range(3)]
    joined = {key: torch.cat([part[key] for part in parts], dim=1) for key in parts[0]}
    assert torch.equal(joined["input_ids"], ids)
    assert torch.equal(joined["position_ids"], torch.arange(12).expand(2, -1))
    assert torch.equal(joined["labels"][:, :-1], labels[:, 1:])
    assert (joined["labels"][:, -1] == -100).all()


def test_one_rank_keeps_its_batch_as_it_is():
    batch = {"input_ids": torch.zeros(1, 3), "labels": torch.zeros(1, 3)}
    assert cut_batch(batch, 0, 1) is batch


def test_a_mask_is_refused():
    mask = torch.ones(1, 1, 4, 4)
    with pytest.raises(ValueError, match="takes no attention mask"):
        attention_over_all_to_all(torch.nn.Module(), *[torch.zeros(1, 2, 4, 8)] * 3, mask)
