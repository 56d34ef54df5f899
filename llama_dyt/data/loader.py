"""Pretraining batches: text from a source, tokenized in batches, packed, and dealt out to data-parallel ranks.

Its own file because here the parts meet. Every rank walks the same document stream, so the order of sequences, the
global counts and the end of the data need no communication, and a position serves any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from llama_dyt.data.packing import TokenStream, cut_sequences, frame_document, num_label_tokens
from llama_dyt.data.sources import Source, open_source
from llama_dyt.data.step import BatchShape, Prefetcher, Step, make_micro_batch
from llama_dyt.data.tokenizer import encode_batch, tokenizer_fingerprint
from llama_dyt.errors import ConfigurationError, DataError

# A tokenization batch ends at whichever comes first: enough for the tokenizer's threads, little enough memory.
_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 1 << 20
_NO_DOCUMENT = "the dataset holds no document at all (only empty or unusable lines); give one with text in it"
_NEW_RUN = "to train on other data from these weights, start a new run with --model_path"


class TokenBatches(Prefetcher):
    """Iterates the steps of a pretraining run for one data-parallel rank.

    Args:
        dataset: what `-d` names, or an open Source.
        tokenizer: a HuggingFace tokenizer with an EOS token.
        max_length: tokens in a sequence, at least 2.
        batch_size, accumulation: sequences in a micro batch, micro batches in a step, of one rank.
        dp_rank, dp_size: this rank among the data-parallel ranks.
        num_epochs: walks over the corpus; sequences run on from one into the next, only the very end is padded.
        state: `Step.position` of the step after which to go on, possibly made with other sizes; None for the start.
        skip_bad_lines: count unusable records instead of raising.
        prefetch: steps prepared ahead.
    Raises:
        ConfigurationError: max_length below 2, or a tokenizer without EOS.
        DataError: the dataset cannot be opened, or `state` belongs to another dataset or tokenizer. While iterating:
            whatever is wrong in the data, or no document in the whole corpus.

    The last global batch is filled up with rows whose labels are all -100. A last batch without a single target (one
    token left over) is not delivered, as nothing can be learned from it.
    """

    def __init__(
        self,
        dataset: str | Source,
        tokenizer,
        max_length: int,
        batch_size: int,
        accumulation: int = 1,
        dp_rank: int = 0,
        dp_size: int = 1,
        num_epochs: int = 1,
        state: dict | None = None,
        *,
        skip_bad_lines: bool = False,
        sample_folder="data/sample",
        prefetch: int = 2,
    ):
        check_lengths(tokenizer, max_length)
        source = open_text(dataset, skip_bad_lines, sample_folder)
        state = check_state(state, source, tokenizer)
        shape = BatchShape(batch_size, accumulation, dp_rank, dp_size)
        super().__init__(lambda: _steps(source, tokenizer, max_length, shape, num_epochs, state), prefetch)


def open_text(dataset: str | Source, skip_bad_lines: bool, sample_folder) -> Source:
    if hasattr(dataset, "iterate"):
        return dataset
    return open_source(dataset, skip_bad_lines=skip_bad_lines, sample_folder=sample_folder)


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


def check_state(state: dict | None, source: Source, tokenizer) -> dict:
    """The position to begin at, after making sure that it was made with this dataset and tokenizer."""
    tokenizer_mark = tokenizer_fingerprint(tokenizer)
    if state is None:
        return {
            "epoch": 0,
            "source": None,
            "token": 0,
            "sequences": 0,
            "tokens": 0,
            "bad_lines": 0,
            "dataset": source.fingerprint,
            "tokenizer": tokenizer_mark,
        }
    if state["dataset"] != source.fingerprint:
        raise DataError(
            "the dataset is not the one that the checkpoint was reading (another name, or files added, removed or "
            f"changed); restore it to resume; {_NEW_RUN}"
        )
    if state["tokenizer"] != tokenizer_mark:
        raise DataError(
            f"the tokenizer is not the one that the checkpoint was reading with; restore it to resume; {_NEW_RUN}"
        )
    return state


def encoded_documents(source: Source, tokenizer, position: dict | None) -> Iterator[tuple]:
    """Yields (tokens with BOS and EOS, position after the document) for one walk; empty documents are passed over."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    records = source.iterate(position)
    while batch := list(_take_batch(records)):
        kept = [(values[0], after) for values, after in batch if values[0]]
        for ids, (_, after) in zip(encode_batch(tokenizer, [text for text, _ in kept]), kept, strict=True):
            yield frame_document(ids, bos, eos), after


