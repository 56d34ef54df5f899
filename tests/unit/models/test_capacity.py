"""Which tokens an expert takes, and what becomes of those that have no place."""

from __future__ import annotations

import pytest
import torch
from model_cases import TINY, tokens

from llama_dyt.core.errors import ConfigurationError
from llama_dyt.models import build_config, build_model
from llama_dyt.models.ops.capacity import capacity_of, within_capacity
from llama_dyt.models.saved_config import plain_config

FEW = {**TINY, "num_local_experts": 4}


@pytest.mark.parametrize(
    ("num_tokens", "k", "experts", "factor", "capacity"),
    [(96, 2, 8, 1.0, 24), (96, 2, 8, 1.25, 30), (97, 2, 8, 1.0, 25), (40, 2, 8, 1.1, 11), (3, 1, 64, 0.5, 1)],
)
def test_a_capacity_is_a_multiple_of_an_even_share_rounded_up(num_tokens, k, experts, factor, capacity):
    """Of the factor as it is written: 1.1 times ten is eleven, not a little more."""
    assert capacity_of(num_tokens, k, experts, factor) == capacity


def test_first_choices_of_all_tokens_come_before_second_ones_and_both_in_their_order():
    chosen = torch.tensor([[0, 1], [1, 0], [0, 2], [0, 1], [2, 0]])
    wanted = [[True, True], [True, False], [True, True], [False, False], [True, False]]
    assert within_capacity(chosen, 4, 2).tolist() == wanted


def test_a_capacity_that_all_fit_in_changes_nothing_and_evaluation_drops_nothing():
    ids = tokens()
    free, wide, narrow = (
        build_model(build_config("mixtral_8x2m", "dyt", **FEW, expert_capacity_factor=factor), seed=1)
        for factor in (None, 2.0, 0.5)
    )
    for model in (free, wide, narrow):
        for layer in model.model.layers:
            layer.mlp.experts.down_proj.data.mul_(30.0)
    losses = [model.train()(ids, labels=ids).loss for model in (free, wide, narrow)]
    assert losses[0] == losses[1] != losses[2]
    assert free.model.routing_board.passes[0].totals().dropped.sum() == 0
    dropped = narrow.model.routing_board.passes[0].totals().dropped
    places = capacity_of(ids.numel(), 2, 4, 0.5)
    assert (dropped >= 2 * ids.numel() - 4 * places).all() and dropped.sum() > 0
    assert torch.equal(free.eval()(ids).logits, narrow.eval()(ids).logits)


def test_a_token_without_any_place_goes_by_its_experts_and_the_others_weights_stay():
    model = build_model(build_config("mixtral_8x2m", "dyt", **FEW, expert_capacity_factor=0.5), seed=1)
    block = model.model.layers[0].mlp
    torch.manual_seed(0)
    hidden = torch.randn(1, 24, TINY["hidden_size"])
    whole, limited = block.eval()(hidden)[0], block.train()(hidden)[0]
    logits = block.gate(hidden[0])
    kept = within_capacity(logits.topk(2, dim=-1).indices, 4, 6)
    assert (~kept.any(1)).any() and kept.all(1).any()
    assert not limited[~kept.any(1)].any()
    torch.testing.assert_close(limited[kept.all(1)], whole[kept.all(1)], rtol=0, atol=1e-6)


@pytest.mark.parametrize("factor", [0, -1.0, float("nan"), float("inf")])
def test_a_capacity_that_is_none_is_refused(factor):
    with pytest.raises(ConfigurationError, match="expert_capacity_factor .* is not above 0"):
        build_config("mixtral_8x2m", "dyt", **TINY, expert_capacity_factor=factor)


def test_a_plain_model_with_a_capacity_is_not_saved_as_transformers_own():
    """Their class has no such field."""
    assert plain_config(build_config("mixtral_8x2m", "rmsnorm", **FEW)).model_type == "mixtral"
    assert plain_config(build_config("mixtral_8x2m", "rmsnorm", **FEW, expert_capacity_factor=0.5)) is None
