"""The first stage: a command line, and the YAML it names, as a run. No value is judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llama_dyt.config import cli
from llama_dyt.config.options import Kind
from llama_dyt.config.run import RunConfig


@dataclass(frozen=True)
class Asked:
    """What a command line asks for.

    Attributes:
        run: a flag that could not be read has its default here.
        unread: why some could not; of `Problem`s the flags are known.
    """

    run: RunConfig
    unread: tuple[str, ...]


def parse(kind: Kind, argv: Sequence[str] | None = None) -> Asked:
    """Read the words after the program's name; None takes `sys.argv`. `--help` prints and raises SystemExit(0)."""
    run, problems = cli.read(kind, argv)
    return Asked(run, tuple(problems))
