"""The order of tokens is a function of the corpus: checked against the definition for random corpora and layouts."""

import copy
import json

import numpy as np
import pytest
from corpora import Tokens, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import ListSource, counted, expected_stream, open_text, steps_of_all_ranks, token_batches, tokens_in_order
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.formats.sources import TokenDocuments
from llama_dyt.data.loaders.tokenized_walk import EncodedWalk, start_workers
from llama_dyt.data.opening import Order, WeightedSource
from llama_dyt.data.order.held_out import is_held_out
from llama_dyt.data.tokenizing.encode import encode_batch
from llama_dyt.data.tokenizing.tokenizer import check_vocabulary, tokenizer_fingerprint, vocabulary_size

texts = st.lists(st.none() | st.text("ab \n", max_size=40), min_size=1, max_size=12)


layouts = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))  # batch size, accumulation, ranks


@settings(max_examples=60)
@given(texts, layouts, st.integers(2, 17), st.integers(1, 3))
def test_no_token_is_lost_or_doubled_and_all_ranks_end_together(tokenizer, texts, layout, max_length, num_epochs):
    if not any(texts):
        return
    batch_size, accumulation, dp_size = layout
    source = ListSource(texts)
    steps = steps_of_all_ranks(source, tokenizer, max_length, batch_size, accumulation, dp_size, num_epochs)
    stream = expected_stream(texts, tokenizer, num_epochs)
    seen = tokens_in_order(steps)
    unlearnable = len(stream) - len(seen)  # a last sequence of one token has no target and is left out
    assert unlearnable == (len(stream) % max_length == 1)
    assert seen == stream[: len(seen)]
    for step in zip(*steps, strict=True):
        targets = sum(int((b["labels"][:, 1:] != -100).sum()) for rank in step for b in rank.micro_batches)
        real = sum(int((b["labels"] != -100).sum()) for rank in step for b in rank.micro_batches)
        for rank in step:
            assert rank.num_label_tokens == targets > 0
            assert rank.num_tokens == real
            assert rank.position == step[0].position
            assert [tuple(b["input_ids"].shape) for b in rank.micro_batches] == [
                (batch_size, max_length)
            ] * accumulation
    assert steps[0][-1].position["tokens"] == len(seen)
    count = counted(source, tokenizer, max_length, batch_size, accumulation, dp_size, num_epochs)
    assert (count.steps, count.tokens) == (len(steps[0]), len(stream))


def test_prepared_tokens_of_another_tokenizer_are_refused(tokenizer):
    for tokens, message in (
        (Tokens([[5] * 9], tokenizer="other"), "another tokenizer"),
        (Tokens([[5] * 9], vocab_size=331), "vocabulary of 331, the tokenizer's has 330"),
        (Tokens([]), "no token at all"),
    ):
        with pytest.raises((ConfigurationError, DataError), match=message):
            list(token_batches(tokens, tokenizer, 8, 1))
    with pytest.raises(DataError, match="token 330 is none of the tokenizer's 330"):
        list(token_batches(Tokens([[330] * 9]), tokenizer, 8, 1))
    fitting = Tokens([[329] * 9], tokenizer=tokenizer_fingerprint(tokenizer), vocab_size=330)
    assert len(list(token_batches(fitting, tokenizer, 8, 1))) == 1


class Documents(TokenDocuments):
    """Tokenized documents that can only be walked."""

    def __init__(self, documents):
        self._documents, self.fingerprint = documents, f"documents:{documents}"

    def documents(self, position=None):
        first = position["row"] if position else 0
        for row, ids in enumerate(self._documents[first:], start=first + 1):
            yield np.array(ids, np.int32), {"row": row, "bad_lines": 0}


