"""From a command line and a YAML to a run: argparse built from the settings' fields, all mistakes told together.

argparse stops at the first mistake, so it is asked only to take the line apart; values are converted here, which lets
every problem of a run be reported in one go. jsonargparse and tyro stop there too (docs/experiments.md).
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_dyt.config.check import collect_problems
from llama_dyt.config.options import Kind, Option
from llama_dyt.config.run import RunConfig, all_options, grouped_options, groups_of
from llama_dyt.config.yaml_file import canonical_values, load_mapping
from llama_dyt.core import extensions
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.core.problem import Problem
from llama_dyt.core.suggest import unknown

_NO_VALUE = object()
"""What stands for the value of a flag that needs one and was given none."""

_NEGATIVE_NUMBER = re.compile(r"-[\d.]+(e[-+]?\d+)?", re.IGNORECASE)

_WHAT = {
    "pretrain": "Pretrain a LLaMA with Dynamic Tanh on a Colossal-AI booster.",
    "finetune": "Fine-tune a model on prompts and completions, on a Colossal-AI booster.",
    "benchmark": "Measure training throughput on synthetic data: memory, samples a second, TFLOPS a device.",
}


@dataclass(frozen=True)
class Entry:
    """A program with flags: its name without `.py`, what it does, and its flags in groups.

    Attributes:
        groups: (title, description, flags), in the order of `--help`.
        elsewhere: flags of other programs, so that one given here can be told from one that is misspelt.
    """

    name: str
    what: str
    groups: tuple[tuple[str, str, tuple[Option, ...]], ...]
    elsewhere: tuple[Option, ...] = ()

    @property
    def options(self) -> list[Option]:
        return [opt for _, _, options in self.groups for opt in options]


def entry_of(kind: Kind) -> Entry:
    """The entry of a run."""
    titles: dict[str, list[Option]] = {}
    for group, opt in grouped_options(kind):
        titles.setdefault(group, []).append(opt)
    groups = tuple((title, groups_of()[title].__doc__, tuple(options)) for title, options in titles.items())
    return Entry(kind, _WHAT[kind], groups, tuple(all_options()))


def parse(
    kind: Kind, argv: Sequence[str] | None = None, *, world_size: int | None = None, device: str | None = None
) -> RunConfig:
    """The run that a command line asks for. `--help` prints and raises SystemExit(0), as argparse does.

    Args:
        kind: the entry.
        argv: the words after the program's name; None takes `sys.argv`.
        world_size, device: passed on to `check.collect_problems`; None leaves out what depends on them.

    Raises:
        ConfigurationError: all that is wrong with it, one problem a line.
    """
    run, problems = read(kind, argv)
    problems += [problem for problem in collect_problems(run, world_size, device) if problem not in problems]
    if problems:
        raise ConfigurationError(problems)
    return run


def read(kind: Kind, argv: Sequence[str] | None = None) -> tuple[RunConfig, list[str]]:
    """(run, problems) of a command line without judging the values: a flag that cannot be read has its default.

    What it names by --import is imported first.

    Raises:
        ConfigurationError: what was imported brings flags that are there already, so that none can be read.
    """
    problems = import_extensions(argv)
    values, found = read_values(entry_of(kind), argv)
    return RunConfig.settled(kind, values), [*problems, *found]


def import_extensions(argv: Sequence[str] | None = None) -> list[str]:
    """Import the user's modules that a command line, or the YAML it names, asks for; returns what is wrong.

    It comes before the flags are read, since these modules may bring some.
    """
    asking = _Parser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    asking.add_argument("--import", dest="imports", action="append", nargs="?", default=[])
    asking.add_argument("--config_file", "--config-file", nargs="?", default=None)
    given, _ = asking.parse_known_args(list(sys.argv[1:] if argv is None else argv))
    named = [name for name in given.imports if name]
    if not named and given.config_file:
        try:
            mapping, _ = load_mapping(Path(given.config_file).expanduser())
        except ConfigurationError:
            mapping = {}  # told where its keys are read
        found = mapping.get("import")
        named = [name for name in (found if isinstance(found, list) else [found]) if isinstance(name, str)]
    return list(extensions.load(named))


def read_values(entry: Entry, argv: Sequence[str] | None = None) -> tuple[dict[str, Any], list[str]]:
    """(values that were given, by long name and converted; problems) of an entry's command line and its YAML."""
    argv = list(sys.argv[1:] if argv is None else argv)
    options = {opt.name: opt for opt in entry.options}
    argv, problems = _as_argparse_expects(argv, options)
    try:
        given, extra = _parser_of(entry).parse_known_args(argv)
    except ConfigurationError as error:
        return {}, problems + error.problems
    problems += _unknown_problems(entry, extra)
    from_flags: dict[str, Any] = {}
    for name, text in vars(given).items():
        try:
            from_flags[name] = options[name].convert(None if text is _NO_VALUE else text)
            if text is _NO_VALUE or (options[name].repeated and _NO_VALUE in text):
                raise ValueError("needs a value")
        except ValueError as error:
            problems.append(Problem(name, None, str(error)))
    from_file: dict[str, Any] = {}
    if from_flags.get("config_file"):
        try:
            mapping, where = load_mapping(Path(from_flags["config_file"]).expanduser())
            from_file, in_file = canonical_values(mapping, options.values(), where, entry.name)
            problems += in_file
        except ConfigurationError as error:
            problems += error.problems
    return {**from_file, **from_flags}, problems


