"""The order of tokens is a function of the corpus: checked against the definition for random corpora and layouts."""

import copy
import json
import subprocess
import sys
import threading
from fractions import Fraction

import numpy as np
import pytest
from corpora import Tokens, write_jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_dyt.data.encoding import EncodedWalk, start_workers
from llama_dyt.data.loader import Order, TokenBatches, count_steps
from llama_dyt.data.opening import Feed
from llama_dyt.data.sources import open_source
from llama_dyt.data.split import is_held_out
from llama_dyt.data.tokenizer import encode_batch, tokenizer_fingerprint
from llama_dyt.errors import ConfigurationError, DataError


class ListSource:
    """Documents in memory, with the interface of a source; None is a bad line."""

    is_local = True

    def __init__(self, texts):
        self.texts = texts
        self.fingerprint = f"list:{hash(tuple(texts))}"
        self.bad_lines = 0

    def iterate(self, position=None):
        start, self.bad_lines = (position["row"], position["bad_lines"]) if position else (0, 0)
        for row in range(start, len(self.texts)):
            if self.texts[row] is None:
                self.bad_lines += 1
            else:
                yield (self.texts[row],), {"row": row + 1, "bad_lines": self.bad_lines}


def expected_stream(texts, tokenizer, num_epochs):
    """The definition: [BOS] + ids + [EOS] of every document that has text, epoch after epoch."""
    stream = []
    for text in texts:
        if text:
            ids = encode_batch(tokenizer, [text])[0].tolist()
            stream += [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id]
    return stream * num_epochs


def steps_of_all_ranks(source, tokenizer, max_length, batch_size, accumulation, dp_size, num_epochs, state=None):
    loaders = [
        TokenBatches(source, tokenizer, max_length, batch_size, accumulation, rank, dp_size, num_epochs, state)
        for rank in range(dp_size)
    ]
    # One rank after the other: each has a walk of its own, but this source's counter is one.
    return [list(loader) for loader in loaders]


def tokens_in_order(steps):
    """(input ids that are not filling, in the order of global sequences) of the steps of all ranks."""
    tokens = []
    for step in zip(*steps, strict=True):
        for rank in step:
            for batch in rank.micro_batches:
                real = batch["labels"] != -100
                assert (batch["labels"][real] == batch["input_ids"][real]).all()
                tokens += batch["input_ids"][real].tolist()
    return tokens


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
    count = count_steps(source, tokenizer, max_length, batch_size, accumulation, dp_size, num_epochs)
    assert (count.steps, count.tokens) == (len(steps[0]), len(stream))


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


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
def test_resume_from_files_at_every_step(tmp_path, tokenizer, suffix):
    for name in "ab":
        write_jsonl(tmp_path / f"{name}{suffix}", [f"document {name} {i} " + "word " * (i * 7 % 50) for i in range(30)])
    arguments = (str(tmp_path), tokenizer, 16, 2, 2, 0, 1, 2)
    steps = list(TokenBatches(*arguments))
    assert len(steps) > 20
    for done in range(0, len(steps), 5):
        rest = list(TokenBatches(*arguments, state=json.loads(json.dumps(steps[done].position))))
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
    source = open_source(str(path))
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
        rest = list(TokenBatches(str(path), tokenizer, 8, 2, num_epochs=2, state=json.loads(json.dumps(state))))
        seen = tokens_in_order([rest])
        assert seen == stream[done : done + len(seen)] and len(stream) - done - len(seen) <= 1
        assert rest[0].position["sequences"] == 42