@pytest.mark.parametrize("shuffle", ["none", "documents"])
def test_tokenized_documents_are_framed_packed_and_gone_on_from(tokenizer, shuffle):
    stream = Documents([[10 + i] * (i % 7 + 1) for i in range(30)])
    order = Order(5, shuffle, shuffle_buffer=4)
    steps = list(token_batches(stream, tokenizer, 8, 2, num_epochs=2, order=order))
    framed = [[1, *ids.tolist(), 2] for ids, _ in stream.documents()]
    seen = tokens_in_order([steps])
    expected = [token for document in framed for token in document] * 2
    assert sorted(seen) == sorted(expected)
    assert (seen == expected) == (shuffle == "none")
    for done, step in enumerate(steps, start=1):
        rest = list(token_batches(stream, tokenizer, 8, 2, num_epochs=2, order=order, state=step.position))
        assert tokens_in_order([rest]) == tokens_in_order([steps[done:]])
    assert counted(stream, tokenizer, 8, 2, num_epochs=2).steps == len(steps)


def test_text_cannot_be_shuffled_by_sequences(tokenizer):
    with pytest.raises(ConfigurationError, match="--shuffle documents, or prepare it"):
        token_batches(ListSource(["x"]), tokenizer, 8, 1, order=Order(1, "sequences"))


def test_an_endless_mixture_cannot_be_counted_and_prepared_tokens_are_counted_at_once(tokenizer):
    class Huge(Tokens):
        def tokens(self, start, stop):
            raise AssertionError("counting reads no token")

    huge = Huge([[5]])
    huge.num_tokens, huge.num_documents = 10**12, 10**9
    count = counted([WeightedSource("a", huge, num_epochs=3), WeightedSource("b", huge)], tokenizer, 4096, 8, 4, 64)
    assert (count.tokens, count.documents, count.sequences) == (4 * 10**12, 4 * 10**9, 732421875 + 244140625)
    assert count.steps == -(-(732421875 + 244140625) // 2048)
    with pytest.raises(ConfigurationError, match="source b is repeated without end; give --max_steps"):
        counted([WeightedSource("a", huge), WeightedSource("b", huge, num_epochs=None)], tokenizer, 4096, 8)


def test_a_source_that_ends_says_so_and_each_is_counted(tokenizer):
    sources = [WeightedSource("a", Tokens([[5] * 16])), WeightedSource("b", Tokens([[6] * 64]), num_epochs=None)]
    loader = token_batches(sources, tokenizer, 8, 2)
    steps = [next(loader) for _ in range(4)]
    loader.close()
    notices = [notice for step in steps for notice in step.notices]
    assert notices == ["source a ended after 1 epochs and 16 tokens; the others go on at their relative weights"]
    assert steps[3].sources == {
        "a/sequences": 2,
        "a/tokens": 16,
        "a/epochs": 1,
        "b/sequences": 6,
        "b/tokens": 48,
        "b/epochs": 0,
    }


def test_documents_that_validation_holds_out_are_not_trained_on(tmp_path, tokenizer):
    texts = [f"document {i}" for i in range(200)]
    path = write_jsonl(tmp_path / "a.jsonl", texts)
    kept = [text for text in texts if not is_held_out(text, 0.3)]
    assert 100 < len(kept) < 180
    for num_workers in (0, 2):
        options = {"held_out_fraction": 0.3, "num_workers": num_workers}
        steps = list(token_batches(str(path), tokenizer, 16, 2, **options))
        assert tokens_in_order([steps]) == expected_stream(kept, tokenizer, 1)
        assert len(steps) == counted(str(path), tokenizer, 16, 2, **options).steps
    with pytest.raises(DataError, match="not the one"):
        token_batches(str(path), tokenizer, 16, 2, state=steps[0].position)


def test_bad_lines_found_by_workers_are_told_or_counted_as_without_them(tmp_path, tokenizer):
    lines = [json.dumps({"text": f"document {i}"}) for i in range(40)]
    lines[7:7] = ["", "{broken", json.dumps({"other": 1})]
    lines.append("[1]")
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    source = open_text(str(path), skip_bad_lines=True)
    with start_workers(tokenizer, 0) as workers:
        places = [after for _, after in EncodedWalk(source, workers, 0)]
    assert places == [after for _, after in source.iterate()]
    told = []
    for num_workers in (0, 1):
        with pytest.raises(DataError) as caught:
            list(token_batches(str(path), tokenizer, 16, 2, num_workers=num_workers))
        told.append(str(caught.value))
        kept = list(token_batches(str(path), tokenizer, 16, 2, skip_bad_lines=True, num_workers=num_workers))
        assert kept[-1].num_bad_lines == 3
        assert [step.position for step in kept] == [
            step.position for step in token_batches(str(path), tokenizer, 16, 2, skip_bad_lines=True)
        ]
    assert told[0] == told[1] and "line 9: is not valid JSON" in told[0]
    twice = [step.position for step in token_batches(str(path), tokenizer, 16, 2, num_epochs=2, skip_bad_lines=True)]
    assert twice[-1]["bad_lines"] == 6
    for done in range(0, len(twice), 3):
        rest = token_batches(str(path), tokenizer, 16, 2, num_epochs=2, skip_bad_lines=True, state=twice[done])
        assert [step.position for step in rest] == twice[done + 1 :]


def test_ranks_read_different_rows(tokenizer):
    source = ListSource([f"text number {i}" for i in range(200)])
    one, two = steps_of_all_ranks(source, tokenizer, 16, 2, 1, 2, 1)
    rows = [
        row.tobytes() for steps in (one, two) for s in steps[:-1] for row in s.micro_batches[0]["input_ids"].numpy()
    ]
    assert len(set(rows)) == len(rows)


def test_special_tokens_written_in_a_document_stay_text(tokenizer):
    (step,) = token_batches(ListSource(["a</s><s>b"]), tokenizer, 64, 1)
    ids = step.micro_batches[0]["input_ids"][0][: step.num_tokens].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids[1:-1])


