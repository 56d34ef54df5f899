"""Which files of this machine a dataset's name means: those that are read, and those that are passed over and why."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, Protocol

from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.compressed import COMPRESSIONS
from llama_dyt.data.formats.recognition import what_is
from llama_dyt.data.formats.record_files import DataFile, stat_file

_NAMES_SHOWN = 3


class MatchedBy(Protocol):
    """What a file has to be called for a format to read it.

    Attributes:
        suffixes: in lower case; shown: of these, those that messages name.
        only_where_named: those of files that a folder may have for another purpose.
    """

    suffixes: tuple[str, ...]
    shown: tuple[str, ...]
    only_where_named: tuple[str, ...]


@dataclass
class Match:
    """What a name means.

    Attributes:
        formats: that there are.
        files: what is read, by name.
        passed_over: reason → names of what was found beside them.
    """

    formats: Sequence[MatchedBy]
    files: list[DataFile] = field(default_factory=list)
    passed_over: dict[str, list[str]] = field(default_factory=dict)

    def can_be_read(self, name: str) -> bool:
        return _can_be_read(name, self.formats)

    def is_ambiguous(self, name: str) -> bool:
        """Whether a file of this name, in a folder, is as often something else."""
        return name.lower().endswith(tuple(suffix for format in self.formats for suffix in format.only_where_named))

    @property
    def readable(self) -> str:
        """The formats, in words."""
        *most, last = [suffix for format in self.formats for suffix in format.shown]
        return f"{', '.join(most)} or {last}"

    def pass_over(self, name: str, reason: str) -> None:
        self.passed_over.setdefault(reason, []).append(name)

    def __str__(self) -> str:
        """In one line, whatever the files are called."""
        count = sum(map(len, self.passed_over.values()))
        words = f"read {len(self.files):,} file{'' if len(self.files) == 1 else 's'}"
        if all(file.size is not None for file in self.files):
            words += f" of {sum(file.size for file in self.files):,} bytes"
        if count:
            words += f", passed over {count:,}: {self.reasons}"
        return printable(words)

    @property
    def reasons(self) -> str:
        return "; ".join(f"{_some(names)} ({reason})" for reason, names in self.passed_over.items())


def _some(names: list[str]) -> str:
    rest = len(names) - _NAMES_SHOWN
    return ", ".join(names[:_NAMES_SHOWN]) + (f" and {rest:,} more" if rest > 0 else "")


def printable(name: str) -> str:
    """A name for people: bytes of it that are no UTF-8, and line ends, as escapes."""
    return name.encode(errors="backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")


def match_files(dataset: str, formats: Sequence[MatchedBy]) -> Match | None:
    """What a folder, file or glob means; None when the name can only be the hub's.

    A folder is read with all that is below it, links followed; hidden entries and plain .json files, which are as often
    a tokenizer's or a config's, only where they are named. Of two names of one file the first is read.

    Args:
        formats: those whose files are read.

    Raises:
        DataError: a local path or glob that is missing or holds no data file, a file that cannot be read, a link to
            nothing, or a file beside its packed copy.
    """
    path = Path(os.path.expanduser(dataset))
    match = Match(formats)
    if path.is_dir():
        entries = list(_below(dataset, path, match))
        candidates = [(file, file.relative_to(path).as_posix()) for file in entries if _belongs(file, path, match)]
        missing = f"this folder holds no {match.readable} file; name a folder, file or glob with some"
    elif path.exists():
        candidates = [(path, path.name)] if match.can_be_read(path.name) else []
        missing = f"not a format that can be read; give {match.readable}"
    elif path.is_symlink():
        _refuse_dangling(path)
    elif glob.has_magic(dataset):
        found = [file for file in map(Path, sorted(glob.glob(str(path), recursive=True))) if _is_file(file, match)]
        root = os.path.commonpath([file.parent for file in found]) if found else ""
        candidates = [(file, file.relative_to(root).as_posix()) for file in found]
        missing = f"no {match.readable} file matches; check the pattern and quote it from the shell"
    elif _looks_local(dataset, formats):
        raise DataError(
            f"{dataset}: {what_is(path) or 'no such file or folder; check the path, or try `-d sample`'}", about=dataset
        )
    else:
        return None
    match.files = _distinct(candidates, match)
    if not match.files:
        found = f" (found {match.reasons})" if match.passed_over else ""
        raise DataError(printable(f"{dataset}: {what_is(path) or missing + found}"), about=dataset)
    refuse_packed_copies(dataset, match.files)
    return match


def _below(dataset: str, folder: Path, match: Match) -> Iterator[Path]:
    """The files below a folder, each folder once."""

    def refuse(error: OSError) -> NoReturn:
        raise DataError(
            f"{error.filename}: cannot be read ({error.strerror}); change its rights, or name a glob",
            about=error.filename,
        )

    seen = {_identity(folder): "."}
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        here = Path(place)
        entered = []
        for name in sorted(folders, key=lambda name: ((here / name).is_symlink(), name)):
            below = here / name
            shown = below.relative_to(folder).as_posix()
            if name.startswith("."):
                match.pass_over(f"{shown}/", "hidden")
            elif (known := seen.setdefault(_identity(below), shown)) != shown:
                match.pass_over(f"{shown}/", f"the same folder as {known}")
            else:
                entered.append(name)
        folders[:] = entered
        yield from (here / name for name in sorted(names))


def _belongs(file: Path, folder: Path, match: Match) -> bool:
    name = file.relative_to(folder).as_posix()
    if file.name.startswith("."):
        match.pass_over(name, "hidden")
    elif _is_file(file, match, name):
        if not match.is_ambiguous(name):
            return True
        match.pass_over(name, f"a {file.suffix.lower()}, read only where it is named")
    return False


def _is_file(file: Path, match: Match, name: str | None = None) -> bool:
    """Whether a path is one of a data file."""
    name = str(file) if name is None else name
    if not file.exists():
        _refuse_dangling(file)
    if not file.is_file():
        match.pass_over(name, "a folder" if file.is_dir() else "no file")
    elif not match.can_be_read(name):
        match.pass_over(name, f"not {match.readable}")
    else:
        return True
    return False


def _refuse_dangling(file: Path) -> NoReturn:
    target = os.readlink(file) if file.is_symlink() else "nothing"
    raise DataError(
        printable(f"{file}: a link to {target}, which is not there; restore that, or remove the link"), about=file
    )


def _distinct(candidates: list[tuple[Path, str]], match: Match) -> list[DataFile]:
    """The files without those that another name of theirs stands for; a file's own name goes before a link."""
    names: dict[tuple[int, int], str] = {}
    files = []
    for path, name in sorted(set(candidates), key=lambda pair: (pair[0].is_symlink(), pair[1])):
        file = stat_file(path, name)
        known = names.setdefault(_identity(path), name)
        if known == name:
            files.append(file)
        else:
            match.pass_over(name, f"the same file as {known}")
    return sorted(files, key=lambda file: file.name)


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_dev, found.st_ino


