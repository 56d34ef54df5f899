"""Entries by name: what a seam has, ours and users' alike, found without importing what an entry only builds later.

Ours are found by looking into a folder, so that one more file there is one more entry, and no list names them. A user's
come from a module given by `--import` (`core.extensions`), which calls `register`.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

from llama_dyt.core import extensions
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.suggest import unknown


class Named(Protocol):
    """What a registry holds.

    Attributes:
        name: by which it is asked for.
        aliases: other names for it; may be absent.
        order: place among ours in help and messages; may be absent: then by the name of its module.
    """

    name: str


E = TypeVar("E", bound=Named)


class Registry(Generic[E]):
    """The entries of one seam.

    Args:
        what: what an entry is, for messages: "norm".
        folder: package whose modules each hold entries of ours, under the attribute `attribute`; these modules are
            light: they import neither torch nor the engine; None where all entries are users'.
        attribute: name of the module attribute: one entry, or a tuple of them.
        flag: the flag that takes a name, without dashes; for messages.
        in_workers: data workers look entries up too, so they import the modules that register some.
    """

    def __init__(
        self, what: str, folder: str | None, attribute: str, flag: str | None = None, in_workers: bool = False
    ) -> None:
        self._what = what
        self._folder = folder
        self._attribute = attribute
        self._flag = flag
        self._entries: dict[str, E] = {}
        self._own: dict[str, E] | None = None
        self._homes: dict[str, str] = {}
        self._in_workers = in_workers

    def register(self, entry: E) -> E:
        """Add an entry; returns it.

        Raises:
            ConfigurationError: its name, or one of its aliases, is taken.
        """
        known = self._all()
        for name in (entry.name, *_aliases(entry)):
            taken = known.get(self._canonical(name) or "")
            if taken is not None and taken is not entry:
                home = self._homes[taken.name]
                raise ConfigurationError(
                    f"a {self._what} named {name!r} is there already ({home}); give yours another name"
                )
        self._entries[entry.name] = entry
        if self._in_workers:
            extensions.workers_need_it()
        frame = sys._getframe()
        while frame.f_code.co_name == "register":  # of this class and of those that derive from it
            frame = frame.f_back
        self._homes[entry.name] = frame.f_globals["__name__"]
        return entry

    def names(self) -> tuple[str, ...]:
        """All names, ours first; without aliases."""
        return tuple(self._all())

    def aliases(self) -> dict[str, str]:
        """Alias → name."""
        return {alias: entry.name for entry in self._all().values() for alias in _aliases(entry)}

    def registered(self) -> tuple[E, ...]:
        """The entries of users, without a look into the folder of ours."""
        return tuple(self._entries.values())

    def __iter__(self) -> Iterator[E]:
        return iter(self._all().values())

    def find(self, name: str) -> E | None:
        """The entry of a name or alias (letter case and `-` for `_` do not matter), or None."""
        canonical = self._canonical(name)
        return None if canonical is None else self._all()[canonical]

    def get(self, name: str) -> E:
        """The entry of a name or alias.

        Raises:
            ConfigurationError: there is none; the nearest is named, and how one of the user's own is brought in.
        """
        entry = self.find(name)
        if entry is None:
            guess = unknown(self._what, name, [*self._all(), *self.aliases()])
            where = f"--{self._flag}: " if self._flag else ""
            raise ConfigurationError(f"{where}{guess}; one of your own is brought in by --import its.module")
        return entry

    def _canonical(self, name: str) -> str | None:
        known = self._all()
        if name in known:
            return name
        plain = name.strip().lower().replace("-", "_")
        plain = self.aliases().get(plain, plain)
        return plain if plain in known else None

    def _all(self) -> dict[str, E]:
        if self._own is None:
            path = importlib.import_module(self._folder).__path__ if self._folder else []
            entries: list[E] = []
            for module in sorted(pkgutil.iter_modules(path), key=lambda found: found.name):
                home = f"{self._folder}.{module.name}"
                held = getattr(importlib.import_module(home), self._attribute, ())
                held = held if isinstance(held, tuple) else (held,)
                entries += held
                self._homes |= {entry.name: home for entry in held}
            self._own = {entry.name: entry for entry in sorted(entries, key=lambda entry: getattr(entry, "order", 0))}
        return {**self._own, **self._entries}


def _aliases(entry: Named) -> tuple[str, ...]:
    return tuple(getattr(entry, "aliases", ()))
