"""Where documents begin within packed rows, and what the model is told of it."""

import pytest
import torch
from corpora import write_jsonl
from loading import token_batches

from llama_dyt.core.errors import DataError
from llama_dyt.data.loaders.documents_apart import DocumentsApart, number_documents, positions_in_documents
from llama_dyt.data.loaders.step import IGNORE_INDEX, Step

EOS = 2


def test_an_eos_ends_a_document_and_the_next_token_begins_one():
    ids = torch.tensor([[5, 6, EOS, 7, EOS, 8, 9], [EOS, EOS, 5, 6, 7, 8, EOS], [5, 6, 7, 8, 9, 5, 6]])
    documents = number_documents(ids, EOS)
    assert documents.tolist() == [[0, 0, 0, 1, 1, 2, 2], [0, 1, 2, 2, 2, 2, 2], [0] * 7]
    positions = positions_in_documents(documents)
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0, 1], [0, 0, 0, 1, 2, 3, 4], list(range(7))]


@pytest.mark.parametrize("seed", range(20))
def test_positions_are_those_of_a_walk_through_the_tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 5, (3, 40), generator=generator)
    expected = []
    for row in ids.tolist():
        places, place = [], 0
        for token in row:
            places.append(place)
            place = 0 if token == EOS else place + 1
        expected.append(places)
    assert positions_in_documents(number_documents(ids, EOS)).tolist() == expected


def steps_of(step, sums=None, **flags):
    asked = []

    def add_up(count):
        asked.append(count)
        return lambda: count if sums is None else sums

    apart = DocumentsApart(iter([step]), EOS, flags.get("positions", False), flags.get("attention", False), add_up)
    return next(apart), asked


@pytest.fixture
def packed():
    ids = torch.tensor([[5, 6, EOS, 7, EOS, 8, 9], [5, 6, EOS, EOS, EOS, EOS, EOS]])
    labels = ids.clone()
    labels[1, 3:] = IGNORE_INDEX  # padding
    return Step([{"input_ids": ids[:1], "labels": labels[:1]}, {"input_ids": ids[1:], "labels": labels[1:]}], 8, 10, {})


def test_attention_within_documents_takes_the_labels_of_their_first_tokens(packed):
    step, asked = steps_of(packed, attention=True)
    assert [batch["labels"].tolist() for batch in step.micro_batches] == [
        [[5, 6, EOS, IGNORE_INDEX, EOS, IGNORE_INDEX, 9]],
        [[5, 6, EOS, *[IGNORE_INDEX] * 4]],
    ]
    assert [batch["document_ids"].tolist() for batch in step.micro_batches] == [
        [[0, 0, 0, 1, 1, 2, 2]],
        [[0, 0, 0, 1, 2, 3, 4]],
    ]
    assert all("position_ids" not in batch for batch in step.micro_batches)
    assert asked == [6] and step.num_label_tokens == 6
    assert packed.micro_batches[0]["labels"].tolist() == packed.micro_batches[0]["input_ids"].tolist(), "left alone"


def test_the_targets_of_all_ranks_are_counted_and_never_none(packed):
    assert steps_of(packed, sums=20, attention=True)[0].num_label_tokens == 20
    assert steps_of(packed, sums=0, attention=True)[0].num_label_tokens == 1


def test_positions_alone_keep_labels_and_attention(packed):
    step, asked = steps_of(packed, positions=True)
    for batch, before in zip(step.micro_batches, packed.micro_batches):
        assert torch.equal(batch["labels"], before["labels"])
        assert not batch["document_ids"].any(), "one document, for attention"
    assert step.micro_batches[0]["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert asked == [] and step.num_label_tokens == packed.num_label_tokens


def test_both_together(packed):
    step, _ = steps_of(packed, positions=True, attention=True)
    assert set(step.micro_batches[0]) == {"input_ids", "labels", "position_ids", "document_ids"}
    assert step.micro_batches[0]["document_ids"].tolist() == [[0, 0, 0, 1, 1, 2, 2]]
    assert (step.num_tokens, step.position) == (packed.num_tokens, packed.position)


def test_ranks_of_any_number_count_the_targets_of_the_global_batch(tmp_path, tokenizer):
    texts = [f"value {number} in range" * (number % 4 + 1) for number in range(40)]
    file = str(write_jsonl(tmp_path / "a.jsonl", texts))

    def counts(rank, size):
        asked = []
        batches = token_batches(file, tokenizer, 16, 6 // size, dp_rank=rank, dp_size=size)
        with DocumentsApart(
            batches, tokenizer.eos_token_id, True, True, lambda n: asked.append(n) or (lambda: n)
        ) as apart:
            list(apart)
        return asked

    alone = counts(0, 1)
    for size in (2, 3):
        assert [sum(own) for own in zip(*(counts(rank, size) for rank in range(size)))] == alone
    packed_targets = [step.num_label_tokens for step in token_batches(file, tokenizer, 16, 6)]
    assert len(alone) == len(packed_targets) and sum(alone) < sum(packed_targets)


def test_closing_ends_the_loader(tmp_path, tokenizer):
    batches = token_batches(str(write_jsonl(tmp_path / "a.jsonl", ["text"] * 50)), tokenizer, 8, 1)
    with DocumentsApart(batches, EOS, True, False, sum):
        pass
    assert next(batches, None) is None


def test_the_sum_of_a_step_is_begun_before_the_step_before_it_is_handed_out(packed):
    events = []

    def start(count):
        number = len([event for event in events if event.startswith("begun")])
        events.append(f"begun {number}")
        return lambda: events.append(f"waited for {number}") or count

    for _ in DocumentsApart(iter([packed] * 3), EOS, False, True, start):
        events.append("trained")
    assert events == [
        "begun 0",
        "waited for 0",
        "begun 1",
        "trained",
        "waited for 1",
        "begun 2",
        "trained",
        "waited for 2",
        "trained",
    ]


def test_what_is_wrong_in_the_data_comes_after_the_steps_before_it(packed):
    def steps():
        yield packed
        raise DataError("line 7")

    apart = DocumentsApart(steps(), EOS, True, True, lambda count: lambda: count)
    assert next(apart).num_label_tokens == 6
    with pytest.raises(DataError, match="line 7"):
        next(apart)
