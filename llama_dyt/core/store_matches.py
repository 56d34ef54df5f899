"""What an address with wildcards leads to in a store: `s3://bucket/text/**/*.jsonl.zst`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from glob import has_magic

from llama_dyt.core.store import Location, at, store_of


@dataclass(frozen=True)
class Found:
    """The files of an address.

    Attributes:
        base: the folder below which they are.
        by_pattern: the address has wildcards.
        sizes: name relative to `base` → bytes, in the order of names.
    """

    base: Location
    by_pattern: bool
    sizes: dict[str, int]


def found_at(address: str, flag: str) -> Found:
    """A file, all of a folder, or what fits wildcards, of which ** stands for any number of folders.

    Args:
        flag: by which the address was given, for messages.

    Raises:
        ConfigurationError: no store has its scheme.
        OSError: the store does not answer.
    """
    place = at(address, flag)
    parts = address.rstrip("/").split("/")
    fixed = next((number for number, part in enumerate(parts) if number > 2 and has_magic(part)), len(parts))
    pattern = parts[fixed:]
    base = at("/".join(parts[:fixed]), flag)
    sizes = store_of(base).sizes(base)
    if not pattern and place.is_file():
        return Found(place.parent, False, {place.name: place.stat().st_size})
    fitting = {name: size for name, size in sorted(sizes.items()) if not pattern or _fits(name.split("/"), pattern)}
    return Found(base, bool(pattern), fitting)


def _fits(names: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not names
    if pattern[0] == "**":
        return any(_fits(names[number:], pattern[1:]) for number in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], pattern[0]) and _fits(names[1:], pattern[1:])