def test_another_order_or_mixture_is_refused_on_resume(tokenizer):
    tokens = Tokens([[5] * 40, [6] * 40])
    position = next(TokenBatches(tokens, tokenizer, 8, 1, order=Order(3, "sequences"))).position
    for order in (Order(4, "sequences"), Order(3, "documents"), Order(3)):
        with pytest.raises(DataError, match="another order.*--seed"):
            TokenBatches(tokens, tokenizer, 8, 1, order=order, state=position)
    with pytest.raises(DataError, match="give --max_length 8"):
        list(TokenBatches(tokens, tokenizer, 16, 1, order=Order(3, "sequences"), state=position))
    two = [Feed("a", tokens), Feed("b", tokens)]
    with pytest.raises(DataError, match="sources or weights are not those"):
        TokenBatches(two, tokenizer, 8, 1, state=position)
    position = next(TokenBatches(two, tokenizer, 8, 1)).position
    heavier = [Feed("a", tokens, Fraction(2)), Feed("b", tokens)]
    with pytest.raises(DataError, match="sources or weights are not those.*a, b"):
        TokenBatches(heavier, tokenizer, 8, 1, state=position)


def test_prepared_tokens_of_another_tokenizer_are_refused(tokenizer):
    for tokens, message in (
        (Tokens([[5] * 9], tokenizer="other"), "another tokenizer"),
        (Tokens([[5] * 9], vocab_size=331), "vocabulary of 331, the tokenizer's has 330"),
        (Tokens([]), "no token at all"),
    ):
        with pytest.raises((ConfigurationError, DataError), match=message):
            list(TokenBatches(tokens, tokenizer, 8, 1))
    with pytest.raises(DataError, match="token 330 is none of the tokenizer's 330"):
        list(TokenBatches(Tokens([[330] * 9]), tokenizer, 8, 1))
    fitting = Tokens([[329] * 9], tokenizer=tokenizer_fingerprint(tokenizer), vocab_size=330)
    assert len(list(TokenBatches(fitting, tokenizer, 8, 1))) == 1


class Documents:
    """Tokenized documents that can only be walked."""

    is_local, bad_lines = True, 0

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
    steps = list(TokenBatches(stream, tokenizer, 8, 2, num_epochs=2, order=order))
    framed = [[1, *ids.tolist(), 2] for ids, _ in stream.documents()]
    seen = tokens_in_order([steps])
    expected = [token for document in framed for token in document] * 2
    assert sorted(seen) == sorted(expected)
    assert (seen == expected) == (shuffle == "none")
    for done, step in enumerate(steps, start=1):
        rest = list(TokenBatches(stream, tokenizer, 8, 2, num_epochs=2, order=order, state=step.position))
        assert tokens_in_order([rest]) == tokens_in_order([steps[done:]])
    assert count_steps(stream, tokenizer, 8, 2, num_epochs=2).steps == len(steps)


def test_text_cannot_be_shuffled_by_sequences(tokenizer):
    with pytest.raises(ConfigurationError, match="--shuffle documents, or prepare it"):
        TokenBatches(ListSource(["x"]), tokenizer, 8, 1, order=Order(1, "sequences"))


