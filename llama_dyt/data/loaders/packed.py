"""Pretraining batches: sequences of one source or a mixture, dealt out to data-parallel ranks, with positions.

Which tokens global sequence number k holds is a function of data, seed and
mixture alone; every rank computes the same order, counts and end without communication, and a position serves any
number of ranks and workers and any micro batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import numpy as np

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.formats.sources import Source
from llama_dyt.data.loaders.step import IGNORE_INDEX, BatchShape, Prefetcher, Step, make_micro_batch
from llama_dyt.data.loaders.tokenized_walk import EncodedWalk, FramedWalk, start_workers
from llama_dyt.data.opening import LoaderOptions, WeightedSource, open_sources
from llama_dyt.data.order.data_position import Counts, position_of, starting_point
from llama_dyt.data.order.mixture import MixtureSchedule
from llama_dyt.data.order.packed_sequences import (
    ArraySequences,
    DocumentSequences,
    PackedSequences,
    SequencePlace,
    num_sequences,
)
from llama_dyt.data.order.shared_sequences import SharedSequences, check_shares
from llama_dyt.data.order.stream_sequences import NO_DOCUMENT, StreamSequences
from llama_dyt.data.tokenizing.tokenizer import vocabulary_size


class TokenBatches(Prefetcher):
    """Iterates the steps of a pretraining run for one data-parallel rank.

    Args:
        dataset: what `-d` names, a mixture's YAML among it, or an open source, or those of a mixture.
        tokenizer: a HuggingFace tokenizer with an EOS token.
        max_length: tokens in a sequence, at least 2.
        shape: of a step's batches.
        options: how the dataset is read; the order must be that of `state`.
        state: `Step.position` of the step after which to go on, possibly made with other sizes; None for the start.
        prefetch: steps prepared ahead.
    Raises:
        ConfigurationError: max_length below 2, a tokenizer without EOS, or data that does not fit it.
        DataError: the dataset cannot be opened, or `state` belongs to other data, another order or tokenizer. While
            iterating: whatever is wrong in the data, or no document in the whole corpus.

    The last global batch is filled up with rows whose labels are all -100.
    """

    def __init__(
        self,
        dataset: str | Source | list[WeightedSource],
        tokenizer,
        max_length: int,
        shape: BatchShape,
        options: LoaderOptions | None = None,
        state: dict | None = None,
        prefetch: int = 2,
    ):
        check_lengths(tokenizer, max_length)
        options = options or LoaderOptions()
        sources = open_sources(dataset, tokenizer, options)
        state = starting_point(state, sources, tokenizer, options.order)
        work = _Work(sources, tokenizer, max_length, options, state, vocabulary_size(tokenizer))
        if options.order.shares > 1:
            check_shares(options.order.shares, shape.global_rows)
        super().__init__(lambda: _steps(work, shape), prefetch)


@dataclass(frozen=True)
class _Work:
    """Everything but the sizes that `_steps` needs."""

    sources: list[WeightedSource]
    tokenizer: object
    max_length: int
    options: LoaderOptions
    state: dict
    vocab_size: int

    def workers(self):
        if all(source.data.is_tokenized for source in self.sources):
            return nullcontext()
        return start_workers(self.tokenizer, self.options.num_workers, self.options.held_out_fraction)

    def sequences(self, source: WeightedSource, workers, shape: BatchShape) -> PackedSequences:
        """Those of a source, from the state on."""
        state, length, num_epochs = self.state["sources"].get(source.name), self.max_length, source.num_epochs
        key = (self.options.order.seed, source.name, source.shuffle)
        if source.data.has_random_access:
            if source.shuffle == "documents":
                return DocumentSequences(source.data, length, num_epochs, key, state)
            return ArraySequences(
                source.data, length, num_epochs, key if source.shuffle == "sequences" else None, state
            )

        def stream(source: WeightedSource, key: tuple, state: dict | None) -> StreamSequences:
            def walk(position: dict | None) -> EncodedWalk | FramedWalk:
                return _walk(source, self.tokenizer, workers, self.options.num_workers, position)

            shuffle = (self.options.order.shuffle_buffer, key) if source.shuffle == "documents" else None
            return StreamSequences(walk, length, num_epochs, shuffle, state)

        shares = self.options.order.shares
        if shares == 1:
            return stream(source, key, state)

        def share(number: int, state: dict | None) -> StreamSequences:
            return stream(replace(source, data=source.data.share(number, shares)), (*key, number), state)

        return SharedSequences(share, shares, shape.global_rows, shape.own_rows, length, state)


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


def _walk(
    source: WeightedSource, tokenizer, workers, num_workers: int, position: dict | None = None
) -> EncodedWalk | FramedWalk:
    if source.data.is_tokenized:
        return FramedWalk(source.data, tokenizer.bos_token_id, tokenizer.eos_token_id, position)
    return EncodedWalk(source.data, workers, num_workers, position)


@dataclass
class _Rows:
    """What one step deals out: sizes of all its sequences, and those that this rank reads."""

    num_tokens: int = 0
    num_label_tokens: int = 0
    num_rows: int = 0
    own: list[tuple[PackedSequences, SequencePlace]] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def _steps(work: _Work, shape: BatchShape) -> Iterator[Step]:
    sources, state = work.sources, work.state
    with work.workers() as workers:
        sequences = [work.sequences(source, workers, shape) for source in sources]
        counts = Counts.of(state, sources)
        stopped = [number for number, of_source in enumerate(sequences) if of_source.ended]
        unchanged = [sources[number].name for number in stopped] == state["stopped"]
        schedule = MixtureSchedule(
            [source.weight for source in sources], state["turns"] if unchanged else None, stopped
        )
        while schedule.running:
            rows = _deal(sources, sequences, schedule, counts, shape)
            position = position_of(state, sources, sequences, schedule, counts)
            yield Step(
                _micro_batches(rows.own, shape, work),
                rows.num_label_tokens,
                rows.num_tokens,
                position,
                position["bad_lines"],
                counts.in_words(sources, sequences),
                tuple(rows.notices),
            )


def _deal(
    sources: list[WeightedSource],
    sequences: list[PackedSequences],
    schedule: MixtureSchedule,
    counts: Counts,
    shape: BatchShape,
) -> _Rows:
    """Goes past the sequences of one step, on every rank alike."""
    rows, own = _Rows(), shape.own_rows
    while rows.num_rows < shape.global_rows and schedule.running:
        number = schedule.next()
        of_source = sequences[number]
        place = of_source.advance()
        if own.start <= rows.num_rows < own.stop:
            rows.own.append((of_source, place))
        rows.num_rows += 1
        rows.num_tokens += place.num_tokens
        rows.num_label_tokens += place.num_tokens - 1
        counts.add(number, place.num_tokens)
        if of_source.ended:
            schedule.stop(number)
            if sources[number].name:
                rest = "the others go on at their relative weights" if schedule.running else "it was the last"
                rows.notices.append(
                    f"{sources[number]} ended after {of_source.num_epochs_done} epochs and "
                    f"{counts.tokens[number]:,} tokens; {rest}"
                )
    return rows


def _micro_batches(own: list[tuple[PackedSequences, SequencePlace]], shape: BatchShape, work: _Work) -> list:
    """Reads this rank's rows; what is missing of them is padding without loss."""
    input_ids = np.full((shape.rows, work.max_length), work.tokenizer.eos_token_id, np.int32)
    labels = np.full((shape.rows, work.max_length), IGNORE_INDEX, np.int32)
    for row, (sequences, place) in enumerate(own):
        tokens = sequences.read(place)
        input_ids[row, : len(tokens)] = labels[row, : len(tokens)] = tokens
    if own and input_ids.max() >= work.vocab_size:
        raise DataError(
            f"token {input_ids.max()} is none of the tokenizer's {work.vocab_size}; give --tokenizer the one that "
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
    dataset: str | Source | list[WeightedSource],
    tokenizer,
    max_length: int,
    rows_per_step: int,
    options: LoaderOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StepCount:
    """Counts exactly what iterating `TokenBatches` will deliver: at once for prepared tokens, by a walk over text.

    Args:
        rows_per_step: sequences of all ranks in a step.
        progress: called now and then with (documents, tokens) of the present text so far.
    Returns:
        totals over all epochs; `sequences` without the rows that only fill the last batch up.
    Raises:
        ConfigurationError: a streamed dataset, which cannot be walked beforehand, or a source without end.
    """
    check_lengths(tokenizer, max_length)
    options = options or LoaderOptions()
    sources = open_sources(dataset, tokenizer, options)
    for source in sources:
        if source.num_epochs is None:
            raise ConfigurationError(f"{source} is repeated without end; give --max_steps, or its number of epochs")
        if not source.data.is_local:
            raise ConfigurationError(f"{source} is streamed and its length unknown; give --max_steps")
    documents = tokens = sequences = 0
    for source in sources:
        if source.data.has_random_access:
            once = source.data.num_documents, source.data.num_tokens
        else:
            once = _count_documents(source, tokenizer, options, progress)
        documents += once[0] * source.num_epochs
        tokens += once[1] * source.num_epochs
        sequences += num_sequences(once[1] * source.num_epochs, max_length)
    return StepCount(-(-sequences // rows_per_step), sequences, tokens, documents)


def _count_documents(source: WeightedSource, tokenizer, options: LoaderOptions, progress) -> tuple[int, int]:
    documents = tokens = 0
    with start_workers(tokenizer, options.num_workers, options.held_out_fraction) as workers:
        for document, _ in _walk(source, tokenizer, workers, options.num_workers):
            documents += 1
            tokens += len(document)
            if progress and documents % 1000 == 0:
                progress(documents, tokens)
    if not documents:
        raise DataError(NO_DOCUMENT)
    return documents, tokens
