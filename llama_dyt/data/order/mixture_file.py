"""A mixture as YAML: the sources of a run, their weights and epochs, as `-d mixture.yaml` gives them.

It is what a person writes; `mixture.MixtureSchedule` sees only weights.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from llama_dyt.config.yaml_file import load_mapping
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.store import SCHEME
from llama_dyt.core.suggest import unknown
from llama_dyt.data.formats.format import reader_of
from llama_dyt.data.records.reader import column_names

SUFFIXES = (".yaml", ".yml")
SHUFFLES = ("none", "documents", "sequences")
_KEYS = ("path", "weight", "epochs", "shuffle", "validation", "field", "columns", "task")
_EXAMPLE = "sources: {wiki: {path: wiki/*.jsonl, weight: 2}}"


@dataclass(frozen=True)
class MixtureSource:
    """One source of a mixture.

    Attributes:
        name: how records and positions call it.
        path: what `-d` would take, relative paths already seen from the YAML's folder.
        weight: its share of the sequences, beside the others' weights.
        epochs: walks over it, after which it stops; None repeats it without end.
        shuffle: one of SHUFFLES; None takes the run's.
        validation: a dataset to evaluate it on; None where there is none.
        field: of a record, that holds its text; None takes the run's.
        columns: of a record's shape, in fine-tuning: (column, what the data call it) beside those of the run.
        task: which part of a hub dataset, or which of its lists; None where it has one.
    """

    name: str
    path: str
    weight: Fraction
    epochs: int | None = None
    shuffle: str | None = None
    validation: str | None = None
    field: str | None = None
    columns: tuple[tuple[str, str], ...] = ()
    task: str | None = None


@dataclass(frozen=True)
class Mixture:
    """The sources of a mixture in the order of the file."""

    file: Path
    sources: tuple[MixtureSource, ...]

    @property
    def is_endless(self) -> bool:
        return any(source.epochs is None for source in self.sources)


def is_mixture(dataset: object) -> bool:
    """Whether a dataset's name is that of a mixture."""
    return isinstance(dataset, (str, os.PathLike)) and os.fspath(dataset).endswith(SUFFIXES)


def read_mixture(file: str | os.PathLike) -> Mixture:
    """Reads a mixture; whether its sources are there is not looked at.

    Raises:
        ConfigurationError: every problem of the file, one a line.
    """
    sources, problems = look_at_mixture(file)
    if problems:
        raise ConfigurationError(problems)
    return Mixture(Path(file).expanduser(), tuple(sources))


def look_at_mixture(file: str | os.PathLike) -> tuple[list[MixtureSource], list[str]]:
    """(sources that have a path, every problem of the file), so that mistakes in both can be told together.

    Raises:
        ConfigurationError: it is no YAML, or not there.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ConfigurationError(f"{file}: no such file; give a mixture, or a dataset itself")
    mapping, where = load_mapping(path)
    problems = [f"{where}{unknown('key', str(key), ('sources',))}" for key in mapping if key != "sources"]
    named, wrong = _named(mapping.get("sources"), where)
    problems += wrong
    sources = []
    for name, entry in named:
        source, wrong = _source(name, entry, path.parent, f"{where}sources: {name}: ")
        problems += wrong
        if source is not None and source.path:
            sources.append(source)
    return sources, problems


def _named(sources: Any, where: str) -> tuple[list[tuple[str, Any]], list[str]]:
    """([(name, entry)], problems) of a mapping of names, or of a list whose entries are named after their path."""
    if isinstance(sources, dict) and sources:
        return [(str(name), entry) for name, entry in sources.items()], []
    if not isinstance(sources, list) or not sources:
        what = "absent or empty" if not sources else f"a {type(sources).__name__}"
        return [], [f"{where}sources: {what}; give at least one, such as {_EXAMPLE}"]
    named, problems = [], []
    for number, entry in enumerate(sources, start=1):
        if isinstance(entry, dict):
            rest = dict(entry)
            name = str(rest.pop("name", entry.get("path", number)))
            named.append((name, rest))
        else:
            problems.append(f"{where}sources: entry {number}: {entry!r} is no mapping; give path and weight")
    names = [name for name, _ in named]
    for name in sorted({name for name in names if names.count(name) > 1}):
        problems.append(f"{where}sources: two are named {name!r}; give each a name of its own (name: ...)")
    return named, problems


def _source(name: str, entry: Any, folder: Path, where: str) -> tuple[MixtureSource | None, list[str]]:
    if isinstance(entry, str):
        entry = {"path": entry}
    if not isinstance(entry, dict):
        return None, [f"{where}{entry!r} is no mapping; give path and weight"]
    problems = [f"{where}{unknown('key', str(key), _KEYS)}" for key in entry if key not in _KEYS]

    def read(key: str, convert, default=None):
        if entry.get(key) is None:
            return default
        try:
            return convert(entry[key])
        except ValueError as error:
            problems.append(f"{where}{key}: {error}")
            return default

    if entry.get("path") is None:
        problems.append(f"{where}path: missing; give what -d takes: a file, folder, glob or hub name")
    source = MixtureSource(
        name,
        read("path", lambda value: _path(value, folder), ""),
        read("weight", _weight, Fraction(1)),
        read("epochs", _epochs),
        read("shuffle", _shuffle),
        read("validation", lambda value: _validation(value, folder)),
        read("field", _field),
        read("columns", _columns, ()),
        read("task", _task),
    )
    return source, problems


def _validation(value: Any, folder: Path) -> str:
    if isinstance(value, float):
        raise ValueError(f"{value} is no path or name; --validation_fraction holds out a share of each source's text")
    return _path(value, folder)


def _field(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no name of a field")
    return value


def _task(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no name of a part")
    return value


def _columns(value: Any) -> tuple[tuple[str, str], ...]:
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise ValueError(f"{value!r} names no columns; give such as {{prompt: question}}")
    column_names([f"{column}={name}" for column, name in value.items()])
    return tuple(value.items())


def _path(value: Any, folder: Path) -> str:
    """A local path as seen from the YAML's folder; a name that is nothing there is left as it is (the hub's)."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is no path or name")
    if SCHEME.match(value):
        return value
    expanded = os.path.expanduser(value)
    beside = os.path.join(folder, expanded)
    prefix = os.path.exists(f"{beside}.idx")  # Megatron's pairs are named without their suffixes
    there = os.path.exists(beside) or prefix or glob.has_magic(value) or value.startswith((".", "~"))
    if value.endswith(SUFFIXES):
        raise ValueError(f"{value} is itself a mixture; name its sources here")
    return beside if there or value.count("/") > 1 or _is_file_name(value) else value


def _is_file_name(value: str) -> bool:
    return reader_of(value) is not None or os.path.splitext(value)[1].lower() in (".gz", ".zst", ".arrow", ".bin")


def _weight(value: Any) -> Fraction:
    try:
        if isinstance(value, bool):
            raise ValueError
        weight = Fraction(str(value))  # of its digits, not of the binary number next to them
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no number") from None
    if weight <= 0:
        raise ValueError(f"{value} is not above 0; leave the source out if it shall not be read")
    return weight


def _epochs(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{value!r} is no whole number from 1 on; leave it out to repeat without end")
    return value


def _shuffle(value: Any) -> str:
    if value is False:  # YAML reads `no` and `off` so
        return "none"
    if value not in SHUFFLES:
        raise ValueError(unknown("order", str(value), SHUFFLES))
    return value
