"""The two sides of a run's data: what is trained on, and the named sets that are validated on and never learned from.

Both are opened by one rule, or they would overlap.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.data.formats.format import format_of
from llama_dyt.data.formats.sources import SAMPLE, SAMPLE_FOLDER, ReadOptions, Source
from llama_dyt.data.opening import open_data, source_options
from llama_dyt.data.order.held_out import OneSide
from llama_dyt.data.order.mixed_records import MixedRecords, RepeatedSource
from llama_dyt.data.order.mixture_file import is_mixture, read_mixture
from llama_dyt.data.sample import VALIDATION_FRACTION, build_sample_corpus
from llama_dyt.data.settings import ValidationSettings


def open_training(dataset: str, fraction: float | None, options: ReadOptions | None = None) -> Source:
    """The records that `-d` names, without those that are held out.

    Args:
        fraction: share of them to leave out (--validation_fraction); None for none.
    """
    if is_mixture(dataset):
        return MixedRecords(
            [
                RepeatedSource(
                    source.name,
                    open_training(source.path, fraction, source_options(options or ReadOptions(), source)),
                    source.epochs or 1,
                )
                for source in read_mixture(dataset).sources
            ]
        )
    source = open_data(dataset, options)
    return source if fraction is None else OneSide(source, fraction, held_out=False)


@dataclass(frozen=True)
class ValidationSet:
    """One named set of documents to validate on.

    Attributes:
        name: what its figures are called.
        dataset: as `-d` takes it, a mixture excepted.
        fraction: only that share of a text which training leaves out; None for all of it.
        split: of prepared data.
        field: of its records, where a mixture's source names its own.
        columns: of its records' shape, likewise.
        task: which part of a hub dataset, likewise.
    """

    name: str
    dataset: str
    fraction: float | None = None
    split: str = "train"
    field: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    task: str | None = None

    def open(self, options: ReadOptions | None = None) -> Source:
        options = replace(options or ReadOptions(), split=self.split)
        options = source_options(options, self)
        data = open_data(self.dataset, options)
        return data if self.fraction is None else OneSide(data, self.fraction, held_out=True)

    def check(self, options: ReadOptions | None = None) -> None:
        """Read up to the first document with text in it, which is enough to validate on.

        Raises:
            DataError: there is none, or what comes before it cannot be used.
        """
        data = self.open(options)
        if data.has_document():
            return
        if self.fraction is None:
            fields = (options or ReadOptions()).fields if self.field is None else (self.field,)
            raise DataError(f"--validation_dataset {self.dataset}: no record with text in its {' and '.join(fields)}")
        raise DataError(
            f"--validation_fraction {self.fraction:g} holds out no document of {self.dataset}; give a larger share, or "
            "--validation_dataset"
        )

    def __str__(self) -> str:
        part = "" if self.fraction is None else f", the {self.fraction:.3g} of it that is held out"
        part += "" if self.split == "train" else f", its {self.split} split"
        return f"{self.name} ({self.dataset}{part})"


def choose_sets(dataset: str, settings: ValidationSettings, sample_folder: str = SAMPLE_FOLDER) -> list[ValidationSet]:
    """What a run on `dataset` validates on: its `--validation_dataset`, or what is held out of what it trains on.

    Raises:
        ConfigurationError: validation was asked for and there is nothing for it.
    """
    if not settings.validation_freq:
        return []
    named, fraction = settings.validation_dataset, settings.validation_fraction
    if named == SAMPLE or (named is None and fraction is None and dataset == SAMPLE):
        return [ValidationSet(SAMPLE, build_sample_corpus(sample_folder).validation_file)]
    if named is not None and not is_mixture(named):
        return [ValidationSet(set_name(named), named, split=_best_split(named))]
    sets = []
    if is_mixture(named or dataset):
        for source in read_mixture(named or dataset).sources:
            if named is not None:
                split = _best_split(source.path)
                sets.append(
                    ValidationSet(source.name, source.path, None, split, source.field, source.columns, source.task)
                )
            elif source.validation is not None:
                path = source.validation
                split = _best_split(path)
                sets.append(ValidationSet(source.name, path, None, split, source.field, source.columns))
            else:
                sets += [
                    replace(chosen, field=source.field, columns=source.columns, task=source.task)
                    for chosen in _held_out(source.name, source.path, fraction, sample_folder)
                ]
    else:
        sets = _held_out(set_name(dataset), dataset, fraction, sample_folder)
    if not sets:
        raise ConfigurationError(
            f"--validation_freq {settings.validation_freq}: nothing to validate on; give --validation_dataset, or "
            "--validation_fraction (to prepare_data.py for prepared data) to hold out a share of --dataset"
        )
    return sets


def _best_split(dataset: str) -> str:
    return "validation" if "validation" in format_of(dataset).splits(dataset) else "train"


def _held_out(name: str, dataset: str, fraction: float | None, sample_folder: str) -> list[ValidationSet]:
    if "validation" in format_of(dataset).splits(dataset):
        return [ValidationSet(name, dataset, split="validation")]
    if fraction is None or format_of(dataset).is_tokenized:  # of tokens nothing can be held out any more
        return []
    if dataset == SAMPLE:
        # Both shares are of the same hash: up to its own, what training leaves out lies in the sample's held-out file.
        corpus = build_sample_corpus(sample_folder)
        dataset = corpus.validation_file if fraction <= VALIDATION_FRACTION else corpus.train_glob
    return [ValidationSet(name, dataset, fraction)]


def set_name(dataset: str) -> str:
    """A short name for a dataset's figures: a file's without its suffixes, or the last part of a hub name."""
    return re.sub(r"\W+", "_", Path(dataset).name.split(".")[0]).strip("_") or "validation"
