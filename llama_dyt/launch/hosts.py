"""Host files as people write them: one machine a line, with comments, blank lines, any line ends, MPI's `slots=`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from llama_dyt.core.errors import ConfigurationError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


@dataclass(frozen=True)
class Hosts:
    """Machines of a run, the first one the master.

    Attributes:
        slots: processes a machine, where the file says so; else None.
    """

    names: list[str]
    slots: int | None


def read_hosts(path: str) -> Hosts:
    """Read a host file.

    Raises:
        ConfigurationError: it cannot be read, names no host, or holds something else; every problem with its line.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ConfigurationError(f"--hostfile {path}: {reason}; give a text file with one host name a line") from None
    problems: list[str] = []
    lines: dict[str, int] = {}
    slots: dict[int, int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        name, *more = line.partition("#")[0].split() or [""]
        where = f"--hostfile {path}, line {number}"
        if not name:
            continue
        if not _NAME.fullmatch(name):
            problems.append(f"{where}: {name!r} is no host name; give one a line, and no lists such as node[1-4]")
        elif name in lines:
            problems.append(f"{where}: {name} stands in line {lines[name]} already; name each machine once")
        lines.setdefault(name, number)
        for word in more:
            if match := re.fullmatch(r"slots=([1-9]\d*)", word):
                slots.setdefault(int(match[1]), number)
            else:
                problems.append(f"{where}: {word!r} is not understood; there are host names, `slots=N` and # comments")
    if len(slots) > 1:
        told = ", ".join(f"slots={count} in line {number}" for count, number in slots.items())
        problems.append(f"--hostfile {path}: {told}; `colossalai run` starts the same number on every machine")
    if not lines:
        problems.append(f"--hostfile {path}: no host in it; give one host name a line, or leave --hostfile out")
    if problems:
        raise ConfigurationError(problems)
    return Hosts(list(lines), next(iter(slots), None))
