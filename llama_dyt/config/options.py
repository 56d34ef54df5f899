"""How a dataclass field says everything there is to know about its flag, and how a text becomes its value.

Its own file because run.py (which declares), cli.py (which builds argparse) and the YAML reader all stand on it:
a flag, its YAML key and its help have one source and cannot drift apart.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, Field, dataclass, field, fields
from fractions import Fraction
from functools import cache
from typing import Any

from llama_dyt.config.suggest import unknown

Kind = typing.Literal["pretrain", "finetune", "benchmark"]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)

TRUE_WORDS = ("true", "yes", "on", "1")
FALSE_WORDS = ("false", "no", "off", "0")
NONE_WORDS = ("none", "null")


@dataclass(frozen=True)
class Option:
    """One flag: `--name` on the command line, `name:` in a YAML, `settings.name` in the program.

    Args:
        name: the long flag without its dashes, and the field's name.
        help: one sentence or two, for `--help` and the documentation.
        value_type: str, int, float or bool.
        optional: None is a value too ("none" on the command line, null in YAML).
        default: for each entry.
        short: the short flag for each entry that has one, such as "-c".
        spellings: other long names that mean the same.
        choices: what a str may be, or None for anything.
        choice_aliases: other words for some of the choices.
        at_least, above, at_most: bounds of a number; `above` is not itself allowed.
        entries: the entries that have the flag.
        metavar: what `--help` calls the value.
        bare: the value of a flag that is given without one; None where it needs one.
    """

    name: str
    help: str
    value_type: type
    optional: bool
    default: dict[str, Any]
    short: dict[str, str]
    spellings: tuple[str, ...]
    choices: tuple[str, ...] | None
    choice_aliases: dict[str, str]
    at_least: float | None
    above: float | None
    at_most: float | None
    entries: tuple[str, ...]
    metavar: str | None
    bare: str | None = None

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    def convert(self, value: Any) -> Any:
        """`value`, a text from the command line or whatever YAML made of it, as this option's type.

        Raises:
            ValueError: it is not one; the message says why and what would be.
        """
        if value is None or (self.optional and isinstance(value, str) and value.lower() in NONE_WORDS):
            if self.optional:
                return None
            raise ValueError(f"needs {_NEEDS[self.value_type]}")
        converted = _CONVERTERS[self.value_type](value)
        if self.choices is None:
            return converted
        plain = converted.lower()
        plain = self.choice_aliases.get(plain, plain)
        if plain not in self.choices:
            raise ValueError(unknown(self.name, converted, [*self.choices, *self.choice_aliases]))
        return plain

    def out_of_range(self, value: Any) -> str | None:
        """One line that says why `value` cannot be, or None. None and what is no number is always in range."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return None
        if not math.isfinite(value):
            return f"{self.flag} {value}: give a finite number"
        if self.at_least is not None and value < self.at_least:
            return f"{self.flag} {value}: give {self.at_least:g} or more"
        if self.above is not None and value <= self.above:
            return f"{self.flag} {value}: give more than {self.above:g}"
        if self.at_most is not None and value > self.at_most:
            return f"{self.flag} {value}: give at most {self.at_most:.10g}"
        return None


def option(
    default: Any,
    help: str,
    *,
    short: str | dict[str, str] | None = None,
    spellings: tuple[str, ...] = (),
    choices: tuple[str, ...] | None = None,
    choice_aliases: dict[str, str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    entries: tuple[str, ...] = KINDS,
    defaults: dict[str, Any] | None = None,
    metavar: str | None = None,
    bare: str | None = None,
    compare: bool = True,
) -> Any:
    """A dataclass field with its flag. `defaults` names the entries whose default differs; `short` alone holds for
    all entries that have the flag. The rest is `Option`'s."""
    short_by_entry = dict.fromkeys(entries, short) if isinstance(short, str) else dict(short or {})
    metadata = {
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
    }
    return field(default=default, metadata=metadata, compare=compare)


@cache
def options_of(settings: type) -> dict[str, Option]:
    """The options of one settings dataclass, by name, in the order they are declared."""
    hints = typing.get_type_hints(settings)
    return {entry.name: _option_of(entry, hints[entry.name]) for entry in fields(settings)}


def _option_of(declared: Field, hint: Any) -> Option:
    value_type, optional = hint, False
    if isinstance(hint, types.UnionType):
        (value_type,) = (part for part in typing.get_args(hint) if part is not type(None))
        optional = True
    assert declared.default is not MISSING, f"{declared.name} has no default"
    meta = declared.metadata
    return Option(
        name=declared.name,
        help=meta["help"],
        value_type=value_type,
        optional=optional,
        default={entry: meta["defaults"].get(entry, declared.default) for entry in {*KINDS, *meta["entries"]}},
        short=meta["short"],
        spellings=meta["spellings"],
        choices=meta["choices"],
        choice_aliases=meta["choice_aliases"],
        at_least=meta["at_least"],
        above=meta["above"],
        at_most=meta["at_most"],
        entries=meta["entries"],
        metavar=meta["metavar"],
        bare=meta["bare"],
    )


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
