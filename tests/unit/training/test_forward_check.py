"""When a model counts as another than the one that was saved."""

from dataclasses import replace

import pytest

from llama_dyt.training.checkpoint.forward_check import Computed, apart, known_forward, why_different

SAVED = Computed(known_forward(100), 4.0, [[1.0, -2.0], [3.0, 0.5], [2.0, 2.0]], "bf16", None)


def scaled(by: float, **more) -> Computed:
    return replace(SAVED, logits=[[by * value for value in row] for row in SAVED.logits], **more)


@pytest.mark.parametrize(
    ("saved", "loaded", "logits_apart"), [("fp32", "fp32", 2e-3), ("fp32", "bf16", 4e-2), ("fp16", "fp32", 1e-2)]
)
def test_the_coarser_of_two_precisions_says_how_far_they_may_be_apart(saved, loaded, logits_apart):
    before = replace(SAVED, mixed_precision=saved)
    within, beyond = (scaled(1 + part * logits_apart, mixed_precision=loaded) for part in (0.9, 1.1))
    assert why_different(before, within, by_choice=False) is None
    assert "logits are" in why_different(before, beyond, by_choice=False)


def test_a_loss_that_differs_is_told_though_logits_do_not():
    assert why_different(SAVED, replace(SAVED, loss=4.01), by_choice=False) is None
    assert "a loss of 4.0300, and gave 4.0000" in why_different(SAVED, replace(SAVED, loss=4.03), by_choice=False)


def test_what_is_not_a_number_differs():
    for spoiled in (replace(SAVED, loss=float("nan")), scaled(float("nan"))):
        assert why_different(SAVED, spoiled, by_choice=False) is not None
        assert not spoiled.is_finite


def test_one_position_that_went_to_another_expert_does_not_count():
    other = replace(SAVED, logits=[SAVED.logits[0], [-3.0, 0.5], SAVED.logits[2]])
    assert apart(SAVED, other, by_choice=True)[1] == 0 < apart(SAVED, other, by_choice=False)[1]
    assert why_different(SAVED, other, by_choice=True) is None
    assert why_different(SAVED, scaled(2.0), by_choice=True) is not None


@pytest.mark.parametrize("size", [7, 97, 32000, 128256])
def test_tokens_are_of_the_vocabulary_and_spread_over_it(size):
    known = known_forward(size)
    assert len(known.tokens) == 16 and max(known.positions) < 16
    assert all(0 <= token < size for token in (*known.tokens, *known.entries))
    assert len(set(known.tokens)) == min(16, size)
