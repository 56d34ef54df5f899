"""Training and validation share no document and miss none, wherever a walk begins."""

import pytest
from corpora import write_jsonl

from llama_dyt.data.loader import TokenBatches
from llama_dyt.data.sources import open_source
from llama_dyt.data.split import OneSide, is_held_out
from llama_dyt.data.validation import ValidationSet, open_training, set_name
from llama_dyt.errors import DataError

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
    assert open_training(corpus, None).fingerprint == open_source(corpus).fingerprint
    assert texts(open_training(corpus, None)) == TEXTS


@pytest.mark.parametrize("held_out", [True, False])
def test_every_position_of_a_side_goes_on_with_its_next_document(corpus, held_out):
    side = OneSide(open_source(corpus), 0.3, held_out)
    walk = list(side.iterate())
    for number, (_, after) in enumerate(walk):
        assert list(side.iterate(after)) == walk[number + 1 :]


def test_a_position_of_one_share_does_not_serve_another(corpus, tokenizer):
    def batches(share, state=None):
        return TokenBatches(open_training(corpus, share), tokenizer, 16, 2, state=state)

    with batches(0.2) as first:
        position = next(first).position
    with batches(0.2, position) as again:
        next(again)
    for share in (0.3, None):
        with pytest.raises(DataError, match="dataset"):
            batches(share, position)


def test_records_of_two_fields_are_held_out_by_both(tmp_path):
    import json

    file = tmp_path / "pairs.jsonl"
    pairs = [(f"prompt {number % 3}", f"completion {number}") for number in range(100)]
    file.write_text("".join(json.dumps({"prompt": p, "completion": c}) + "\n" for p, c in pairs))
    fields = ("prompt", "completion")
    training = [values for values, _ in open_training(str(file), 0.3, fields).iterate()]
    held_out = [values for values, _ in ValidationSet("pairs", str(file), 0.3).open(fields).iterate()]
    assert sorted([*training, *held_out]) == sorted(pairs)
    assert {prompt for prompt, _ in training} == {prompt for prompt, _ in held_out}


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