def test_an_endless_mixture_cannot_be_counted_and_prepared_tokens_are_counted_at_once(tokenizer):
    class Huge(Tokens):
        def tokens(self, start, stop):
            raise AssertionError("counting reads no token")

    huge = Huge([[5]])
    huge.num_tokens, huge.num_documents = 10**12, 10**9
    count = count_steps([Feed("a", huge, num_epochs=3), Feed("b", huge)], tokenizer, 4096, 8, 4, 64)
    assert (count.tokens, count.documents, count.sequences) == (4 * 10**12, 4 * 10**9, 732421875 + 244140625)
    assert count.steps == -(-(732421875 + 244140625) // 2048)
    with pytest.raises(ConfigurationError, match="source b is repeated without end; give --max_steps"):
        count_steps([Feed("a", huge), Feed("b", huge, num_epochs=None)], tokenizer, 4096, 8)


def test_a_source_that_ends_says_so_and_each_is_counted(tokenizer):
    feeds = [Feed("a", Tokens([[5] * 16])), Feed("b", Tokens([[6] * 64]), num_epochs=None)]
    loader = TokenBatches(feeds, tokenizer, 8, 2)
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
        steps = list(TokenBatches(str(path), tokenizer, 16, 2, **options))
        assert tokens_in_order([steps]) == expected_stream(kept, tokenizer, 1)
        assert len(steps) == count_steps(str(path), tokenizer, 16, 2, **options).steps
    with pytest.raises(DataError, match="not the one"):
        TokenBatches(str(path), tokenizer, 16, 2, state=steps[0].position)


def test_bad_lines_found_by_workers_are_told_or_counted_as_without_them(tmp_path, tokenizer):
    lines = [json.dumps({"text": f"document {i}"}) for i in range(40)]
    lines[7:7] = ["", "{broken", json.dumps({"other": 1})]
    lines.append("[1]")
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    source = open_source(str(path), skip_bad_lines=True)
    with start_workers(tokenizer, 0) as workers:
        places = [after for _, after in EncodedWalk(source, workers, 0)]
    assert places == [after for _, after in source.iterate()]
    told = []
    for num_workers in (0, 1):
        with pytest.raises(DataError) as caught:
            list(TokenBatches(str(path), tokenizer, 16, 2, num_workers=num_workers))
        told.append(str(caught.value))
        kept = list(TokenBatches(str(path), tokenizer, 16, 2, skip_bad_lines=True, num_workers=num_workers))
        assert kept[-1].num_bad_lines == 3
        assert [step.position for step in kept] == [
            step.position for step in TokenBatches(str(path), tokenizer, 16, 2, skip_bad_lines=True)
        ]
    assert told[0] == told[1] and "line 9: is not valid JSON" in told[0]
    twice = [step.position for step in TokenBatches(str(path), tokenizer, 16, 2, num_epochs=2, skip_bad_lines=True)]
    assert twice[-1]["bad_lines"] == 6
    for done in range(0, len(twice), 3):
        rest = TokenBatches(str(path), tokenizer, 16, 2, num_epochs=2, skip_bad_lines=True, state=twice[done])
        assert [step.position for step in rest] == twice[done + 1 :]


def test_more_epochs_can_be_added_to_a_finished_run(tokenizer):
    source = ListSource(["one two three", "four"])
    first = list(TokenBatches(source, tokenizer, 8, 1))
    assert list(TokenBatches(source, tokenizer, 8, 1, state=first[-1].position)) == []
    more = list(TokenBatches(source, tokenizer, 8, 1, num_epochs=2, state=first[-1].position))
    assert tokens_in_order([first + more]) == expected_stream(source.texts, tokenizer, 2)


def test_document_longer_than_a_step_goes_on_and_its_position_stays_small(tokenizer):
    source = ListSource(["short", "word " * 5000, "end"])
    steps = list(TokenBatches(source, tokenizer, 16, 1))
    assert tokens_in_order([steps]) == expected_stream(source.texts, tokenizer, 1)
    assert max(len(json.dumps(step.position)) for step in steps) < 400
    middle = steps[len(steps) // 2].position
    rest = list(TokenBatches(source, tokenizer, 16, 1, state=middle))
    assert tokens_in_order([rest]) == tokens_in_order([steps[len(steps) // 2 + 1 :]])


def test_ranks_read_different_rows(tokenizer):
    source = ListSource([f"text number {i}" for i in range(200)])
    one, two = steps_of_all_ranks(source, tokenizer, 16, 2, 1, 2, 1)
    rows = [
        row.tobytes() for steps in (one, two) for s in steps[:-1] for row in s.micro_batches[0]["input_ids"].numpy()
    ]
    assert len(set(rows)) == len(rows)


def test_special_tokens_written_in_a_document_stay_text(tokenizer):
    (step,) = TokenBatches(ListSource(["a</s><s>b"]), tokenizer, 64, 1)
    ids = step.micro_batches[0]["input_ids"][0][: step.num_tokens].tolist()
    assert (ids[0], ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(ids[1:-1])


def test_bad_data_is_raised_after_the_steps_before_it(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", ["word " * 40] * 600)
    with open(path, "a") as file:
        file.write("broken\n")
    loader = TokenBatches(str(path), tokenizer, 16, 2)
    with pytest.raises(DataError, match="line 601"):
        for _ in loader:
            pass
    with pytest.raises(DataError, match="line 601"):
        next(loader)
    steps = list(TokenBatches(str(path), tokenizer, 16, 2, skip_bad_lines=True, num_epochs=2))
    assert steps[-1].num_bad_lines == 2


@pytest.mark.parametrize("content", [b"", b"\n\n", b'{"text": ""}\n'])
def test_corpus_without_documents_is_an_error(tmp_path, tokenizer, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no document at all"):
        list(TokenBatches(str(path), tokenizer, 16, 2))
    with pytest.raises(DataError, match="no document at all"):
        count_steps(str(path), tokenizer, 16, 2)


def test_changed_dataset_or_tokenizer_is_refused_on_resume(tokenizer):
    source = ListSource(["one two three four five"] * 9)
    state = next(TokenBatches(source, tokenizer, 8, 1)).position
    with pytest.raises(DataError, match="dataset is not the one"):
        TokenBatches(ListSource(["other"]), tokenizer, 8, 1, state=state)
    with pytest.raises(DataError, match="tokenizer is not the one"):
        TokenBatches(source, tokenizer, 8, 1, state={**state, "tokenizer": "other"})


@pytest.mark.parametrize("max_length", [1, 0, -4])
def test_max_length_below_two_is_refused(tokenizer, max_length):
    with pytest.raises(ConfigurationError, match=f"--max_length is {max_length}"):
        TokenBatches(ListSource(["x"]), tokenizer, max_length, 1)


def test_streamed_dataset_cannot_be_counted(tokenizer):
    source = ListSource(["x"])
    source.is_local = False
    with pytest.raises(ConfigurationError, match="--max_steps"):
        count_steps(source, tokenizer, 8, 1)


def test_tokenizer_without_bos_frames_with_eos_alone(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.bos_token = None
    (step,) = TokenBatches(ListSource(["ab"]), plain, 64, 1)
    ids = encode_batch(plain, ["ab"])[0].tolist()
    assert step.micro_batches[0]["input_ids"][0][: step.num_tokens].tolist() == [*ids, plain.eos_token_id]


def test_batches_own_their_memory(tokenizer):
    """A rank keeps its own rows, not a view of the whole global batch."""
    loader = TokenBatches(ListSource(["word " * 200] * 5), tokenizer, 16, 2, 1, 1, 4)
    for batch in next(loader).micro_batches:
        assert batch["input_ids"].untyped_storage().nbytes() == batch["input_ids"].numel() * np.dtype(np.int64).itemsize
    loader.close()


def data_threads():
    return [thread for thread in threading.enumerate() if thread.name == "llama_dyt-data"]


def test_closing_ends_the_thread(tokenizer):
    loader = TokenBatches(ListSource(["word " * 50] * 500), tokenizer, 8, 1)
    next(loader)
    assert loader._thread.is_alive()
    loader.close()
    assert not loader._thread.is_alive()
    assert list(loader) == []


def test_dropping_the_loader_ends_the_thread(tokenizer):
    loader = TokenBatches(ListSource(["word " * 50] * 500), tokenizer, 8, 1)
    thread = loader._thread
    next(loader)
    del loader
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert thread not in data_threads()


def test_program_that_ends_while_data_is_prepared_ends_cleanly(tmp_path, tokenizer):
    path = write_jsonl(tmp_path / "a.jsonl", ["some more words " * 20_000] * 30)
    program = (
        "import sys\n"
        "from llama_dyt.data.loader import TokenBatches\n"
        "from llama_dyt.data.tokenizer import load_tokenizer\n"
        "loader = TokenBatches(sys.argv[1], load_tokenizer(sys.argv[2]), 4096, 200)\n"
        "next(loader)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, path, tokenizer.name_or_path], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_reading_ahead_is_bounded(tokenizer):
    source = ListSource(["word " * 100] * 100_000)
    read = []
    walk = source.iterate
    source.iterate = lambda position=None: (read.append(1) or record for record in walk(position))
    loader = TokenBatches(source, tokenizer, 64, 1, prefetch=2)
    next(loader)
    threading.Event().wait(0.5)
    assert len(read) < 2000
    loader.close()