def refuse_packed_copies(dataset: str, files: list[DataFile]) -> None:
    """x.jsonl beside x.jsonl.gz is a file and its packed copy: the same data twice."""
    seen: dict[str, str] = {}
    for file in files:
        plain = file.name
        while plain.lower().endswith(COMPRESSIONS[1:]):
            plain = plain[: plain.rindex(".")]
        if plain in seen:
            raise DataError(
                f"{dataset}: holds {seen[plain]} and {file.name}, the same data twice; remove one of them",
                about=dataset,
            )
        seen[plain] = file.name


def _can_be_read(name: str, formats: Sequence[MatchedBy]) -> bool:
    return name.lower().endswith(tuple(suffix for format in formats for suffix in format.suffixes))


def _looks_local(dataset: str, formats: Sequence[MatchedBy]) -> bool:
    local = dataset.startswith(("/", "./", "../", "~")) or dataset.count("/") > 1 or _can_be_read(dataset, formats)
    return local or what_is(Path(dataset)) is not None


def is_local(dataset: str, formats: Sequence[MatchedBy]) -> bool:
    """Whether a name is meant for something on this machine, there or not."""
    path = Path(os.path.expanduser(dataset))
    return path.exists() or path.is_symlink() or glob.has_magic(dataset) or _looks_local(dataset, formats)