def read_settings(
    name: str,
    what: str,
    groups: Callable[[], Sequence[tuple[str, type, tuple[Option, ...]]]],
    argv: Sequence[str] | None = None,
) -> tuple[list[Any], list[str]]:
    """(the settings of each group, problems) of a program that is no run; a flag that cannot be read has its default.

    What it names by --import is imported first.

    Args:
        name, what: the program's, without `.py`, and what it does.
        groups: gives (title, dataclass of settings, the flags that fill it), in the order of `--help`; called after the
            imports, which may bring some.
    """
    problems = import_extensions(argv)
    grouped = groups()
    described = tuple((title, settings.__doc__, options) for title, settings, options in grouped)
    values, unread = read_values(Entry(name, what, described, tuple(all_options())), argv)
    problems += unread
    made = []
    for _, settings, options in grouped:
        chosen = {}
        for opt in options:
            value = values.get(opt.name, opt.default[name])
            chosen[opt.field] = os.path.expanduser(value) if opt.path and isinstance(value, str) else value
            if (text := opt.out_of_range(chosen[opt.field])) and text not in problems:
                problems.append(text)
        made.append(settings(**chosen))
    return made, problems


def build_parser(kind: Kind) -> argparse.ArgumentParser:
    """The entry's argparse parser. Values are left as texts; flags that were not given are absent from the result."""
    return _parser_of(entry_of(kind))


