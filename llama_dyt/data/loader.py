"""Pretraining batches: sequences of one source or a mixture, dealt out to data-parallel ranks, with positions.

Its own file because here the parts meet. Which tokens global sequence number k holds is a function of data, seed and
mixture alone; every rank computes the same order, counts and end without communication, and a position serves any
number of ranks and workers and any micro batch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from llama_dyt.data.encoding import EncodedWalk, FramedWalk, start_workers
from llama_dyt.data.mixture import Schedule
from llama_dyt.data.opening import Data, Feed, open_feeds
from llama_dyt.data.positions import Counts, position_of, starting_point
from llama_dyt.data.sequences import ArraySupply, DocumentSupply, Sequence, Supply, num_sequences
from llama_dyt.data.step import IGNORED, BatchShape, Prefetcher, Step, make_micro_batch
from llama_dyt.data.stream_supply import NO_DOCUMENT, StreamSupply
from llama_dyt.errors import ConfigurationError, DataError

SHUFFLE_BUFFER = 2000


@dataclass(frozen=True)
class Order:
    """What the order of a run depends on besides its data and mixture.

    Attributes:
        seed: of all shuffling.
        shuffle: "none", "documents" or "sequences", where a mixture's source does not say.
        shuffle_buffer: documents of a stream that are shuffled together.
    """

    seed: int = 0
    shuffle: str = "none"
    shuffle_buffer: int = SHUFFLE_BUFFER


class TokenBatches(Prefetcher):
    """Iterates the steps of a pretraining run for one data-parallel rank.

    Args:
        dataset: what `-d` names, a mixture's YAML among it, an open Source or TokenArray, or the feeds of a mixture.
        tokenizer: a HuggingFace tokenizer with an EOS token.
        max_length: tokens in a sequence, at least 2.
        batch_size, accumulation: sequences in a micro batch, micro batches in a step, of one rank.
        dp_rank, dp_size: this rank among the data-parallel ranks.
        num_epochs: walks over a dataset that is no mixture.
        state: `Step.position` of the step after which to go on, possibly made with other sizes; None for the start.
        order: seed and kind of shuffling; must be that of `state`.
        num_workers: processes that tokenize text; 0 does it in the loader's thread.
        skip_bad_lines: count unusable records instead of raising.
        held_out_fraction: share of the text's documents that is left to validation (see `split`).
        prefetch: steps prepared ahead.
    Raises:
        ConfigurationError: max_length below 2, a tokenizer without EOS, or data that does not fit it.
        DataError: the dataset cannot be opened, or `state` belongs to other data, another order or tokenizer. While
            iterating: whatever is wrong in the data, or no document in the whole corpus.

    The last global batch is filled up with rows whose labels are all -100.
    """

    def __init__(
        self,
        dataset: str | Data | list[Feed],
        tokenizer,
        max_length: int,
        batch_size: int,
        accumulation: int = 1,
        dp_rank: int = 0,
        dp_size: int = 1,
        num_epochs: int = 1,
        state: dict | None = None,
        *,
        order: Order | None = None,
        num_workers: int = 0,
        skip_bad_lines: bool = False,
        held_out_fraction: float | None = None,
        sample_folder: str | os.PathLike = "data/sample",
        prefetch: int = 2,
    ):
        check_lengths(tokenizer, max_length)
        order = order or Order()
        feeds = open_feeds(
            dataset,
            tokenizer,
            num_epochs,
            order.shuffle,
            held_out_fraction=held_out_fraction,
            skip_bad_lines=skip_bad_lines,
            sample_folder=sample_folder,
        )
        state = starting_point(state, feeds, tokenizer, order.seed, order.shuffle_buffer)
        work = _Work(feeds, tokenizer, max_length, order, num_workers, held_out_fraction, state)
        shape = BatchShape(batch_size, accumulation, dp_rank, dp_size)
        super().__init__(lambda: _steps(work, shape), prefetch)


@dataclass(frozen=True)
class _Work:
    """Everything but the sizes that `_steps` needs."""

    feeds: list[Feed]
    tokenizer: object
    max_length: int
    order: Order
    num_workers: int
    held_out_fraction: float | None
    state: dict

    def workers(self):
        if not any(feed.is_text for feed in self.feeds):
            return nullcontext()
        return start_workers(self.tokenizer, self.num_workers, self.held_out_fraction)

    def supply(self, feed: Feed, workers) -> Supply:
        """A feed's sequences, from the state on."""
        state, length = self.state["sources"].get(feed.name), self.max_length
        key = (self.order.seed, feed.name, feed.shuffle)
        if feed.is_array:
            if feed.shuffle == "documents":
                return DocumentSupply(feed.data, length, feed.num_epochs, key, state)
            return ArraySupply(feed.data, length, feed.num_epochs, key if feed.shuffle == "sequences" else None, state)

        def walk(position: dict | None) -> EncodedWalk | FramedWalk:
            return _walk(feed, self.tokenizer, workers, self.num_workers, position)

        shuffle = (self.order.shuffle_buffer, key) if feed.shuffle == "documents" else None
        return StreamSupply(walk, length, feed.num_epochs, shuffle, state)


def check_lengths(tokenizer, max_length: int) -> None:
    """Raises ConfigurationError for settings with which no sequence can be made."""
    if max_length < 2:
        raise ConfigurationError(
            f"--max_length is {max_length}; a sequence needs at least 2 tokens, one to predict the next"
        )
    if tokenizer.eos_token_id is None:
        raise ConfigurationError(
            "the tokenizer has no end-of-sequence token; set eos_token in its tokenizer_config.json"
        )


def _walk(feed: Feed, tokenizer, workers, num_workers: int, position: dict | None = None) -> EncodedWalk | FramedWalk:
    if feed.is_text:
        return EncodedWalk(feed.data, workers, num_workers, position)
    return FramedWalk(feed.data, tokenizer.bos_token_id, tokenizer.eos_token_id, position)


