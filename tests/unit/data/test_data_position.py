"""A position goes on with the next token, on any number of ranks, and with nothing but what it was made with."""

import json
from fractions import Fraction

import pytest
from corpora import Tokens, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import ListSource, expected_stream, open_text, steps_of_all_ranks, token_batches, tokens_in_order

from llama_dyt.core.errors import DataError
from llama_dyt.data.opening import Order, WeightedSource
from llama_dyt.data.tokenizing.tokenizer import tokenizer_fingerprint

texts = st.lists(st.none() | st.text("ab \n", max_size=40), min_size=1, max_size=12)


layouts = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))  # batch size, accumulation, ranks


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_resume_from_files_at_every_step(tmp_path, tokenizer, suffix):
    for name in "ab":
        write_jsonl(tmp_path / f"{name}{suffix}", [f"document {name} {i} " + "word " * (i * 7 % 50) for i in range(30)])
    arguments = (str(tmp_path), tokenizer, 16, 2, 2, 0, 1, 2)
    steps = list(token_batches(*arguments))
    assert len(steps) > 20
    for done in range(0, len(steps), 5):
        rest = list(token_batches(*arguments, state=json.loads(json.dumps(steps[done].position))))
        assert len(rest) == len(steps) - done - 1
        for step, again in zip(steps[done + 1 :], rest, strict=True):
            assert step.position == again.position
            for batch, batch_again in zip(step.micro_batches, again.micro_batches, strict=True):
                assert batch["input_ids"].equal(batch_again["input_ids"])
                assert batch["labels"].equal(batch_again["labels"])


def test_positions_from_before_there_were_mixtures_are_gone_on_from(tmp_path, tokenizer):
    """The keys that checkpoints of 0.1.0's first versions hold: one stream, a document and how much of it is used."""
    texts = [f"document {i} " + "word " * (i % 5) for i in range(20)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    source = open_text(str(path))
    records = list(source.iterate())
    stream = expected_stream(texts, tokenizer, 2)
    lengths = [len(expected_stream([text], tokenizer, 1)) for text in texts]
    for document, used in ((0, 3), (7, 0), (19, 2)):
        done = sum(lengths) + sum(lengths[:document]) + used
        state = {
            "epoch": 1,
            "source": records[document - 1][1] if document else None,
            "bad_lines": 0,
            "token": used,
            "sequences": 40,
            "tokens": done,
            "dataset": source.fingerprint,
            "tokenizer": tokenizer_fingerprint(tokenizer),
        }
        rest = list(token_batches(str(path), tokenizer, 8, 2, num_epochs=2, state=json.loads(json.dumps(state))))
        seen = tokens_in_order([rest])
        assert seen == stream[done : done + len(seen)] and len(stream) - done - len(seen) <= 1
        assert rest[0].position["sequences"] == 42


def test_another_order_or_mixture_is_refused_on_resume(tokenizer):
    tokens = Tokens([[5] * 40, [6] * 40])
    position = next(token_batches(tokens, tokenizer, 8, 1, order=Order(3, "sequences"))).position
    for order in (Order(4, "sequences"), Order(3, "documents"), Order(3)):
        with pytest.raises(DataError, match="another order.*--seed"):
            token_batches(tokens, tokenizer, 8, 1, order=order, state=position)
    with pytest.raises(DataError, match="give --max_length 8"):
        list(token_batches(tokens, tokenizer, 16, 1, order=Order(3, "sequences"), state=position))
    two = [WeightedSource("a", tokens), WeightedSource("b", tokens)]
    with pytest.raises(DataError, match="sources or weights are not those"):
        token_batches(two, tokenizer, 8, 1, state=position)
    position = next(token_batches(two, tokenizer, 8, 1)).position
    heavier = [WeightedSource("a", tokens, Fraction(2)), WeightedSource("b", tokens)]
    with pytest.raises(DataError, match="sources or weights are not those.*a, b"):
        token_batches(heavier, tokenizer, 8, 1, state=position)


def test_more_epochs_can_be_added_to_a_finished_run(tokenizer):
    source = ListSource(["one two three", "four"])
    first = list(token_batches(source, tokenizer, 8, 1))
    assert list(token_batches(source, tokenizer, 8, 1, state=first[-1].position)) == []
    more = list(token_batches(source, tokenizer, 8, 1, num_epochs=2, state=first[-1].position))
    assert tokens_in_order([first + more]) == expected_stream(source.texts, tokenizer, 2)


def test_document_longer_than_a_step_goes_on_and_its_position_stays_small(tokenizer):
    source = ListSource(["short", "word " * 5000, "end"])
    steps = list(token_batches(source, tokenizer, 16, 1))
    assert tokens_in_order([steps]) == expected_stream(source.texts, tokenizer, 1)
    assert max(len(json.dumps(step.position)) for step in steps) < 400
    middle = steps[len(steps) // 2].position
    rest = list(token_batches(source, tokenizer, 16, 1, state=middle))
    assert tokens_in_order([rest]) == tokens_in_order([steps[len(steps) // 2 + 1 :]])


def test_changed_dataset_or_tokenizer_is_refused_on_resume(tokenizer):
    source = ListSource(["one two three four five"] * 9)
    state = next(token_batches(source, tokenizer, 8, 1)).position
    with pytest.raises(DataError, match="dataset is not the one"):
        token_batches(ListSource(["other"]), tokenizer, 8, 1, state=state)
    with pytest.raises(DataError, match="tokenizer is not the one"):
        token_batches(source, tokenizer, 8, 1, state={**state, "tokenizer": "other"})


@settings(max_examples=60)
@given(texts, layouts, layouts, st.integers(2, 17), st.integers(1, 3), st.data())
def test_resume_goes_on_with_the_next_token_for_any_number_of_ranks(
    tokenizer, texts, first, second, max_length, num_epochs, data
):
    if not any(texts):
        return
    source = ListSource(texts)
    stream = expected_stream(texts, tokenizer, num_epochs)
    steps = steps_of_all_ranks(source, tokenizer, max_length, *first, num_epochs)
    if not steps[0]:
        return
    stop = data.draw(st.integers(1, len(steps[0])))
    before = tokens_in_order([rank[:stop] for rank in steps])
    state = json.loads(json.dumps(steps[-1][stop - 1].position))
    resumed = steps_of_all_ranks(source, tokenizer, max_length, *second, num_epochs, state)
    seen = before + tokens_in_order(resumed)
    assert seen == stream[: len(seen)]
    assert len(stream) - len(seen) <= 1
    if first == second:
        for rank, again in zip(steps, resumed, strict=True):
            assert [step.position for step in rank[stop:]] == [step.position for step in again]
    epoch_bad_lines = sum(text is None for text in texts)
    if resumed[0]:
        assert resumed[0][-1].num_bad_lines <= epoch_bad_lines * num_epochs
