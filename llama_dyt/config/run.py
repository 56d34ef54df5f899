"""A whole run: the settings that their owners declare, built from flags, turned into YAML and back.

Nothing here knows what a model, a booster or a dataset is. The parts of the program that own settings are found by
name (`OWNERS`), and so are the seams whose entries bring settings of their own (`SEAMS`); a user's are declared by a
module given to `--import`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llama_dyt.config.options import KINDS, Kind, Option, options_of
from llama_dyt.config.yaml_file import KIND_KEY, canonical_values, dump, load_mapping
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.suggest import unknown

OWNERS = (
    "llama_dyt.models.settings",
    "llama_dyt.models.adapters.settings",
    "llama_dyt.data.settings",
    "llama_dyt.boosters.settings",
    "llama_dyt.training.settings",
)
"""The modules with an `OWNED` each, in the order of `--help`."""
SEAMS: tuple[str, ...] = (
    "llama_dyt.norms.spec:NORMS",
    "llama_dyt.models.spec:FAMILIES",
    "llama_dyt.boosters.strategy:STRATEGIES",
    "llama_dyt.training.callbacks.callback:CALLBACKS",
    "llama_dyt.training.trackers.tracker:TRACKERS",
)
"""`module:REGISTRY` of the registries whose entries may have `settings`, a dataclass of options; None is none."""
USERS_SEAMS: tuple[str, ...] = ("llama_dyt.data.formats.format:FORMATS",)
"""Those of which none of ours has settings, and which take long to import: they are asked only once a module of a
user's has imported them."""


def _nothing(*_: Any) -> Iterator[str]:
    return iter(())


@dataclass(frozen=True)
class Owned:
    """The settings of one part of the program, with what is wrong with them.

    Attributes:
        groups: name of the group in a run (`run.NAME`) → dataclass of options.
        problems: (run, world_size, device) → what keeps it from starting. world_size is the number of processes and
            device "cuda" or "cpu"; None leaves out what depends on it. All numbers are within their bounds.
        path_problems: (run) → what is wrong with files and folders, whatever the numbers are.
        warnings: (run, world_size, device, total steps where known) → what is probably not meant.
        settle: (kind, values given, by flag) → puts defaults in place that depend on what was given.
    """

    groups: Mapping[str, type]
    problems: Callable[[RunConfig, int | None, str | None], Iterator[str]] = _nothing
    path_problems: Callable[[RunConfig], Iterator[str]] = _nothing
    warnings: Callable[[RunConfig, int | None, str | None, int | None], Iterator[str]] = _nothing
    settle: Callable[[Kind, dict[str, Any]], Any] = _nothing


_declared: list[Owned] = []


def declare(owned: Owned) -> None:
    """Add settings of a user's own: their flags stand in `--help` from then on.

    Raises:
        ConfigurationError: a group or flag of theirs is there already; nothing is added then.
    """
    _declared.append(owned)
    try:
        groups_of()
    except ConfigurationError:
        _declared.remove(owned)
        raise


def owners() -> list[Owned]:
    """Everything that has settings: ours, what the entries of seams bring, and what users declared."""
    found = [importlib.import_module(name).OWNED for name in OWNERS]
    for seam in SEAMS:
        module, _, registry = seam.partition(":")
        found += _brought_by(getattr(importlib.import_module(module), registry))
    for seam in USERS_SEAMS:
        module, _, registry = seam.partition(":")
        if module in sys.modules:
            found += _brought_by(getattr(sys.modules[module], registry).registered())
    return [*found, *_declared]


def _brought_by(entries: Iterable[Any]) -> list[Owned]:
    return [Owned({entry.name: entry.settings}) for entry in entries if entry.settings is not None]


def groups_of() -> dict[str, type]:
    """The settings dataclasses of a run by the name of their group.

    Raises:
        ConfigurationError: two owners have a group or a flag of one name.
    """
    groups: dict[str, type] = {}
    flags: dict[str, str] = {}
    for owned in owners():
        for group, settings in owned.groups.items():
            if group in groups and groups[group] is not settings:
                raise ConfigurationError(f"settings named {group!r} are there already; give yours another name")
            groups[group] = settings
            for opt in options_of(settings).values():
                for spelling in (opt.name, *opt.spellings):
                    if flags.setdefault(spelling, group) != group:
                        where = f"{group}: a flag --{spelling} is there already (of {flags[spelling]})"
                        raise ConfigurationError(f"{where}; give yours another name")
    return groups