def _take_batch(records: Iterator) -> Iterator:
    characters = 0
    for record in islice(records, _BATCH_DOCUMENTS):
        yield record
        characters += len(record[0][0])
        if characters >= _BATCH_CHARACTERS:
            return


def _steps(
    source: Source, tokenizer, max_length: int, shape: BatchShape, num_epochs: int, state: dict
) -> Iterator[Step]:
    pad = tokenizer.eos_token_id
    size = shape.global_rows * max_length
    sequences, tokens_seen = state["sequences"], state["tokens"]
    stream = TokenStream({"epoch": state["epoch"], "source": state["source"], "bad_lines": state["bad_lines"]})

    def make_step() -> Step | None:
        nonlocal sequences, tokens_seen
        tokens = stream.take(size)
        labelled = num_label_tokens(len(tokens), max_length)
        if not labelled:
            return None
        sequences += shape.global_rows
        tokens_seen += len(tokens)
        place, used = stream.place()
        own = tokens[shape.own_rows.start * max_length : shape.own_rows.stop * max_length]
        input_ids, labels = cut_sequences(own, shape.rows, max_length, pad)
        batches = [
            make_micro_batch(input_ids[first : first + shape.batch_size], labels[first : first + shape.batch_size])
            for first in range(0, shape.rows, shape.batch_size)
        ]
        kept = {"dataset": state["dataset"], "tokenizer": state["tokenizer"]}
        position = {**place, "token": used, "sequences": sequences, "tokens": tokens_seen, **kept}
        return Step(batches, labelled, len(tokens), position, place["bad_lines"])

    skip = state["token"]
    for tokens, after in _all_epochs(source, tokenizer, num_epochs, state, stream):
        stream.add(tokens, after, skip)
        skip = 0
        while stream.num_tokens > size:  # not >=: the very last step shall know that the data ended there
            yield make_step()
    while stream.num_tokens and (step := make_step()):
        yield step


def _all_epochs(source: Source, tokenizer, num_epochs: int, state: dict, stream: TokenStream) -> Iterator[tuple]:
    """Documents of all epochs still to come, with full positions; tells the stream where each epoch begins."""
    skipped_before = state["bad_lines"] - ((state["source"] or {}).get("bad_lines", 0))
    position = state["source"]
    for epoch in range(state["epoch"], num_epochs):
        empty = True
        for tokens, after in encoded_documents(source, tokenizer, position):
            empty = False
            yield tokens, {"epoch": epoch, "source": after, "bad_lines": skipped_before + after["bad_lines"]}
        if empty and position is None:
            raise DataError(_NO_DOCUMENT)
        skipped_before += source.bad_lines
        stream.move_end({"epoch": epoch + 1, "source": None, "bad_lines": skipped_before})
        position = None


@dataclass(frozen=True)
class StepCount:
    """What a whole run over a dataset comes to."""

    steps: int
    sequences: int
    tokens: int
    documents: int


def count_steps(
    dataset: str | Source,
    tokenizer,
    max_length: int,
    batch_size: int,
    accumulation: int = 1,
    dp_size: int = 1,
    num_epochs: int = 1,
    *,
    skip_bad_lines: bool = False,
    sample_folder="data/sample",
    progress: Callable[[int, int], None] | None = None,
) -> StepCount:
    """Walks the corpus once and counts exactly what iterating `TokenBatches` will deliver.

    Args:
        progress: called now and then with (documents, tokens) so far.
    Returns:
        totals over all epochs; `sequences` without the rows that only fill the last batch up.
    Raises:
        ConfigurationError: a streamed dataset, which cannot be walked beforehand.
    """
    check_lengths(tokenizer, max_length)
    source = open_text(dataset, skip_bad_lines, sample_folder)
    if not source.is_local:
        raise ConfigurationError("a streamed dataset's length is unknown; give --max_steps (the schedule needs it)")
    documents = tokens = 0
    for document, _ in encoded_documents(source, tokenizer, None):
        documents += 1
        tokens += len(document)
        if progress and documents % _BATCH_DOCUMENTS == 0:
            progress(documents, tokens)
    if not documents:
        raise DataError(_NO_DOCUMENT)
    tokens *= num_epochs
    size = batch_size * accumulation * dp_size * max_length
    steps, rest = divmod(tokens, size)
    steps += num_label_tokens(rest, max_length) > 0
    return StepCount(steps, -(-tokens // max_length), tokens, documents * num_epochs)
