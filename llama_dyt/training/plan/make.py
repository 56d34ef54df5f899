"""The four stages in a row."""

from __future__ import annotations

from collections.abc import Sequence

from llama_dyt.config.options import Kind
from llama_dyt.training.plan.check import Checked, check
from llama_dyt.training.plan.parse import parse
from llama_dyt.training.plan.plan import Plan
from llama_dyt.training.plan.resolve import resolve
from llama_dyt.training.plan.size_up import size_up


def make_plan(kind: Kind, argv: Sequence[str] | None = None, checked: Checked | None = None) -> Plan:
    """Read flags and environment, and check all that can be checked in one process.

    Args:
        kind: the entry.
        argv: the words after the program's name; None takes `sys.argv`.
        checked: what the entry's `answer` found of them already.

    Raises:
        ConfigurationError: every problem found, one a line.
    """
    if checked is None:
        checked = check(parse(kind, argv))
    plan = resolve(checked)
    return size_up(plan)
