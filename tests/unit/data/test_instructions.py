"""Fine-tuning batches: loss on the completion and EOS alone, nothing lost, exact resume."""

import copy
import json
import tempfile
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loading import PAIR, instruction_batches, open_text

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.sources import TextSource
from llama_dyt.data.loaders.example_store import Example, ExampleStore
from llama_dyt.data.loaders.examples import Examples
from llama_dyt.data.loaders.instructions import _Maker
from llama_dyt.data.loaders.step import BatchShape
from llama_dyt.data.opening import open_data
from llama_dyt.data.tokenizing.encode import encode_batch


class Pairs(TextSource):
    fields = PAIR.fields

    def __init__(self, pairs):
        self.pairs = pairs
        self.fingerprint = f"pairs:{hash(tuple(pairs))}"

    def iterate(self, position=None):
        for i, pair in enumerate(self.pairs):
            yield pair, {"row": i + 1, "bad_lines": 0}


def loader_of_each_rank(pairs, tokenizer, max_length, batch_size, accumulation, dp_size, num_epochs=1, **arguments):
    return [
        instruction_batches(
            Pairs(pairs), tokenizer, max_length, batch_size, accumulation, rank, dp_size, num_epochs, **arguments
        )
        for rank in range(dp_size)
    ]


def rows_in_order(steps):
    """(ids without padding, labels beside them) of every example, in the order of the global batches."""
    rows = []
    for step in zip(*steps, strict=True):
        for rank in step:
            for batch in rank.micro_batches:
                for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
                    carried = [i for i, label in enumerate(labels) if label != -100]
                    if carried:
                        size = carried[-1] + 1
                        assert set(labels[size:]) <= {-100}
                        rows.append((tuple(ids[:size]), tuple(labels[:size])))
    return rows


def expected_row(tokenizer, prompt, completion, max_length):
    head = [tokenizer.bos_token_id, *encode_batch(tokenizer, [prompt])[0].tolist()]
    tail = [*encode_batch(tokenizer, [completion])[0].tolist(), tokenizer.eos_token_id]
    return tuple((head + tail)[:max_length]), tuple(([-100] * len(head) + tail)[:max_length])


words = st.text("abc \n", max_size=12)
pairs_strategy = st.lists(st.tuples(words, words), min_size=1, max_size=14)


@settings(max_examples=60)
@given(pairs_strategy, st.integers(1, 3), st.integers(1, 2), st.integers(1, 4), st.integers(1, 3), st.integers(2, 24))
def test_each_epoch_has_each_example_once_with_loss_on_completion_and_eos_only(
    tokenizer, pairs, batch_size, accumulation, dp_size, num_epochs, max_length
):
    rows = [expected_row(tokenizer, *pair, max_length) for pair in pairs if pair[1]]
    rows = [row for row in rows if set(row[1][1:]) != {-100}]
    if not rows:
        with pytest.raises(DataError, match="no example to learn from"):
            loader_of_each_rank(pairs, tokenizer, max_length, batch_size, accumulation, dp_size)
        return
    loaders = loader_of_each_rank(pairs, tokenizer, max_length, batch_size, accumulation, dp_size, num_epochs)
    steps = [list(loader) for loader in loaders]
    assert len(steps[0]) == loaders[0].num_steps
    assert loaders[0].examples.num_dropped == len(pairs) - len(rows)
    seen = rows_in_order(steps)
    for epoch in range(num_epochs):
        part = seen[epoch * len(rows) : (epoch + 1) * len(rows)]
        assert sorted(part) == sorted(rows)
    for step in zip(*steps, strict=True):
        batches = [batch for rank in step for batch in rank.micro_batches]
        targets = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in batches)
        for batch in batches:
            assert batch["input_ids"].shape == batch["labels"].shape
            assert batch["input_ids"].shape[0] == batch_size
            length = batch["input_ids"].shape[1]
            assert length <= max_length
            assert length % 8 == 0 or length == max_length
        for rank in step:
            assert rank.num_label_tokens == targets > 0
            assert rank.position == step[0].position


@settings(max_examples=40)
@given(st.integers(1, 13), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.data())
def test_resume_goes_on_with_the_next_example_for_any_number_of_ranks(
    tokenizer, count, batch_size, first, second, num_epochs, data
):
    pairs = [(f"question {i}", f"answer {i}") for i in range(count)]
    steps = [list(loader) for loader in loader_of_each_rank(pairs, tokenizer, 64, batch_size, 1, first, num_epochs)]
    stop = data.draw(st.integers(1, len(steps[0])))
    state = json.loads(json.dumps(steps[0][stop - 1].position))
    resumed = loader_of_each_rank(pairs, tokenizer, 64, batch_size, 1, second, num_epochs, state=state)
    rest = rows_in_order([list(loader) for loader in resumed])
    assert rows_in_order([rank[:stop] for rank in steps]) + rest == rows_in_order(steps)


def test_order_depends_on_seed_and_epoch(tokenizer):
    pairs = [(f"question {i}", f"answer {i}") for i in range(20)]

    def order(seed):
        return rows_in_order([list(instruction_batches(Pairs(pairs), tokenizer, 64, 5, num_epochs=2, seed=seed))])

    assert order(1) == order(1) != order(2)
    assert order(1)[:20] != order(1)[20:]


