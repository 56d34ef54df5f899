"""The loss: fp32 from upcast logits, HF's shift, one denominator for many micro batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_cases import tiny_model, tokens
from torch.nn import functional as F

from llama_dyt.models import causal_lm_loss


def by_definition(logits, labels):
    """Mean over the label tokens of -log p, in double precision, one token at a time."""
    losses = [
        -F.log_softmax(logits[row, position].double(), -1)[labels[row, position + 1]]
        for row in range(labels.shape[0])
        for position in range(labels.shape[1] - 1)
        if labels[row, position + 1] != -100
    ]
    return torch.stack(losses).mean().item()


@given(st.integers(1, 3), st.integers(2, 9), st.integers(0, 10**6))
@settings(max_examples=25)
def test_loss_is_the_mean_over_label_tokens_of_the_next_token(batch, length, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(batch, length, 11, generator=generator)
    labels = torch.randint(0, 11, (batch, length), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = -100
    if (labels[:, 1:] == -100).all():
        return
    assert causal_lm_loss(logits, labels).item() == pytest.approx(by_definition(logits, labels), rel=1e-5)


def test_bf16_logits_are_upcast_before_anything_is_rounded():
    torch.manual_seed(0)
    logits = (2 * torch.randn(2, 64, 500)).bfloat16()
    labels = torch.randint(0, 500, (2, 64))
    loss = causal_lm_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(by_definition(logits, labels), rel=1e-6)
    assert loss.item() != loss.bfloat16().float().item()


def test_micro_batches_with_one_denominator_add_up_to_the_whole_batch():
    model = tiny_model()
    ids = tokens(batch=4)
    labels = ids.clone()
    labels[0, 3:] = -100  # micro batches with different numbers of label tokens
    whole = model(ids, labels=labels)
    whole.loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    count = float((labels[:, 1:] != -100).sum())
    losses = [model(ids[i : i + 1], labels=labels[i : i + 1], num_items_in_batch=count).loss for i in range(4)]
    for loss in losses:
        loss.backward()
    assert sum(loss.item() for loss in losses) == pytest.approx(whole.loss.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.parametrize("denominator", [3, 3.0, torch.tensor(3), torch.tensor(3.0)])
def test_denominator_may_be_a_number_or_a_tensor(denominator):
    logits, labels = torch.randn(1, 5, 7), torch.tensor([[1, 2, 3, 4, 5]])
    assert causal_lm_loss(logits, labels, denominator).item() == pytest.approx(
        causal_lm_loss(logits, labels).item() * 4 / 3
    )


@pytest.mark.parametrize("denominator", [None, 0, 100.0])
def test_a_batch_with_nothing_to_learn_costs_nothing_and_moves_nothing(denominator):
    model = tiny_model()
    ids = tokens()
    loss = model(ids, labels=torch.full_like(ids, -100), num_items_in_batch=denominator).loss
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is not None and p.grad.eq(0).all() for p in model.parameters())


def test_loss_can_be_replaced_on_one_model_only():
    model, other = tiny_model(), tiny_model()
    ids = tokens()
    seen = {}

    def replaced(logits, labels, num_items_in_batch):
        seen.update(shape=logits.shape, count=num_items_in_batch)
        return logits.sum() * 0 + 7

    model.loss_function = replaced
    assert model(ids, labels=ids, num_items_in_batch=5.0).loss.item() == 7
    assert seen == {"shape": (2, 24, 131), "count": 5.0}
    assert other(ids, labels=ids).loss.item() != 7


def test_loss_stays_fp32_in_a_bf16_model_and_under_autocast():
    model = tiny_model()
    ids = tokens()
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids, labels=ids).loss.dtype == torch.float32
    out = model.bfloat16()(ids, labels=ids)
    assert out.logits.dtype == torch.bfloat16 and out.loss.dtype == torch.float32
    assert out.loss.item() == pytest.approx(by_definition(out.logits, ids), rel=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_shifted_labels_stand_in_for_labels(training):
    """As trainers give them that cut sequences into slices, whose last token's target is in the next slice."""
    model, ids = tiny_model().train(training), tokens()
    shifted = torch.nn.functional.pad(ids, (0, 1), value=-100)[:, 1:]
    whole = model(ids, labels=ids).loss
    other = torch.zeros_like(ids)
    torch.testing.assert_close(model(ids, labels=other, shift_labels=shifted).loss, whole, rtol=1e-6, atol=0)
    count = float((shifted != -100).sum())
    wide = model(ids, labels=other, shift_labels=shifted, num_items_in_batch=2 * count).loss
    torch.testing.assert_close(wide, whole / 2, rtol=1e-6, atol=0)


def test_the_loss_function_takes_what_transformers_trainers_give_it():
    model, ids = tiny_model(), tokens()
    shifted = torch.nn.functional.pad(ids, (0, 1), value=-100)[:, 1:]
    out = model(ids, shift_labels=shifted)
    assert out.loss is None, "transformers' models make a loss of labels alone"
    loss = model.loss_function(logits=out.logits, labels=None, shift_labels=shifted, vocab_size=131)
    torch.testing.assert_close(loss, model(ids, labels=ids).loss, rtol=1e-6, atol=0)


@pytest.mark.parametrize("training", [False, True])
def test_labels_of_another_shape_than_the_positions_are_refused(training):
    model, ids = tiny_model().train(training), tokens()
    with pytest.raises(ValueError, match=r"labels of shape \(2, 23\) do not fit positions of shape \(2, 24\)"):
        model(ids, labels=ids, shift_labels=ids[:, 1:])
