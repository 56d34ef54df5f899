"""Slices of a batch for the ranks of all_to_all, and the attention over them; the rest is in the parity test."""

import pytest
import torch

from llama_dyt.boosters.layers.sequence_parallel import _Heads, attention_over_all_to_all, cut_batch


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


def test_positions_that_were_given_are_cut_and_documents_stay_whole():
    ids = torch.arange(24).view(2, 12)
    given = {"position_ids": ids % 5, "document_ids": ids // 5}
    parts = [cut_batch({"input_ids": ids, "labels": ids, **given}, rank, 3) for rank in range(3)]
    assert torch.equal(torch.cat([part["position_ids"] for part in parts], dim=1), given["position_ids"])
    assert all(torch.equal(part["document_ids"], given["document_ids"]) for part in parts)


def test_a_mask_of_a_slice_is_refused(monkeypatch):
    monkeypatch.setattr(
        "llama_dyt.boosters.layers.sequence_parallel._Trade.apply", lambda tensor, *_: tensor.repeat(1, 1, 2, 1)
    )
    module = torch.nn.Module()
    module.sequence_parallel = _Heads(group=None, config=None, copies=1)
    with pytest.raises(ValueError, match="sees sequences of 8, and was given an attention mask for 4"):
        attention_over_all_to_all(module, *[torch.zeros(1, 2, 4, 8)] * 3, torch.ones(1, 1, 4, 4))
