"""How a dataclass field says everything there is to know about its flag, and how a text becomes its value.

A flag, its YAML key and its help have one source and cannot drift apart.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from fractions import Fraction
from functools import cache
from typing import Any

from llama_dyt.core.problem import Problem
from llama_dyt.core.suggest import unknown

Kind = typing.Literal["pretrain", "finetune", "benchmark"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)

TRAINING: tuple[Kind, ...] = ("pretrain", "finetune")
"""The entries that train."""

Choices = tuple[str, ...] | Callable[[], tuple[str, ...]] | None
Aliases = dict[str, str] | Callable[[], dict[str, str]]

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
NONE_WORDS = ("none", "null")


@dataclass(frozen=True)
class Option:
    """One flag: `--name` on the command line, `name:` in a YAML, `settings.field` in the program.

    Args:
        name: the long flag without its dashes.
        field: the field's name; the flag's, unless that is a word of Python's own.
        help: one sentence or two, for `--help` and the documentation.
        value_type: str, int, float or bool; of the parts where the flag may be repeated.
        repeated: it may be given several times; its value is a tuple.
        optional: None is a value too ("none" on the command line, null in YAML).
        default: for each entry.
        short: the short flag for each entry that has one, such as "-c".
        spellings: other long names that mean the same.
        given_choices: what a str may be, or a function that gives it when it is asked for, so that what users register
            is in it; None for anything.
        given_aliases: other words for some of the choices, likewise.
        at_least, above, at_most: bounds of a number; `above` is not itself allowed.
        entries: the entries that have the flag.
        metavar: what `--help` calls the value.
        path: it names, or may name, a file or folder; `~` is the user's own.
        bare: the value of a flag that is given without one; None where it needs one.
        written: it stands in a run's YAML; what only says how a run is asked for does not.
        listed: of a repeated one, one value may hold several, with commas between them.
    """

    name: str
    field: str
    help: str
    value_type: type
    repeated: bool
    optional: bool
    default: dict[str, Any]
    short: dict[str, str]
    spellings: tuple[str, ...]
    given_choices: Choices
    given_aliases: Aliases
    at_least: float | None
    above: float | None
    at_most: float | None
    entries: tuple[str, ...]
    metavar: str | None
    bare: str | None = None
    path: bool = False
    written: bool = True
    listed: bool = False

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def choices(self) -> tuple[str, ...] | None:
        """What a str may be; None for anything."""
        return self.given_choices() if callable(self.given_choices) else self.given_choices

    @property
    def choice_aliases(self) -> dict[str, str]:
        """Other words for some of the choices → the choice."""
        return self.given_aliases() if callable(self.given_aliases) else self.given_aliases

    def convert(self, value: Any) -> Any:
        """`value`, a text from the command line or whatever YAML made of it, as this option's type.

        Raises:
            ValueError: it is not one; the message says why and what would be.
        """
        if value is None or (self.optional and isinstance(value, str) and value.lower() in NONE_WORDS):
            if self.optional:
                return None
            raise ValueError(f"needs {_NEEDS[self.value_type]}")
        if self.repeated:
            return tuple(_CONVERTERS[self.value_type](part) for part in _parts(value, self.listed))
        converted = _CONVERTERS[self.value_type](value)
        if self.choices is None:
            return converted
        plain = converted if converted in self.choices else converted.lower()
        plain = self.choice_aliases.get(plain, plain)
        if plain not in self.choices:
            own = "; one of your own is brought in by --import its.module" if callable(self.given_choices) else ""
            raise ValueError(unknown(self.name, converted, [*self.choices, *self.choice_aliases]) + own)
        return plain

    def out_of_range(self, value: Any) -> Problem | None:
        """Why `value` cannot be, or None. None and what is no number is always in range."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        remedy = None
        if not math.isfinite(value):
            remedy = "give a finite number"
        elif self.at_least is not None and value < self.at_least:
            remedy = f"give {self.at_least:g} or more"
        elif self.above is not None and value <= self.above:
            remedy = f"give more than {self.above:g}"
        elif self.at_most is not None and value > self.at_most:
            remedy = f"give at most {self.at_most:.10g}"
        return remedy and Problem(self.name, value, "out of range", remedy, text=f"{self.flag} {value}: {remedy}")


