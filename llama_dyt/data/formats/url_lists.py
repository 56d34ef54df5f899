"""Lists of addresses of files on web servers (`urls/arxiv.txt`, as RedPajama-Data-1T has), and single such addresses.

One file after the other is fetched while it is read, the next one meanwhile, once for all processes of a machine, into
the bounded cache of `core.store_copies`. What is wrong with an address is told with its list and line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from llama_dyt.core.errors import ConfigurationError, DataError
from llama_dyt.core.store import at
from llama_dyt.core.store_path import StorePath
from llama_dyt.data.formats.fetched import told
from llama_dyt.data.formats.file_source import FileSource
from llama_dyt.data.formats.format import Format, readers
from llama_dyt.data.formats.matching import Match, match_files, refuse_packed_copies
from llama_dyt.data.formats.record_files import DataFile, Fetched
from llama_dyt.data.formats.sources import ReadOptions, Source

LIST = re.compile(r"(?:^|/)urls/([^/]+)\.txt$")
"""A list of a repository or a folder, and its name."""
_ADDRESS = re.compile(r"https?://", re.IGNORECASE)
_SUFFIX = ".txt"
_BEGINNING = 1 << 12
_ALL = "default"  # RedPajama's own word for all of its slices
_ASKED_AT_ONCE = 16
_SHOWN = 3


@dataclass(frozen=True)
class Listed:
    """An address and the line of a list that it stands in; one that was given by itself stands in none ("")."""

    dataset: str
    list: str
    line: int
    place: StorePath

    def wrong(self, error: OSError) -> DataError:
        before = f"{self.dataset}: {self.list}, line {self.line}: " if self.list else ""
        remedy = "; take the line out, or read other lists" if isinstance(error, FileNotFoundError) and before else ""
        return DataError(f"{before}{told(str(self.place), error)}{remedy}", about=self.dataset)

    def fetch(self) -> Fetched:
        try:
            return self.place.store.copy_of(self.place)
        except OSError as error:
            raise self.wrong(error) from None

    def size(self) -> int | DataError:
        try:
            sizes = self.place.store.list(str(self.place))
            if str(self.place) not in sizes:
                raise FileNotFoundError(f"{self.place}: the server has no such file")
            return sizes[str(self.place)]
        except OSError as error:
            return self.wrong(error)


class ListedSource(FileSource):
    """The records of files that lists name, list after list, in the order of their lines.

    Args:
        lists: name → content, in order.

    Raises:
        DataError: a line is no address, or no list has one of a file that can be read.
    """

    def __init__(self, dataset: str, lists: Mapping[str, str], options: ReadOptions):
        match, self._listed = match_listed(dataset, lists)
        super().__init__(dataset, readers(), options, match)

    def sized_files(self) -> Sequence[DataFile]:
        with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
            sizes = list(pool.map(lambda file: self._listed[file.name].size(), self.files))
        problems = [str(size) for size in sizes if isinstance(size, DataError)]
        if problems:
            more = f"\n(and {len(problems) - _SHOWN:,} more such lines)" if len(problems) > _SHOWN else ""
            raise DataError("\n".join(problems[:_SHOWN]) + more, about=self.dataset)
        return [replace(file, size=size) for file, size in zip(self.files, sizes, strict=True)]

    def problems(self) -> list[DataError]:
        """What would stop the run, found quickly: the server is asked for the size of the first file of each list."""
        first = {listed.list: listed for listed in reversed(self._listed.values())}
        return [size for listed in first.values() if isinstance(size := listed.size(), DataError)][:1]


class UrlLists(Format):
    name = "urls"
    order = 35
    is_remote = True

    def matches(self, dataset: str) -> bool:
        return _ADDRESS.match(dataset) is not None or _is_list(_local(dataset)) or bool(_lists_below(dataset))

    def open(self, dataset: str, options: ReadOptions) -> Source:
        if not _ADDRESS.match(dataset):
            path = _local(dataset)
            names = _lists_below(dataset) or [path.name]
            lists = {name: _read(path / name if path.is_dir() else path) for name in choose(dataset, names, options)}
            return ListedSource(dataset, lists, options)
        place = _place(dataset)
        if not place.name.lower().endswith(_SUFFIX):
            return ListedSource(dataset, {"": dataset}, options)
        try:
            text = place.read_bytes().decode(errors="replace")
        except OSError as error:
            raise DataError(told(dataset, error), about=dataset) from None
        return ListedSource(dataset, {place.name: text}, options)


def choose(dataset: str, names: Sequence[str], options: ReadOptions) -> list[str]:
    """Of lists called `…/urls/NAME.txt` that of `--task_name`, or all.

    Raises:
        DataError: there is none of that name.
    """
    parts = {match[1]: name for name in names if (match := LIST.search(name))}
    if options.task in (None, _ALL) or not parts:
        return sorted(names)
    if options.task not in parts:
        message = f"has no part {options.task!r}; choose with --task_name one of: {', '.join(sorted(parts))}"
        raise DataError(f"'{dataset}' {message}", about=dataset, noun="dataset")
    return [parts[options.task]]


def match_listed(dataset: str, lists: Mapping[str, str]) -> tuple[Match, dict[str, Listed]]:
    """(what is read, name of a file → where it is listed); as `matching.match_files`. Nothing is asked of a server.

    Raises:
        DataError: a line is no address, or no list has one of a file that can be read.
    """
    match, wrong, found = Match(readers()), [], {}
    for name, text in lists.items():
        for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), start=1):
            address = line.strip()
            if not address or address.startswith("#"):
                continue
            try:
                if not _ADDRESS.match(address) or len(address.split()) > 1:
                    raise ConfigurationError("is no address of a file (https://…)")
                place = at(address)
            except ConfigurationError:
                shown = address if len(address) <= 80 else f"{address[:80]}…"
                where = f"{name}, line {number}: " if name else ""
                wrong.append(f"{dataset}: {where}{shown!r} is no address of a file (https://…)")
                continue
            path = urlsplit(address)
            found.setdefault(
                f"{path.netloc.rpartition('@')[2]}{unquote(path.path)}", Listed(dataset, name, number, place)
            )
    if wrong:
        more = f", and {len(wrong) - 1:,} more lines are none" if len(wrong) > 1 else ""
        raise DataError(f"{wrong[0]}{more}; correct the list", about=dataset)
    root = os.path.commonpath([os.path.dirname(path) for path in found]) if found else ""
    listed = {}
    for path, one in found.items():
        name = os.path.relpath(path, root or ".")
        if match.can_be_read(name):
            listed[name] = one
            match.files.append(DataFile(one.place, name, None, one.fetch))
        else:
            match.pass_over(name, f"not {match.readable}")
    if not match.files:
        reasons = f"names no {match.readable} file (found {match.reasons})" if match.passed_over else "lists nothing"
        raise DataError(f"{dataset}: {reasons}; check what it names", about=dataset)
    refuse_packed_copies(dataset, match.files)
    return match, listed


def _place(address: str) -> StorePath:
    try:
        return at(address, "dataset")
    except ConfigurationError as error:
        raise DataError(f"{address}: {error.problems[0].reason}", about=address) from None


def _local(dataset: str) -> Path:
    return Path(os.path.expanduser(dataset))


def _is_list(path: Path) -> bool:
    """Whether a file's first line that holds something is an address."""
    if path.suffix.lower() != _SUFFIX or not path.is_file():
        return False
    try:
        with open(path, encoding="utf-8-sig", errors="replace") as stream:
            lines = stream.read(_BEGINNING).splitlines()
    except OSError:
        return False
    first = next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "")
    return _ADDRESS.match(first) is not None


def _lists_below(dataset: str) -> list[str]:
    """The lists in `urls` of a folder that has no other data; [] where there are none."""
    folder = _local(dataset)
    if not (folder / "urls").is_dir():
        return []
    names = [f"urls/{path.name}" for path in sorted((folder / "urls").iterdir()) if _is_list(path)]
    if not names:
        return []
    try:
        match_files(dataset, readers())
    except DataError:
        return names
    return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", about=path) from None


FORMAT = UrlLists()
