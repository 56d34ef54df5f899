"""Which tokens a run sees, in which order: equal to a plain definition for every kind of source, layout and resume."""

import contextlib
import gzip
import hashlib
import itertools
import json
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from corpora import Tokens
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from loading import counted, open_text, token_batches

from llama_dyt.data.formats import lines
from llama_dyt.data.loaders import packed as loader
from llama_dyt.data.loaders.tokenized_walk import start_workers
from llama_dyt.data.opening import Order, WeightedSource
from llama_dyt.data.order import packed_sequences as sequences
from llama_dyt.data.order.permutation import Permutation
from llama_dyt.data.tokenizing.encode import encode_batch

SEED, BUFFER = 11, 3


# --- the definition ---


@dataclass
class Corpus:
    """A source as the definition sees it: documents as lists of tokens."""

    kind: str  # "array" or "text"
    documents: list
    weight: Fraction
    epochs: int | None
    shuffle: str


def packed(corpus, name, epoch):
    """The tokens of one epoch."""
    documents, key = corpus.documents, (SEED, name, corpus.shuffle)
    if corpus.shuffle == "documents":
        size = len(documents) if corpus.kind == "array" else BUFFER
        shuffled = []
        for window, first in enumerate(range(0, len(documents), size)):
            some = documents[first : first + size]
            where = (epoch,) if corpus.kind == "array" else (epoch, window)
            shuffled += [some[i] for i in Permutation(len(some), *key, *where)(np.arange(len(some)))]
        documents = shuffled
    return list(itertools.chain.from_iterable(documents))