def option(
    default: Any,
    help: str,
    *,
    short: str | dict[str, str] | None = None,
    spellings: tuple[str, ...] = (),
    name: str | None = None,
    choices: Choices = None,
    choice_aliases: Aliases | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    entries: tuple[str, ...] = KINDS,
    defaults: dict[str, Any] | None = None,
    metavar: str | None = None,
    bare: str | None = None,
    path: bool = False,
    written: bool = True,
    listed: bool = False,
) -> Any:
    """A dataclass field with its flag. `defaults` names the entries whose default differs; `short` alone holds for
    all entries that have the flag; `name` is the flag's where it cannot be the field's. The rest is `Option`'s."""
    short_by_entry = dict.fromkeys(entries, short) if isinstance(short, str) else dict(short or {})
    metadata = {
        "name": name,
        "help": help,
        "short": short_by_entry,
        "spellings": spellings,
        "choices": choices,
        "choice_aliases": choice_aliases or {},
        "at_least": at_least,
        "above": above,
        "at_most": at_most,
        "entries": entries,
        "defaults": defaults or {},
        "metavar": metavar,
        "bare": bare,
        "path": path,
        "written": written,
        "listed": listed,
    }
    return field(default=default, metadata=metadata, compare=written)


@cache
def options_of(settings: type) -> dict[str, Option]:
    """The options of one settings dataclass, by name, in the order they are declared; other fields of it are none."""
    hints = typing.get_type_hints(settings)
    options = [_option_of(entry, hints[entry.name]) for entry in fields(settings) if entry.metadata]
    return {option.name: option for option in options}


def _option_of(declared: Field, hint: Any) -> Option:
    value_type, optional, repeated = hint, False, False
    if isinstance(hint, types.UnionType):
        (value_type,) = (part for part in typing.get_args(hint) if part is not type(None))
        optional = True
    if typing.get_origin(value_type) is tuple:
        value_type, repeated = typing.get_args(value_type)[0], True
    assert declared.default is not MISSING, f"{declared.name} has no default"
    meta = declared.metadata
    return Option(
        name=meta["name"] or declared.name,
        field=declared.name,
        help=meta["help"],
        value_type=value_type,
        repeated=repeated,
        optional=optional,
        default={entry: meta["defaults"].get(entry, declared.default) for entry in {*KINDS, *meta["entries"]}},
        short=meta["short"],
        spellings=meta["spellings"],
        given_choices=meta["choices"],
        given_aliases=meta["choice_aliases"],
        at_least=meta["at_least"],
        above=meta["above"],
        at_most=meta["at_most"],
        entries=meta["entries"],
        metavar=meta["metavar"],
        bare=meta["bare"],
        path=meta["path"],
        written=meta["written"],
        listed=meta["listed"],
    )


def _parts(value: Any, listed: bool) -> list[Any]:
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if not listed:
        return parts
    words = [part.split(",") if isinstance(part, str) else [part] for part in parts]
    return [one.strip() if isinstance(one, str) else one for several in words for one in several]


def _to_text(value: Any) -> str:
    if isinstance(value, (dict, list, bool)):
        raise ValueError(f"{value!r} is not a text")
    return str(value)


def _to_int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            return int(value)
        except ValueError:
            pass
    raise ValueError(f"{value!r} is not a whole number; give one such as 16")


def _to_float(value: Any) -> float:
    # YAML 1.1 reads 3e-4 as a text, so texts are as good as numbers wherever they come from.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            # Fraction reads a text such as 1/3, and not the infinities that float does.
            return float(Fraction(value)) if isinstance(value, str) and "/" in value else float(value)
        except (ValueError, ZeroDivisionError):
            pass
    raise ValueError(f"{value!r} is not a number; give one such as 3e-4")


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise ValueError(f"{value!r} is neither true nor false")


_CONVERTERS = {str: _to_text, int: _to_int, float: _to_float, bool: _to_bool}
_NEEDS = {str: "a value", int: "a whole number", float: "a number", bool: "true or false"}
