"""Examples that share sequences: all there once, apart from each other, and learned as they are one by one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import instruction_batches
from test_instructions import Pairs

from llama_dyt.core.errors import DataError
from llama_dyt.data.loaders.example_store import Example
from llama_dyt.data.loaders.examples import TooLong
from llama_dyt.data.loaders.packing import Packs
from llama_dyt.models import build_config, build_model

LENGTH = 48
PAIRS = [(f"question {'x' * (i % 7)}", f"answer {'y' * (i % 5)} {i}") for i in range(23)]


@settings(max_examples=80)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=60))
def test_every_example_is_in_one_sequence_that_has_room(lengths):
    packs = Packs(np.array(lengths), 30)
    rows = [packs[number].tolist() for number in range(len(packs))]
    assert sorted(sum(rows, [])) == list(range(len(lengths)))
    assert all(sum(lengths[one] for one in row) <= 30 for row in rows)
    fewest = -(-sum(lengths) // 30)
    assert len(packs) <= 11 * fewest / 9 + 1 or len(packs) <= sum(length > 15 for length in lengths) + 1 + fewest


def test_many_are_packed_quickly_and_nearly_full():
    lengths = np.random.default_rng(0).integers(20, 1000, 50_000)
    packs = Packs(lengths, 4096)
    assert len(packs) <= 1.001 * lengths.sum() / 4096 + 1


@pytest.fixture(scope="module")
def model(tokenizer):
    config = build_config(
        "llama2_7b", norm="dyt", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, vocab_size=len(tokenizer),
    )  # fmt: skip
    torch.manual_seed(0)
    return build_model(config).train()


def loss_and_gradients(model, steps):
    """Summed over all targets, whatever batches they came in."""
    model.zero_grad()
    total = count = 0.0
    for step in steps:
        for batch in step.micro_batches:
            loss = model(**batch, num_items_in_batch=1, use_cache=False).loss
            loss.backward()
            total += float(loss.detach())
        count += step.num_label_tokens
    return total, count, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def test_packed_examples_give_the_loss_and_gradients_that_they_give_alone(tokenizer, model):
    apart = instruction_batches(Pairs(PAIRS), tokenizer, LENGTH, 4)
    packed = instruction_batches(Pairs(PAIRS), tokenizer, LENGTH, 2, pack=True)
    assert packed.num_sequences < len(PAIRS) * 0.7
    loss, count, gradients = loss_and_gradients(model, list(apart))
    other_loss, other_count, other_gradients = loss_and_gradients(model, list(packed))
    assert other_count == count
    assert other_loss == pytest.approx(loss, rel=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-3, atol=1e-3 * gradient.abs().max())


def test_one_step_later_a_packed_run_goes_on_with_what_is_left(tokenizer):
    def rows(steps):
        return [batch["input_ids"].tolist() for step in steps for batch in step.micro_batches]

    whole = list(instruction_batches(Pairs(PAIRS), tokenizer, LENGTH, 2, num_epochs=2, pack=True))
    state = whole[2].position
    rest = list(instruction_batches(Pairs(PAIRS), tokenizer, LENGTH, 2, num_epochs=2, pack=True, state=state))
    assert rows(rest) == rows(whole[3:])
    with pytest.raises(DataError, match="another packing"):
        instruction_batches(Pairs(PAIRS), tokenizer, LENGTH, 2, state=state)


def test_a_prompts_tokens_do_not_touch_what_is_learned_of_other_examples(tokenizer, model):
    """Labels of prompts are no targets; other tokens there change what is predicted in their own example alone."""
    (step,) = instruction_batches(Pairs(PAIRS[:4]), tokenizer, LENGTH, 4, pack=True)
    (batch,) = step.micro_batches
    unlearned = batch["labels"] == -100
    assert unlearned.any() and (batch["labels"][~unlearned] == batch["input_ids"][~unlearned]).all()
    inputs = {name: batch[name] for name in ("document_ids", "position_ids")}
    with torch.no_grad():
        before = model(input_ids=batch["input_ids"], **inputs, use_cache=False).logits
        changed = batch["input_ids"].clone()
        changed[0, 1] = (changed[0, 1] + 5) % len(tokenizer)  # of the first example's prompt
        after = model(input_ids=changed, **inputs, use_cache=False).logits
    moved = (before - after).abs().amax(-1) > 0
    assert moved[0].any()
    assert not moved[batch["document_ids"] > 0].any()
    assert not moved[1:].any()


@pytest.mark.parametrize(
    ("rule", "kept", "learned"),
    [
        (TooLong(), [1, 10, 11, 12], [0, 0, 0, 1]),
        (TooLong(left=True), [1, 13, 14, 2], [0, 1, 1, 1]),
    ],
)
def test_a_too_long_example_is_cut_at_the_side_that_is_asked_for(rule, kept, learned):
    example = Example.behind(np.array([1, 10, 11, 12, 13, 14, 2]), 3)
    cut = rule.cut(example, 4, bos=1)
    assert (cut.tokens.tolist(), cut.learned.astype(int).tolist()) == (kept, learned)


def test_too_long_examples_are_dropped_and_counted_where_that_is_asked_for(tokenizer):
    pairs = [("p", "short"), ("p", "word " * 50), ("p" * 99, "lost")]
    loader = instruction_batches(Pairs(pairs), tokenizer, 16, 1, too_long=TooLong(drop=True))
    found = loader.examples
    assert (len(found.examples), found.num_too_long, found.num_truncated, found.num_dropped) == (1, 2, 0, 0)
