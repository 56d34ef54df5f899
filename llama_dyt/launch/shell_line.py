"""What `colossalai run` may paste into a shell line of another machine, and what goes there another way.

The engine writes `export NAME="value" …` before its command: a `$`, a backtick or a quote in a value is read by that
shell, and the line stands in the list of processes of that machine for everybody to see.
"""

from __future__ import annotations

import io
import re
import shlex
from collections.abc import Mapping
from typing import Any

from llama_dyt.core.secrets import is_secret_name, redact

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_READ_IN_QUOTES = re.compile(r'([\\"$`])')
_BELONG_TO_A_MACHINE = re.compile(r"SSH_.*|HOSTNAME|PWD|OLDPWD|SHLVL|_|XDG_RUNTIME_DIR|XDG_SESSION_.*|DISPLAY|TERM")
ALWAYS = "PATH"
"""A variable that is always pasted: with none the shell would print all it has."""


def passed_on(env: Mapping[str, str]) -> dict[str, str]:
    """Of an environment, what another machine is given: no names that no shell takes (those of exported functions), and
    not what is a machine's own."""
    return {
        name: value for name, value in env.items() if _NAME.fullmatch(name) and not _BELONG_TO_A_MACHINE.fullmatch(name)
    }


def pasted(env: Mapping[str, str]) -> dict[str, str]:
    """Of that, what may stand in the line, its values written so that `"value"` is read as they are: no secrets."""
    kept = {
        name: _READ_IN_QUOTES.sub(r"\\\1", value)
        for name, value in passed_on(env).items()
        if not is_secret(name, value)
    }
    return kept or {ALWAYS: "/usr/bin:/bin"}


def escaped(path: str) -> str:
    """A folder for fabric's `cd`, which takes care of spaces itself and of nothing else."""
    return re.sub(r"([^\w/.+\- ])", r"\\\1", path, flags=re.ASCII)


def secrets_of(env: Mapping[str, str]) -> dict[str, str]:
    """What is left out of the line for being secret."""
    return {name: value for name, value in env.items() if _NAME.fullmatch(name) and is_secret(name, value)}


def is_secret(name: str, value: str) -> bool:
    """Whether a variable is not for everybody's eyes: by its name, or for a password in an address."""
    return "\n" not in value and (is_secret_name(name) or redact(value, {}) != value)


def handing_over(connection: type, secrets: Mapping[str, str]) -> type:
    """A class of fabric's connections that gives these variables to a command over its standard input."""

    class Connection(connection):
        def run(self, command: str, **options: Any) -> Any:
            names = " ".join(shlex.quote(name) for name in secrets)
            reads = "".join(f"IFS= read -r {name} && " for name in secrets)
            given = io.StringIO("".join(f"{value}\n" for value in secrets.values()))
            line = f"{reads}export {names} && {command} < /dev/null" if secrets else command
            return super().run(line, in_stream=given if secrets else False, **options)

    return Connection
