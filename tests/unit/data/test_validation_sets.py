"""Training and validation share no document and miss none, wherever a walk begins."""

import json

import pytest
from corpora import write_jsonl
from loading import PAIR, instruction_batches, open_text, token_batches

from llama_dyt.core.errors import DataError
from llama_dyt.data.opening import open_data
from llama_dyt.data.order.held_out import OneSide, is_held_out
from llama_dyt.data.validation_sets import ValidationSet, open_training, set_name

TEXTS = [f"document {number} {'x' * (number % 7)}" for number in range(300)]


@pytest.fixture
def corpus(tmp_path):
    return str(write_jsonl(tmp_path / "all.jsonl", TEXTS))


def texts(source, position=None):
    return [values[0] for values, _ in source.iterate(position)]


def test_the_two_sides_are_the_whole_corpus_and_share_nothing(corpus):
    training = texts(open_training(corpus, 0.2))
    held_out = texts(ValidationSet("all", corpus, 0.2).open())
    assert training == [text for text in TEXTS if not is_held_out(text, 0.2)]
    assert held_out == [text for text in TEXTS if is_held_out(text, 0.2)]
    assert len(held_out) == pytest.approx(60, abs=25)


def test_a_larger_share_holds_out_the_same_documents_and_more(corpus):
    small, large = (set(texts(ValidationSet("all", corpus, share).open())) for share in (0.1, 0.3))
    assert small < large


def test_without_a_share_training_reads_the_source_itself(corpus):
    assert open_training(corpus, None).fingerprint == open_text(corpus).fingerprint
    assert texts(open_training(corpus, None)) == TEXTS


@pytest.mark.parametrize("held_out", [True, False])
def test_every_position_of_a_side_goes_on_with_its_next_document(corpus, held_out):
    side = OneSide(open_text(corpus), 0.3, held_out)
    walk = list(side.iterate())
    for number, (_, after) in enumerate(walk):
        assert list(side.iterate(after)) == walk[number + 1 :]


def test_a_position_of_one_share_does_not_serve_another(corpus, tokenizer):
    def batches(share, state=None):
        return token_batches(open_training(corpus, share), tokenizer, 16, 2, state=state)

    with batches(0.2) as first:
        position = next(first).position
    with batches(0.2, position) as again:
        next(again)
    for share in (0.3, None):
        with pytest.raises(DataError, match="dataset"):
            batches(share, position)


@pytest.fixture
def pairs(tmp_path):
    """(file of prompts with several completions each, the pairs in it)"""
    file = tmp_path / "pairs.jsonl"
    pairs = [(f"prompt {number % 40}" + " " * (number % 2), f"completion {number}") for number in range(120)]
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    return str(file), pairs


FIELDS = ("prompt", "completion")


def test_held_out_examples_share_no_prompt_with_training(pairs):
    file, all_pairs = pairs
    training = [values for values, _ in open_training(file, 0.3, PAIR).iterate()]
    held_out = [values for values, _ in ValidationSet("pairs", file, 0.3).open(PAIR).iterate()]
    assert sorted([*training, *held_out]) == sorted(all_pairs)
    prompts = [{prompt.strip() for prompt, _ in side} for side in (training, held_out)]
    assert all(prompts) and not prompts[0] & prompts[1]


def test_a_position_from_when_prompts_could_be_on_both_sides_is_refused_with_the_reason(pairs, tokenizer):
    source = open_training(pairs[0], 0.3, PAIR)
    position = next(instruction_batches(source, tokenizer, 64, 2)).position
    former = {**position, "dataset": f"{open_data(pairs[0], PAIR).fingerprint}, without held out 0.3"}
    with pytest.raises(DataError, match="now all examples of a prompt are, .*--model_path"):
        instruction_batches(source, tokenizer, 64, 2, state=former)
    instruction_batches(source, tokenizer, 64, 2, state=position).close()


@pytest.mark.parametrize("share", [None, 1e-9])
def test_a_set_without_a_document_is_refused(tmp_path, share):
    file = write_jsonl(tmp_path / "a.jsonl", ["", ""] if share is None else TEXTS)
    with pytest.raises(DataError, match="a.jsonl: no record with text" if share is None else "holds out no document"):
        ValidationSet("a", str(file), share).check()
    ValidationSet("a", str(write_jsonl(tmp_path / "b.jsonl", ["", "x"]))).check()


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        ("data/held.out.jsonl.gz", "held"),
        ("owner/Some-Data", "Some_Data"),
        ("a/*.jsonl", "validation"),
        ("folder/", "folder"),
    ],
)
def test_a_set_is_named_after_its_file_or_repository(dataset, name):
    assert set_name(dataset) == name
