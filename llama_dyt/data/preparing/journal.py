"""What a preparation has finished so far, on disk: one small file a stretch of text, so that a stop costs little.

It is the whole of resuming: a shard without an entry here does not count and is written again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llama_dyt.core import files
from llama_dyt.core.errors import DataError
from llama_dyt.data.formats.manifest import SPLITS, Shard
from llama_dyt.data.formats.shard_writer import writing
from llama_dyt.data.preparing.parts import Part

SETTINGS = "settings.json"


@dataclass(frozen=True)
class Entry:
    """One stretch of a part: what of it went where, and where the part goes on.

    Attributes:
        part, number: of the part, and of the stretch in it.
        shards: at most one a split.
        tokens: in all of them.
        bad_lines, empty: records left out in this stretch.
        next: place in the part at which the next stretch begins; None when this is the last one.
        truncated: the last one because the next document would not have been allowed any more.
    """

    part: int
    number: int
    shards: list[Shard]
    tokens: int
    bad_lines: int
    empty: int
    next: Any
    truncated: bool

    @property
    def name(self) -> str:
        """Of the stretch, and of the shards in it."""
        return f"{self.part:06d}_{self.number:05d}"


class Journal:
    """The entries of one machine.

    Args:
        output: folder in which the shards lie.
        folder: where the entries are kept.
    """

    def __init__(self, output: Path, folder: Path):
        self.output, self.folder = output, folder

    def add(self, entry: Entry) -> None:
        with writing(self.folder / entry.name):
            files.write_json(self.folder / f"{entry.name}.json", asdict(entry))

    def entries(self, part: int) -> list[Entry]:
        """Those of a part, from its first stretch on, without a gap."""
        found = []
        while (file := self.folder / f"{part:06d}_{len(found):05d}.json").is_file():
            found.append(_read(file))
        return found

    def kept(self, part: int, limit: int | None) -> list[Entry]:
        """The entries of a part that are good for at most `limit` tokens of it; the others and their shards go."""
        kept: list[Entry] = []
        tokens = 0
        for entry in self.entries(part):
            tokens += entry.tokens
            if limit is not None and tokens > limit:
                break
            kept.append(entry)
        self.drop(part, len(kept))
        return kept

    def drop(self, part: int, first: int = 0) -> None:
        """Forget a part's entries from number `first` on, and remove their shards."""
        for entry in reversed(self.entries(part)[first:]):
            (self.folder / f"{entry.name}.json").unlink()
            for shard in entry.shards:
                shard.tokens_file(self.output).unlink(missing_ok=True)
                shard.index_file(self.output).unlink(missing_ok=True)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _read(file: Path) -> Entry:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return Entry(**{**content, "shards": [Shard(**shard) for shard in content["shards"]]})
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(f"{file}: cannot be read ({error}); remove the output folder and prepare anew") from error


def remove_strays(output: Path, parts: Sequence[Part], journal: Journal) -> None:
    """Remove every file of these parts that no entry speaks of: what a process that was killed left behind."""
    numbers = {part.number for part in parts}
    shards = [shard for number in numbers for entry in journal.entries(number) for shard in entry.shards]
    known = {file(output) for shard in shards for file in (shard.tokens_file, shard.index_file)}
    for split in SPLITS:
        folder = output / split
        for file in list(folder.iterdir()) if folder.is_dir() else ():
            number = file.name.removeprefix(".")[:6]
            if file not in known and number.isdigit() and int(number) in numbers:
                with contextlib.suppress(OSError):
                    file.unlink()