@dataclass
class _Rows:
    """What one step deals out: sizes of all its sequences, and those that this rank reads."""

    num_tokens: int = 0
    num_label_tokens: int = 0
    num_rows: int = 0
    own: list[tuple[Supply, Sequence]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def _steps(work: _Work, shape: BatchShape) -> Iterator[Step]:
    feeds, state = work.feeds, work.state
    with work.workers() as workers:
        supplies = [work.supply(feed, workers) for feed in feeds]
        counts = Counts.of(state, feeds)
        stopped = [number for number, supply in enumerate(supplies) if supply.ended]
        unchanged = [feeds[number].name for number in stopped] == state["stopped"]
        schedule = Schedule([feed.weight for feed in feeds], state["turns"] if unchanged else None, stopped)
        while schedule.running:
            rows = _deal(feeds, supplies, schedule, counts, shape)
            position = position_of(state, feeds, supplies, schedule, counts)
            yield Step(
                _micro_batches(rows.own, shape, work),
                rows.num_label_tokens,
                rows.num_tokens,
                position,
                position["bad_lines"],
                counts.in_words(feeds, supplies),
                tuple(rows.notices),
            )


def _deal(feeds, supplies: list[Supply], schedule: Schedule, counts: Counts, shape: BatchShape) -> _Rows:
    """Goes past the sequences of one step, on every rank alike."""
    rows, own = _Rows(), shape.own_rows
    while rows.num_rows < shape.global_rows and schedule.running:
        number = schedule.next()
        supply = supplies[number]
        sequence = supply.advance()
        if own.start <= rows.num_rows < own.stop:
            rows.own.append((supply, sequence))
        rows.num_rows += 1
        rows.num_tokens += sequence.num_tokens
        rows.num_label_tokens += sequence.num_tokens - 1
        counts.add(number, sequence.num_tokens)
        if supply.ended:
            schedule.stop(number)
            if feeds[number].name:
                rest = "the others go on at their relative weights" if schedule.running else "it was the last"
                rows.notices.append(
                    f"{feeds[number]} ended after {supply.num_epochs_done} epochs and "
                    f"{counts.tokens[number]:,} tokens; {rest}"
                )
    return rows


def _micro_batches(own: list[tuple[Supply, Sequence]], shape: BatchShape, work: _Work) -> list:
    """Reads this rank's rows; what is missing of them is padding without loss."""
    input_ids = np.full((shape.rows, work.max_length), work.tokenizer.eos_token_id, np.int32)
    labels = np.full((shape.rows, work.max_length), IGNORED, np.int32)
    for row, (supply, sequence) in enumerate(own):
        tokens = supply.read(sequence)
        input_ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
    if own and input_ids.max() >= len(work.tokenizer):
        raise DataError(
            f"token {input_ids.max()} is none of the tokenizer's {len(work.tokenizer)}; give --tokenizer the one that "
            "the data was prepared with"
        )
    return [
        make_micro_batch(input_ids[first : first + shape.batch_size], labels[first : first + shape.batch_size])
        for first in range(0, shape.rows, shape.batch_size)
    ]


@dataclass(frozen=True)
class StepCount:
    """What a whole run over a dataset comes to."""

    steps: int
    sequences: int
    tokens: int
    documents: int


def count_steps(
    dataset: str | Data | list[Feed],
    tokenizer,
    max_length: int,
    batch_size: int,
    accumulation: int = 1,
    dp_size: int = 1,
    num_epochs: int = 1,
    *,
    num_workers: int = 0,
    skip_bad_lines: bool = False,
    held_out_fraction: float | None = None,
    sample_folder: str | os.PathLike = "data/sample",
    progress: Callable[[int, int], None] | None = None,
) -> StepCount:
    """Counts exactly what iterating `TokenBatches` will deliver: at once for prepared tokens, by a walk over text.

    Args:
        progress: called now and then with (documents, tokens) of the present text so far.
    Returns:
        totals over all epochs; `sequences` without the rows that only fill the last batch up.
    Raises:
        ConfigurationError: a streamed dataset, which cannot be walked beforehand, or a source without end.
    """
    check_lengths(tokenizer, max_length)
    feeds = open_feeds(dataset, tokenizer, num_epochs, skip_bad_lines=skip_bad_lines, sample_folder=sample_folder)
    for feed in feeds:
        if feed.num_epochs is None:
            raise ConfigurationError(f"{feed} is repeated without end; give --max_steps, or its number of epochs")
        if not feed.is_array and not feed.data.is_local:
            raise ConfigurationError(f"{feed} is streamed and its length unknown; give --max_steps")
    documents = tokens = sequences = 0
    for feed in feeds:
        if feed.is_array:
            once = feed.data.num_documents, feed.data.num_tokens
        else:
            once = _count_documents(feed, tokenizer, num_workers, held_out_fraction, progress)
        documents += once[0] * feed.num_epochs
        tokens += once[1] * feed.num_epochs
        sequences += num_sequences(once[1] * feed.num_epochs, max_length)
    return StepCount(-(-sequences // (batch_size * accumulation * dp_size)), sequences, tokens, documents)


def _count_documents(feed: Feed, tokenizer, num_workers: int, held_out_fraction: float, progress) -> tuple[int, int]:
    documents = tokens = 0
    with start_workers(tokenizer, num_workers, held_out_fraction) as workers:
        for document, _ in _walk(feed, tokenizer, workers, num_workers):
            documents += 1
            tokens += len(document)
            if progress and documents % 1000 == 0:
                progress(documents, tokens)
    if not documents:
        raise DataError(NO_DOCUMENT)
    return documents, tokens
