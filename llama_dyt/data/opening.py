"""What a dataset's name means: prepared tokens, documents of text, or a mixture of such.

Its own file because it is the one place where the kinds of sources are told apart; a new kind is joined in `open_data`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

import numpy as np

from llama_dyt.data.arrow import ArrowDocuments, is_arrow
from llama_dyt.data.mixture_file import is_mixture, read_mixture
from llama_dyt.data.prepared import open_tokens
from llama_dyt.data.shards import is_shards
from llama_dyt.data.sources import SAMPLE, Source, open_source
from llama_dyt.data.token_array import TokenArray
from llama_dyt.data.tokenizer import tokenizer_fingerprint
from llama_dyt.errors import ConfigurationError, LlamaDytError


class DocumentStream(Protocol):
    """Tokenized documents in a fixed order, which can only be walked.

    Attributes:
        is_local, fingerprint, bad_lines: as a `Source` has them.
    """

    is_local: bool
    fingerprint: str
    bad_lines: int

    def documents(self, position: dict | None = None) -> Iterator[tuple[np.ndarray, dict]]:
        """Yields (ids without BOS and EOS, position after the document); the position has `bad_lines`."""
        ...


Data = TokenArray | DocumentStream | Source
TEXT = ("text",)


@dataclass(frozen=True)
class Feed:
    """One open source of a run.

    Attributes:
        name: of a mixture's source; empty where there is only one.
        data: a TokenArray (has `tokens`), a DocumentStream (has `documents`) or a Source of text (has `iterate`).
        weight: its share of the sequences.
        num_epochs: walks over it; None for no end.
        shuffle: "none", "documents" or "sequences".
        held_out_fraction: share of a text's documents that is left to validation (see `split`); None for none.
    """

    name: str
    data: Data
    weight: Fraction = Fraction(1)
    num_epochs: int | None = 1
    shuffle: str = "none"
    held_out_fraction: float | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when its tokens could have."""
        fraction = self.held_out_fraction
        held_out = "" if fraction is None or not self.is_text else f", without held out {fraction!r}"
        return f"{self.data.fingerprint}{held_out}"

    @property
    def is_array(self) -> bool:
        return hasattr(self.data, "tokens")

    @property
    def is_text(self) -> bool:
        return hasattr(self.data, "iterate")

    def warning(self, tokenizer) -> str | None:
        """What a run should be told of the data before it starts; None where there is nothing."""
        return self.data.missing_eos(tokenizer.eos_token_id) if hasattr(self.data, "missing_eos") else None

    def __str__(self) -> str:
        return f"source {self.name}" if self.name else "the dataset"


def open_data(
    dataset: str | os.PathLike | Data,
    fields: Sequence[str] = TEXT,
    *,
    task: str | None = None,
    split: str = "train",
    skip_bad_lines: bool = False,
    sample_folder: str | os.PathLike = "data/sample",
) -> Data:
    """Opens what a name means, a mixture's excepted; what is open already is returned.

    Args:
        fields, task: as for `sources.open_source`; prepared data stand for the field `text` alone.
        split: of prepared data.
    Raises:
        DataError: nothing usable of that name.
    """
    if any(hasattr(dataset, name) for name in ("tokens", "documents", "iterate")):
        return dataset
    if tuple(fields) == TEXT and dataset != SAMPLE:
        tokens = open_tokens(dataset, split)
        if tokens is not None:
            return tokens
        if is_arrow(dataset):
            return ArrowDocuments(dataset)
    return open_source(dataset, fields, task=task, skip_bad_lines=skip_bad_lines, sample_folder=sample_folder)