@dataclass(frozen=True)
class RunConfig:
    """A whole run. Each group of settings is an attribute: `run.booster.tp`.

    Attributes:
        kind: the entry it belongs to.
        groups: name → settings.
    """

    kind: Kind
    groups: Mapping[str, Any]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["groups"][name]
        except KeyError:
            raise AttributeError(f"a run has no settings {name!r}") from None

    @classmethod
    def build(cls, kind: Kind = "pretrain", **flags: Any) -> RunConfig:
        """The run of an entry with some flags given, by long name; the others take that entry's defaults.

        Raises:
            ConfigurationError: a flag the entry does not have, or a value of the wrong type; all of them at once.
        """
        values, problems = canonical_values(flags, all_options(kind), "", kind)
        if problems:
            raise ConfigurationError(problems)
        return cls.settled(kind, values)

    @classmethod
    def settled(cls, kind: Kind, values: dict[str, Any]) -> RunConfig:
        """The run with these converted values, and defaults that depend on what was given put in place."""
        values = dict(values)
        for owned in owners():
            owned.settle(kind, values)
        groups = {}
        for name, settings in groups_of().items():
            chosen = {}
            for opt in options_of(settings).values():
                value = values.get(opt.name, opt.default[kind])
                # The shell does this for a command line, nobody for a YAML or for --save_dir=~/x.
                chosen[opt.field] = os.path.expanduser(value) if opt.path and isinstance(value, str) else value
            groups[name] = settings(**chosen)
        return cls(kind, groups)

    def replace(self, **flags: Any) -> RunConfig:
        """A copy with some flags changed, by long name, taken as they are."""
        groups = {}
        for name, settings in self.groups.items():
            options = options_of(type(settings))
            mine = {options[flag].field: flags.pop(flag) for flag in options if flag in flags}
            groups[name] = replace(settings, **mine)
        if flags:
            raise TypeError(f"a run has no field {', '.join(flags)}")
        return replace(self, groups=groups)

    def flags(self) -> dict[str, Any]:
        """The value of every flag the entry has, by long name, in the order they are declared."""
        return {o.name: getattr(self.groups[group], o.field) for group, o in grouped_options(self.kind)}

    def to_yaml(self) -> str:
        """Every flag of the entry as a YAML key, and `kind`. It can be read back, or given to --config_file.

        Left out is what is no part of a run (`Option.written`).
        """
        values = self.flags()
        kept = {opt.name: values[opt.name] for opt in all_options(self.kind) if opt.written}
        kept = {name: list(value) if isinstance(value, tuple) else value for name, value in kept.items()}
        return dump({KIND_KEY: self.kind, **kept})

    @classmethod
    def from_yaml(cls, source: str | Path, kind: Kind | None = None) -> RunConfig:
        """The run in a YAML text (str) or file (Path), such as the `config.yaml` of a --save_dir.

        Args:
            source: the YAML; keys it does not name take the entry's defaults.
            kind: the entry; None takes the YAML's own `kind`, or pretrain.

        Raises:
            ConfigurationError: it cannot be read, or a key or value is wrong; all problems at once.
        """
        mapping, where = load_mapping(source)
        kind = kind or mapping.get(KIND_KEY, "pretrain")
        if kind not in KINDS:
            raise ConfigurationError(f"{where}{KIND_KEY}: {unknown('entry', str(kind), KINDS)}")
        values, problems = canonical_values(mapping, all_options(kind), where, kind)
        if problems:
            raise ConfigurationError(problems)
        return cls.settled(kind, values)


def grouped_options(kind: Kind | None = None) -> Iterator[tuple[str, Option]]:
    """(group, option) of every flag the entry has, in order; of every flag there is, for None."""
    for group, settings in groups_of().items():
        for opt in options_of(settings).values():
            if kind is None or kind in opt.entries:
                yield group, opt


def all_options(kind: Kind | None = None) -> list[Option]:
    """Every flag the entry has, in order; every flag there is, for None."""
    return [opt for _, opt in grouped_options(kind)]