def test_truncated_example_learns_no_eos_and_is_counted(tokenizer):
    loader = instruction_batches(Pairs([("p", "word " * 50), ("p" * 99, "lost")]), tokenizer, 16, 1)
    assert (loader.examples.num_truncated, loader.examples.num_dropped) == (1, 1)
    (step,) = loader
    assert tokenizer.eos_token_id not in step.micro_batches[0]["labels"]
    assert step.num_tokens == 16


def test_first_token_of_a_sequence_is_no_target_even_where_it_is_a_completion(tokenizer):
    plain = copy.deepcopy(tokenizer)
    plain.bos_token = None
    (step,) = instruction_batches(Pairs([("", "abc"), ("q", "abc")]), plain, 32, 2)
    labels = step.micro_batches[0]["labels"]
    assert int((labels[:, 1:] != -100).sum()) == step.num_label_tokens


def test_padding_to_max_length_gives_one_shape(tokenizer):
    pairs = [("q", "a" * n) for n in range(1, 8)]
    for step in instruction_batches(Pairs(pairs), tokenizer, 20, 2, pad_to_max_length=True):
        assert [tuple(batch["input_ids"].shape) for batch in step.micro_batches] == [(2, 20)]


def test_files_are_read_and_bad_lines_named_or_counted(tmp_path, tokenizer):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "completion": "a"}\n{"prompt": "q"}\n')
    with pytest.raises(DataError, match="line 2: has no field 'completion'.*--skip_bad_lines"):
        instruction_batches(open_data(path, PAIR), tokenizer, 16, 1)
    loader = instruction_batches(open_text(path, True, PAIR.fields), tokenizer, 16, 1)
    assert [step.num_bad_lines for step in loader] == [1]


def test_changed_seed_or_dataset_is_refused_on_resume(tokenizer):
    pairs = [("q", "a")] * 5
    state = next(instruction_batches(Pairs(pairs), tokenizer, 16, 1)).position
    with pytest.raises(DataError, match="another seed"):
        instruction_batches(Pairs(pairs), tokenizer, 16, 1, state=state, seed=1)
    with pytest.raises(DataError, match="another dataset"):
        instruction_batches(Pairs(pairs[1:]), tokenizer, 16, 1, state=state)


def test_a_position_of_the_former_order_goes_on_in_it(tokenizer):
    pairs = [(f"question {i}", f"answer {i}") for i in range(23)]
    old = {**next(instruction_batches(Pairs(pairs), tokenizer, 64, 5)).position, "examples": 5, "epoch": 0}
    del old["order"]  # positions had none when numpy shuffled
    resumed = instruction_batches(Pairs(pairs), tokenizer, 64, 5, num_epochs=2, state=old)
    steps = list(resumed)
    orders = [np.random.RandomState([42, epoch]).permutation(23) for epoch in range(2)]
    expected = [expected_row(tokenizer, *pairs[number], 64) for number in np.concatenate(orders)[5:]]
    assert rows_in_order([steps]) == expected
    again = instruction_batches(Pairs(pairs), tokenizer, 64, 5, num_epochs=2, state=steps[2].position)
    assert rows_in_order([list(again)]) == expected[15:]
    new = rows_in_order([list(instruction_batches(Pairs(pairs), tokenizer, 64, 5))])
    assert new != [expected_row(tokenizer, *pairs[number], 64) for number in orders[0]]


class Million:
    """As many examples as make a permutation of them costly, without their tokens."""

    def __init__(self):
        self.kept = ExampleStore()
        for number in range(64):
            self.kept.append(Example.behind(np.full(10, number), 3))
        self.kept.finish()

    def __len__(self):
        return 1_000_000

    def __getitem__(self, number):
        return self.kept[number % 64]

    def sizes(self, numbers):
        return self.kept.sizes(numbers % 64)


def test_a_step_of_a_million_examples_does_not_order_all_of_them():
    examples = Examples(Million(), 0, 0, 0)
    maker = _Maker(examples, BatchShape(4), 16, None, 0, {"seed": 1})
    start = time.perf_counter()
    steps = maker.steps(1, {"order": "permutation", "examples": 0, "tokens": 0})
    for _ in range(200):
        next(steps)
    assert time.perf_counter() - start < 20  # ordering all of them takes half a second a step


def test_examples_do_not_stay_in_memory_and_leave_no_file_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    tracemalloc.start()
    store = ExampleStore()
    for number in range(2000):
        store.append(Example.behind(np.full(1000, number, np.int32), 3))
    store.finish()
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 2000 * 1000 * 4 / 10
    assert list(tmp_path.iterdir()) == []
    assert [store[number].tokens.tolist() for number in (0, 1999)] == [[0] * 1000, [1999] * 1000]
    assert store.sizes(np.array([3, 5])) == (2000, 1994)


def test_no_room_for_the_examples_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(DataError, match="absent: the tokenized examples cannot be kept there .*set TMPDIR"):
        ExampleStore()