def open_feeds(
    dataset: str | os.PathLike | Data | Sequence[Feed],
    tokenizer,
    num_epochs: int = 1,
    shuffle: str = "none",
    *,
    held_out_fraction: float | None = None,
    skip_bad_lines: bool = False,
    sample_folder: str | os.PathLike = "data/sample",
) -> list[Feed]:
    """Every source that `-d` names, opened: one, or those of a mixture in its order; feeds are only checked.

    Args:
        num_epochs: of a dataset that is no mixture; a mixture's sources have their own.
        shuffle: where a mixture's source does not say.
        held_out_fraction: share of all text's documents that is left to validation; None for none.
    Raises:
        DataError, ConfigurationError: a source cannot be opened, or does not fit the tokenizer or the order asked for.
    """
    options = {"skip_bad_lines": skip_bad_lines, "sample_folder": sample_folder}
    if isinstance(dataset, (list, tuple)):
        feeds = list(dataset)
    elif is_mixture(dataset):
        sources = read_mixture(dataset).sources
        feeds = [
            Feed(
                source.name, open_data(source.path, **options), source.weight, source.epochs, source.shuffle or shuffle
            )
            for source in sources
        ]
    else:
        feeds = [Feed("", open_data(dataset, **options), Fraction(1), num_epochs, shuffle)]
    if held_out_fraction is not None:
        feeds = [replace(feed, held_out_fraction=held_out_fraction) for feed in feeds]
    problems = [problem for feed in feeds for problem in _misfits(feed, tokenizer)]
    if held_out_fraction is not None and not any(feed.is_text for feed in feeds):
        problems.append(
            f"--validation_fraction {held_out_fraction:g} is a share of text, and this is prepared already: leave it "
            "out, and give it to prepare_data.py"
        )
    if problems:
        raise ConfigurationError(problems)
    return feeds


def _misfits(feed: Feed, tokenizer) -> list[str]:
    if not feed.is_array:
        if feed.shuffle != "sequences":
            return []
        return [
            f"{feed} is read as a stream, whose sequences cannot be shuffled: give --shuffle documents, or prepare "
            "it first (prepare_data.py)"
        ]
    data = feed.data
    problems = []
    if data.tokenizer is not None and data.tokenizer != tokenizer_fingerprint(tokenizer):
        problems.append(
            f"{feed} was prepared with another tokenizer ({data.tokenizer}, the run's is "
            f"{tokenizer_fingerprint(tokenizer)}): give --tokenizer the one it was prepared with, or prepare it anew"
        )
    elif data.vocab_size is not None and data.vocab_size > len(tokenizer):
        problems.append(
            f"{feed} was prepared for a vocabulary of {data.vocab_size}, the tokenizer's has {len(tokenizer)}: give "
            "--tokenizer the one it was prepared with"
        )
    return problems


def check_data(
    dataset: str,
    fields: Sequence[str] = TEXT,
    *,
    task: str | None = None,
    num_epochs: int = 1,
    skip_bad_lines: bool = False,
) -> list[str]:
    """The problems that would stop a run on what `-d` names, found quickly, before anything is launched; [] if none.

    `sample` has none: it is built when the run starts.
    """
    if dataset == SAMPLE:
        return []
    try:
        if not (tuple(fields) == TEXT and is_mixture(dataset)):
            data = open_data(dataset, fields, task=task, skip_bad_lines=skip_bad_lines)
            return data.problems() if hasattr(data, "problems") else []
        mixture = read_mixture(dataset)
    except ConfigurationError as error:
        return list(error.problems)
    except LlamaDytError as error:
        return [str(error)]
    problems = []
    if num_epochs != 1:
        problems.append(f"{dataset} is a mixture, whose sources have epochs of their own: leave --num_epochs out")
    for source in mixture.sources:
        for path in filter(None, (source.path, source.validation)):
            found = check_data(path, skip_bad_lines=skip_bad_lines)
            problems += [f"{dataset}: sources: {source.name}: {problem}" for problem in found]
    return problems


def is_countable(dataset: str) -> bool:
    """Whether the steps of a run over what `-d` names can be counted beforehand; opens nothing that takes long."""
    if is_mixture(dataset):
        mixture = read_mixture(dataset)
        return not mixture.is_endless and all(is_countable(source.path) for source in mixture.sources)
    data = open_data(dataset)
    return hasattr(data, "tokens") or data.is_local


def tokenizer_beside(dataset: str) -> str | None:
    """The tokenizer that what `-d` names was prepared with, where it lies beside the tokens."""
    paths = [source.path for source in read_mixture(dataset).sources] if is_mixture(dataset) else [dataset]
    prepared = (os.path.expanduser(path) for path in paths if path != SAMPLE and is_shards(path))
    return next(filter(os.path.isdir, (os.path.join(path, "tokenizer") for path in prepared)), None)
