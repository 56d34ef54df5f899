"""What a dataset's name means: what its format opens, or a mixture of such; and what is wrong with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Protocol

from llama_dyt.core.errors import ConfigurationError, DataError, LlamaDytError
from llama_dyt.core.problem import Problem
from llama_dyt.data.formats.format import format_of
from llama_dyt.data.formats.matching import printable
from llama_dyt.data.formats.sources import SAMPLE, ReadOptions, Source, TextSource
from llama_dyt.data.order.mixture_file import is_mixture, look_at_mixture, read_mixture
from llama_dyt.data.tokenizing.tokenizer import tokenizer_fingerprint, vocabulary_size

SHUFFLE_BUFFER = 2000


@dataclass(frozen=True)
class Order:
    """What the order of a run depends on besides its data and mixture.

    Attributes:
        seed: of all shuffling.
        shuffle: "none", "documents" or "sequences", where a mixture's source does not say.
        shuffle_buffer: documents of a stream that are shuffled together.
        shares: of a stream's files, each read by the ranks alone that have rows of it; 1 for none.
    """

    seed: int = 0
    shuffle: str = "none"
    shuffle_buffer: int = SHUFFLE_BUFFER
    shares: int = 1


@dataclass(frozen=True)
class LoaderOptions:
    """How pretraining reads what `-d` names.

    Attributes:
        read: the records; a mixture's source may name its own field.
        num_epochs: walks over a dataset that is no mixture, whose sources have their own.
        order: of the sequences; a resumed run must have that of the first.
        held_out_fraction: share of all text's documents that is left to validation; None for none.
        num_workers: processes that tokenize text; 0 does it in the loader's thread.
    """

    read: ReadOptions = field(default_factory=ReadOptions)
    num_epochs: int | None = 1
    order: Order = field(default_factory=Order)
    held_out_fraction: float | None = None
    num_workers: int = 0


@dataclass(frozen=True)
class WeightedSource:
    """One open source of a run: the only one, or one of a mixture.

    Attributes:
        name: of a mixture's source; empty where there is only one.
        weight: its share of the sequences.
        num_epochs: walks over it; None for no end.
        shuffle: "none", "documents" or "sequences".
        held_out_fraction: share of a text's documents that is left to validation (see `held_out`); None for none.
    """

    name: str
    data: Source
    weight: Fraction = Fraction(1)
    num_epochs: int | None = 1
    shuffle: str = "none"
    held_out_fraction: float | None = None

    @property
    def fingerprint(self) -> str:
        """Changes when its tokens could have."""
        return self.data.without(self.held_out_fraction)

    def __str__(self) -> str:
        return f"source {self.name}" if self.name else "the dataset"


def open_data(dataset: str | os.PathLike, options: ReadOptions | None = None) -> Source:
    """Opens what a name means, a mixture's excepted.

    Raises:
        DataError: nothing usable of that name.
    """
    name, options = os.fspath(dataset), options or ReadOptions()
    return format_of(name, tokens=len(options.fields) == 1).open(name, options)


class _NamesFields(Protocol):
    field: str | None
    columns: tuple[tuple[str, str], ...]
    task: str | None


def source_options(options: ReadOptions, source: _NamesFields) -> ReadOptions:
    """The options for one source of a mixture, which may have names of its own for what a record holds, and a part."""
    options = options if source.task is None else replace(options, task=source.task)
    if options.records is not None:
        return replace(options, records=options.records.with_columns(dict(source.columns)))
    return options if source.field is None else replace(options, fields=(source.field,))


def open_text(dataset: str | os.PathLike, options: ReadOptions) -> TextSource:
    """The records of text that a name means; as `open_data`, but tokens are none."""
    name = os.fspath(dataset)
    return format_of(name, tokens=False).open(name, options)


def open_sources(
    dataset: str | os.PathLike | Source | Sequence[WeightedSource], tokenizer, options: LoaderOptions
) -> list[WeightedSource]:
    """Every source that `-d` names, opened: one, or those of a mixture in its order. What is open is only checked.

    Raises:
        DataError, ConfigurationError: a source cannot be opened, or does not fit the tokenizer or the order asked for.
    """
    read, shuffle, fraction = options.read, options.order.shuffle, options.held_out_fraction
    if isinstance(dataset, (list, tuple)):
        sources = list(dataset)
    elif is_mixture(dataset):
        sources, problems = [], []
        for source in read_mixture(dataset).sources:
            try:
                data = open_data(source.path, source_options(read, source))
            except LlamaDytError as error:
                problems.append(f"{dataset}: sources: {source.name}: {error}")
                continue
            sources.append(WeightedSource(source.name, data, source.weight, source.epochs, source.shuffle or shuffle))
        if problems:
            raise DataError("\n".join(problems))
    else:
        data = open_data(dataset, read) if isinstance(dataset, (str, os.PathLike)) else dataset
        num_epochs = options.num_epochs if options.order.shares == 1 else None
        sources = [WeightedSource("", data, Fraction(1), num_epochs, shuffle)]
    if fraction is not None:
        sources = [replace(source, held_out_fraction=fraction) for source in sources]
    problems = [problem for source in sources for problem in _misfits(source, tokenizer)]
    if fraction is not None and all(source.data.is_tokenized for source in sources):
        problems.append(
            f"--validation_fraction {fraction:g} is a share of text, and this is prepared already: leave it "
            "out, and give it to prepare_data.py"
        )
    if options.order.shares > 1 and (len(sources) > 1 or not sources[0].data.can_be_shared):
        problems.append(
            f"--stream_shares {options.order.shares} is for one dataset of text that is streamed from many files; "
            "leave it out"
        )
    if problems:
        raise ConfigurationError(problems)
    return sources


def _misfits(source: WeightedSource, tokenizer) -> list[str]:
    data = source.data
    if not data.has_random_access:
        if source.shuffle != "sequences":
            return []
        return [
            f"{source} is read as a stream, whose sequences cannot be shuffled: give --shuffle documents, or prepare "
            "it first (prepare_data.py)"
        ]
    problems = []
    if data.tokenizer is not None and data.tokenizer != tokenizer_fingerprint(tokenizer):
        problems.append(
            f"{source} was prepared with another tokenizer ({data.tokenizer}, the run's is "
            f"{tokenizer_fingerprint(tokenizer)}): give --tokenizer the one it was prepared with, or prepare it anew"
        )
    elif data.vocab_size is not None and data.vocab_size > vocabulary_size(tokenizer):
        problems.append(
            f"{source} was prepared for a vocabulary of {data.vocab_size}, the tokenizer's has "
            f"{vocabulary_size(tokenizer)}: give --tokenizer the one it was prepared with"
        )
    return problems


def check_data(
    dataset: str, options: ReadOptions | None = None, *, num_epochs: int = 1, flag: str = "dataset"
) -> list[Problem]:
    """The problems that would stop a run on what a flag names, found quickly, before anything is launched.

    `sample` has none: it is built when the run starts.
    """
    options = options or ReadOptions()
    if is_mixture(dataset):
        return [
            problem.of(flag).here()
            if isinstance(problem, Problem)
            else Problem(flag, dataset, problem, text=f"--{flag} {problem}", local=True)
            for problem in _problems_of_mixture(dataset, options, num_epochs)
        ]
    return [_problem(flag, dataset, error) for error in _errors(dataset, options)]


def _errors(dataset: str, options: ReadOptions) -> list[DataError]:
    if dataset == SAMPLE:
        return []
    try:
        return open_data(dataset, options).problems()
    except DataError as error:
        return [error]
    except LlamaDytError as error:
        return [DataError(str(error))]


def _problem(flag: str, dataset: str, error: DataError) -> Problem:
    """An error with the flag it comes from; most name the dataset themselves, and once is enough."""
    text = f"--{flag} {error.message}" if error.names(dataset) else f"--{flag} {dataset}: {error}"
    return Problem(flag, dataset, error.message, text=text, local=True)


def _problems_of_mixture(dataset: str, options: ReadOptions, num_epochs: int) -> list[str]:
    """Each begins with the mixture's name, but where it is a `Problem`."""
    try:
        sources, problems = look_at_mixture(dataset)
    except ConfigurationError as error:
        return error.problems
    pretraining = len(options.fields) == 1
    if num_epochs != 1 and pretraining:
        problems.append(f"{dataset} is a mixture, whose sources have epochs of their own: leave --num_epochs out")
    for source in sources:
        if source.weight != 1 and not pretraining:
            problems.append(
                f"{dataset}: sources: {source.name}: weight: fine-tuning takes every example; give epochs, how often "
                "each comes"
            )
        if source.field is not None and not pretraining:
            problems.append(f"{dataset}: sources: {source.name}: field: is of pretraining; give columns: {{prompt: …}}")
        if source.columns and pretraining:
            problems.append(f"{dataset}: sources: {source.name}: columns: are of fine-tuning; give field")
        own = replace(source_options(options, source), task=source.task)
        for path in filter(None, (source.path, source.validation)):
            problems += [f"{dataset}: sources: {source.name}: {error}" for error in _errors(path, own)]
    return problems


def files_in_words(dataset: str, options: ReadOptions) -> list[str]:
    """What files of text a name means, and what was passed over, a line for each source; [] where there are none."""
    if is_mixture(dataset):
        named = {source: source_options(options, source) for source in read_mixture(dataset).sources}
        return [f"{source.name}: {line}" for source, own in named.items() for line in files_in_words(source.path, own)]
    found = open_data(dataset, options).in_words()
    return [f"{printable(str(dataset))}: {found}"] if found is not None else []


def is_countable(dataset: str) -> bool:
    """Whether the steps of a run over what `-d` names can be counted beforehand; opens nothing that takes long."""
    if is_mixture(dataset):
        mixture = read_mixture(dataset)
        return not mixture.is_endless and all(is_countable(source.path) for source in mixture.sources)
    return open_data(dataset).is_local


def tokenizer_beside(dataset: str) -> str | None:
    """The tokenizer that what `-d` names was prepared with, where it lies beside the tokens."""
    paths = [source.path for source in read_mixture(dataset).sources] if is_mixture(dataset) else [dataset]
    return next(filter(None, (format_of(path).tokenizer_beside(path) for path in paths)), None)