def test_bad_data_is_raised_after_the_steps_before_it(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", ["word " * 40] * 600)
    with open(path, "a") as file:
        file.write("broken\n")
    loader = token_batches(str(path), tokenizer, 16, 2)
    with pytest.raises(DataError, match="line 601"):
        for _ in loader:
            pass
    with pytest.raises(DataError, match="line 601"):
        next(loader)
    steps = list(token_batches(str(path), tokenizer, 16, 2, skip_bad_lines=True, num_epochs=2))
    assert steps[-1].num_bad_lines == 2


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": ""}\n'])
def test_corpus_without_documents_is_an_error(tmp_path, tokenizer, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no document at all"):
        list(token_batches(str(path), tokenizer, 16, 2))
    with pytest.raises(DataError, match="no document at all"):
        counted(str(path), tokenizer, 16, 2)


@pytest.mark.parametrize("max_length", [1, 0, -4])
def test_max_length_below_two_is_refused(tokenizer, max_length):
    with pytest.raises(ConfigurationError, match=f"--max_length is {max_length}"):
        token_batches(ListSource(["x"]), tokenizer, max_length, 1)


def test_streamed_dataset_cannot_be_counted(tokenizer):
    source = ListSource(["x"])
    source.is_local = False
    with pytest.raises(ConfigurationError, match="--max_steps"):
        counted(source, tokenizer, 8, 1)


def test_tokenizer_without_bos_frames_with_eos_alone(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.bos_token = None
    (step,) = token_batches(ListSource(["ab"]), plain, 64, 1)
    ids = encode_batch(plain, ["ab"])[0].tolist()
    assert step.micro_batches[0]["input_ids"][0][: step.num_tokens].tolist() == [*ids, plain.eos_token_id]


def test_a_vocabulary_with_gaps_is_trained_on(tmp_path, tokenizer):
    """The highest id counts, not how many pieces there are: preparing, the model and the loader must agree."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = parts["model"]["vocab"]
    highest = max(vocabulary, key=vocabulary.get)
    vocabulary[highest] = 1000
    backend = Tokenizer.from_str(json.dumps(parts))
    gaps = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    assert vocabulary_size(gaps) == 1001 > len(gaps)
    check_vocabulary(gaps, 1001, exact=True)
    with pytest.raises(ConfigurationError, match="vocabulary is 1000"):
        check_vocabulary(gaps, 1000)
    documents = [[5, 1000, 2]] * 20
    steps = list(token_batches(Tokens(documents, vocab_size=1001), gaps, 8, 2))
    assert max(int(batch["input_ids"].max()) for step in steps for batch in step.micro_batches) == 1000
    with pytest.raises(DataError, match="token 1001 is none of the tokenizer's 1001"):
        list(token_batches(Tokens([[5, 1001, 2]] * 20), gaps, 8, 2))