def _parser_of(entry: Entry) -> argparse.ArgumentParser:
    parser = _Parser(
        prog=f"{entry.name}.py",
        usage=f"{entry.name}.py [flags]",
        description=entry.what,
        epilog="Hyphens may stand for underscores in a flag. Every flag can be a key of a YAML given by --config_file.",
        formatter_class=_Formatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    for title, description, options in entry.groups:
        group = parser.add_argument_group(title, description)
        for opt in options:
            _add(group, opt, entry.name)
    return parser


def _add(group: argparse._ArgumentGroup, opt: Option, kind: str) -> None:
    is_switch = opt.value_type is bool
    metavar = opt.metavar or ("|".join(opt.choices) if opt.choices else opt.value_type.__name__.upper())
    common = {
        "dest": opt.name,
        "nargs": "?",
        "const": "true" if is_switch else opt.bare or _NO_VALUE,
        "metavar": None if is_switch else metavar,
    }
    if opt.repeated:
        common["action"] = "append"
    shown = [opt.short[kind]] if kind in opt.short else []
    group.add_argument(*shown, opt.flag, help=_help(opt, kind), **common)
    # The other spellings are separate arguments without help, so that --help shows each flag once.
    names = [opt.name, *opt.spellings]
    spelled = {f"--{name}" for name in names} | {f"--{name.replace('_', '-')}" for name in names}
    hidden = sorted(spelled - {opt.flag})
    if hidden:
        group.add_argument(*hidden, help=argparse.SUPPRESS, **common)
    if is_switch:
        # A switch that a YAML turned on, or that is on by default, can be turned off.
        off = sorted(f"--no{dash}{flag[2:]}" for flag in spelled | {opt.flag} for dash in "-_")
        group.add_argument(*off, dest=opt.name, action="store_const", const="false", help=argparse.SUPPRESS)


def _help(opt: Option, kind: str) -> str:
    default = opt.default[kind]
    text = opt.help
    if opt.value_type is bool:
        text += f" (default: on; --no-{opt.name} turns it off)" if default else ""
    elif default not in (None, ()):
        text += f" (default: {default})"
    if opt.spellings:
        text += f" Also {', '.join(f'--{name}' for name in opt.spellings)}."
    return text.replace("%", "%%")


class _Parser(argparse.ArgumentParser):
    """Raises in place of printing usage and exiting, so that the entries report all errors in one way."""

    def error(self, message: str):
        raise ConfigurationError(f"{message} (see {self.prog} --help)")


class _Formatter(argparse.HelpFormatter):
    """Shows `--lr FLOAT`, not `--lr [FLOAT]`: that a value may be absent is only so that its absence can be told."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=34)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.const == "true":
            return ""
        value = action.metavar or default_metavar
        return value if action.const is _NO_VALUE else f"[{value}]"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        value = self._format_args(action, "") if action.nargs != 0 else ""
        return f"{', '.join(action.option_strings)} {value}".rstrip()


def _as_argparse_expects(argv: list[str], options: dict[str, Option]) -> tuple[list[str], list[str]]:
    """(argv, problems), without two things that argparse misreads.

    `-lr 3e-4` would be `-l r`: a long name with one dash is a mistake of its own, told here. `--lr -1e-4` would be a
    flag called `-1e-4`: it becomes `--lr=-1e-4`, so that the value is judged.
    """
    long_names = {name for opt in options.values() for name in (opt.name, *opt.spellings)}
    respelled, problems = [], []
    for word in argv:
        name = re.match(r"-([A-Za-z_]\w+)(=|$)", word)
        if name and name[1] in long_names:
            problems.append(f"unknown flag '-{name[1]}': did you mean '--{name[1]}'?")
            word = f"-{word}"
        if _NEGATIVE_NUMBER.fullmatch(word) and respelled and re.fullmatch(r"-[^=]*", respelled[-1]):
            respelled[-1] += f"={word}"
        else:
            respelled.append(word)
    return respelled, problems


def _unknown_problems(entry: Entry, extra: list[str]) -> list[str]:
    known = [spelling for opt in entry.options for spelling in (opt.name, *opt.spellings)]
    elsewhere = {name: opt.entries for opt in entry.elsewhere for name in (opt.name, *opt.spellings)}
    problems: list[str] = []
    after_unknown_flag = False
    for word in extra:
        if not word.startswith("-") or _NEGATIVE_NUMBER.fullmatch(word):
            if not after_unknown_flag:
                problems.append(f"unexpected {word!r}: there is no flag before it that takes a value (see --help)")
            continue
        after_unknown_flag = True
        flag = word.split("=")[0]
        name = flag.lstrip("-").replace("-", "_")
        if name in elsewhere and entry.name not in elsewhere[name] and name not in known:
            owners = " and ".join(f"{owner}.py" for owner in elsewhere[name])
            problems.append(f"{flag} is a flag of {owners}, not of {entry.name}.py")
        elif flag.startswith("--"):
            problems.append(unknown("flag", flag, [f"--{spelling}" for spelling in known], listed=False))
        else:
            problems.append(f"unknown flag {flag!r} (see {entry.name}.py --help)")
    return problems