def sequences_of(corpus, name, length, enough):
    """All sequences of a source, or the first of one without end."""
    stream, epoch_ends = [], []
    while corpus.epochs is None or len(epoch_ends) < corpus.epochs:
        stream += packed(corpus, name, len(epoch_ends))
        epoch_ends.append(len(stream))
        if corpus.epochs is None and len(stream) > (enough + 2) * length + 2 * epoch_ends[0]:
            break
    cut = [stream[start : start + length] for start in range(0, len(stream), length)]
    if len(cut[-1]) == 1:
        cut.pop()
    if corpus.shuffle == "sequences":
        first = 0
        for epoch, end in enumerate(epoch_ends):
            whole = max(0, end // length - first)
            order = Permutation(whole, SEED, name, "sequences", epoch)(np.arange(whole))
            cut[first : first + whole] = [cut[first + i] for i in order]
            first = max(first, -(-end // length))
    return cut


def dealt_out(corpora, length, enough):
    """(source, tokens) of every sequence of the run, by Tijdeman's rule in fractions."""
    supplies = [sequences_of(corpus, name(i, corpora), length, enough) for i, corpus in enumerate(corpora)]
    places, counts, result = [0] * len(corpora), [0] * len(corpora), []
    running = [i for i in range(len(corpora)) if supplies[i]]
    while running and len(result) < enough:
        total = sum(corpora[i].weight for i in running)
        turn = sum(counts) + 1
        share = {i: corpora[i].weight / total for i in running}
        if len(running) == 1:
            chosen = running[0]
        else:
            bound = Fraction(1, 2 * len(running) - 2)
            behind = {i: share[i] * turn - counts[i] for i in running}
            chosen = min((i for i in running if behind[i] >= bound), key=lambda i: (1 - bound - behind[i]) / share[i])
        counts[chosen] += 1
        result.append((chosen, tuple(supplies[chosen][places[chosen]])))
        places[chosen] += 1
        if places[chosen] == len(supplies[chosen]):
            running.remove(chosen)
            counts = [0] * len(corpora)
    return result


def name(number, corpora):
    return "" if len(corpora) == 1 else f"s{number}"


# --- running ---


@dataclass
class Layout:
    batch_size: int
    accumulation: int
    dp_size: int
    num_workers: int


def rows_of(sources, tokenizer, length, layout, num_steps, state=None):
    """([rows of a step], positions) of all ranks together; rows are tuples of the tokens that are not padding."""
    loaders = [
        token_batches(
            sources,
            tokenizer,
            length,
            layout.batch_size,
            layout.accumulation,
            rank,
            layout.dp_size,
            state=state,
            order=Order(SEED, shuffle_buffer=BUFFER),
            num_workers=layout.num_workers,
            prefetch=1,
        )
        for rank in range(layout.dp_size)
    ]
    ranks = []
    for one in loaders:
        with one:
            ranks.append(list(itertools.islice(one, num_steps)))
    steps, positions = [], []
    for step in zip(*ranks, strict=True):
        rows = []
        for rank in step:
            assert rank.position == step[0].position
            for batch in rank.micro_batches:
                for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"].tolist(), strict=True):
                    real = [token for token, label in zip(ids, labels, strict=True) if label != -100]
                    assert real == [label for label in labels if label != -100]
                    rows.append(tuple(real))
        assert step[0].num_tokens == sum(map(len, rows))
        assert step[0].num_label_tokens == sum(len(row) - 1 for row in rows if row) > 0
        steps.append(rows)
        positions.append(step[-1].position)
    return steps, positions


def joined(steps):
    """Rows in order; those without tokens may only fill up the end."""
    rows = [row for step in steps for row in step]
    while rows and not rows[-1]:
        rows.pop()
    assert all(rows)
    return rows


@pytest.fixture(scope="module")
def shared_workers(tokenizer):
    """One pool for each number of workers: to start processes in every example would take minutes."""
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(start_workers(tokenizer, count)) for count in range(4)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader, "start_workers", lambda t, count, held_out: contextlib.nullcontext(pools[count]))
            patch.setattr(lines, "_BLOCK_BYTES", 50)  # small enough for these corpora to be of many blocks
            patch.setattr(sequences, "_BLOCK", 4)
            yield


texts = st.lists(st.none() | st.text("ab \nü", max_size=20), min_size=1, max_size=9).filter(any)  # None: a bad line
token_lists = st.lists(st.lists(st.integers(3, 300), max_size=12), min_size=1, max_size=12)
weights = st.fractions(Fraction(1, 20), 20, max_denominator=30)


@st.composite
def corpora(draw, tokenizer):
    """[(Corpus, what to build a source from)] of one to four sources."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["array", "text"]))
        epochs = draw(st.sampled_from([1, 2, 3, None]))
        if kind == "array":
            documents = raw = [[1, *ids, 2] for ids in draw(token_lists)]
            shuffle = draw(st.sampled_from(["none", "documents", "sequences"]))
        else:
            raw = draw(texts)
            documents = [[1, *encode_batch(tokenizer, [text])[0].tolist(), 2] for text in raw if text]
            shuffle = draw(st.sampled_from(["none", "documents"]))
        made.append((Corpus(kind, documents, draw(weights), epochs, shuffle), raw))
    return made


layouts = st.builds(Layout, st.integers(1, 3), st.integers(1, 2), st.integers(1, 8), st.integers(0, 3))


def build_sources(made, folder):
    sources = []
    for number, (corpus, raw) in enumerate(made):
        if corpus.kind == "array":
            data = Tokens(raw)
        else:
            lines = [b"{broken\n" if text is None else json.dumps({"text": text}).encode() + b"\n" for text in raw]
            half = len(lines) // 2
            content = hashlib.sha256(b"".join(lines)).hexdigest()[:12]
            place = folder / f"{number}-{content}"
            place.mkdir(exist_ok=True)
            (place / "a.jsonl").write_bytes(b"\n".join(lines[:half]) + b"\n")
            packed_lines = b"".join(gzip.compress(line, mtime=0) for line in lines[half:])
            (place / "b.jsonl.gz").write_bytes(packed_lines)
            data = open_text(str(place), skip_bad_lines=True)
        source_name = "" if len(made) == 1 else f"s{number}"
        sources.append(WeightedSource(source_name, data, corpus.weight, corpus.epochs, corpus.shuffle))
    return sources


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), layouts, layouts, st.integers(2, 9))
def test_the_order_is_the_definitions_whoever_reads_it_and_wherever_it_is_resumed(
    tokenizer, shared_workers, tmp_path, data, first, second, length
):
    made = data.draw(corpora(tokenizer))
    sources = build_sources(made, tmp_path)
    endless = any(corpus.epochs is None for corpus, _ in made)
    num_steps = data.draw(st.integers(1, 6)) if endless else 10_000
    enough = 6 * 48 * 2 if endless else 10_000
    expected = dealt_out([corpus for corpus, _ in made], length, enough)
    rows = [row for _, row in expected]

    steps, positions = rows_of(sources, tokenizer, length, first, num_steps)
    seen = joined(steps)
    assert seen == (rows[: len(seen)] if endless else rows)
    if not endless:
        assert (
            len(steps) == counted(sources, tokenizer, length, first.batch_size, first.accumulation, first.dp_size).steps
        )
    assert len(seen) == (len(steps) * first.batch_size * first.accumulation * first.dp_size if endless else len(rows))
    for step, position in enumerate(positions):
        dealt = expected[: position["sequences"]]
        assert position["sequences"] == len(joined(steps[: step + 1]))
        for number, source in enumerate(sources):
            own = [row for source, row in dealt if source == number]
            state = position["sources"][source.name]
            assert (state["sequences"], state["tokens"]) == (len(own), sum(map(len, own)))

    if not steps:
        return
    stop = data.draw(st.integers(1, len(steps)))
    state = json.loads(json.dumps(positions[stop - 1]))
    again, more_positions = rows_of(sources, tokenizer, length, second, num_steps, state)
    seen = joined(steps[:stop]) + joined(again)
    assert seen == (rows[: len(seen)] if endless else rows)
    if not endless:
        assert len(seen) == len(rows)
        bad = (more_positions or positions)[-1]["bad_lines"]
        assert bad == positions[-1]["bad_lines"]
        # A single token that is left over holds the position at its document, before the bad lines behind it.
        if all(corpus.epochs * len(packed(corpus, "", 0)) % length != 1 for corpus, _ in made):
            assert bad == sum(corpus.epochs * raw.count(None) for corpus, raw in made)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data(), st.integers(1, 5), st.integers(2, 9), st.integers(2, 9))
def test_epochs_can_be_added_and_unshuffled_sequences_made_longer(
    tokenizer, shared_workers, tmp_path, data, batch_size, length, other_length
):
    """A finished run goes on behind its last token, and every token still comes as often as there are epochs."""
    made = data.draw(corpora(tokenizer))[:1]
    corpus = made[0][0]
    corpus.epochs = 1
    layout = Layout(batch_size, 1, 1, 0)
    (source,) = build_sources(made, tmp_path)
    _, positions = rows_of([source], tokenizer, length, layout, 10_000)
    steps, _ = rows_of([source], tokenizer, length, layout, 10_000)
    more = WeightedSource("", source.data, source.weight, 3, source.shuffle)
    again, _ = rows_of([more], tokenizer, length, layout, 10_000, positions[-1])
    before, after = [[token for row in joined(part) for token in row] for part in (steps, again)]
    once = packed(corpus, "", 0) if corpus.shuffle != "sequences" else sorted(packed(corpus, "", 0))
    left = len(once) - len(before)
    assert left == (len(once) % length == 1)
    if corpus.shuffle == "sequences":
        missing = len(once) * 3 - len(before) - len(after)
        assert 0 <= missing <= 1
        counts = np.bincount(before + after, minlength=301) - 3 * np.bincount(once, minlength=301)
        assert -1 <= counts.sum() <= 0 and counts.max() <= 0
        return
    everything = [token for epoch in range(3) for token in packed(corpus, "", epoch)]
    seen = before + after
    assert seen == everything[: len(seen)] and len(everything) - len(seen) <= 1
    middle = positions[len(positions) // 2]
    longer, _ = rows_of([more], tokenizer, other_length, layout, 10_000, middle)
    seen = before[: middle["tokens"]] + [token for row in joined(longer) for token in row]
    assert seen == everything[: len(seen)] and len(everything) - len(seen) <= 1


def test_ranks_are_disjoint_and_read_only_their_own_rows_of_prepared_tokens(tokenizer):
    tokens = Tokens([[i % 300] * 16 for i in range(64)])
    read = []
    plain = tokens.tokens
    tokens.tokens = lambda start, stop: read.append((start, stop)) or plain(start, stop)
    asked = []
    for rank in range(4):
        list(token_batches(tokens, tokenizer, 16, 2, 2, rank, 4, order=Order(1, "sequences")))
        asked.append({start for start, _ in read})
        assert len(asked[-1]) == len(read) == 16
        read.clear()
    assert set.union(*asked) == {16 * i for i in range(64)}
    assert sum(map(len, asked)) == 64
