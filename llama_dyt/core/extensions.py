"""A user's own modules, `--import a.module`: imported before flags are read, so that what they register counts as ours.

They are imported because the user says so, never because a file that was loaded does. Their files' hashes are part of
what ranks compare and stand in checkpoints. Data workers, processes of their own that import little, import again those
of them that have something for workers (`for_workers()`).
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from llama_dyt.core.errors import LlamaDytError, in_one_line
from llama_dyt.core.problem import Problem


@dataclass(frozen=True)
class Extension:
    """One imported module.

    Attributes:
        name: as given.
        file: its source.
        sha256: of that file, or of all Python files of a package, hexadecimal.
    """

    name: str
    file: str
    sha256: str


_loaded: dict[str, Extension] = {}
_for_workers: set[str] = set()
_importing: str | None = None


def load(names: Iterable[str], folder: str | None = None) -> list[Problem]:
    """Import modules by name, in order; one that is imported already is left alone.

    Args:
        folder: where names are looked for beside what is installed; None is the current one. It comes last on the path,
            so that a file of the user's does not stand in for a library.

    Returns:
        What is wrong, one problem a module that could not be imported.
    """
    folder = os.path.abspath(folder or os.getcwd())
    problems = []
    for name in names:
        if name in _loaded:
            continue
        if name.endswith(".py") or os.sep in name:
            problems.append(_a_file(name, folder))
            continue
        if folder not in sys.path:
            sys.path.append(folder)
        try:
            module = _import(name)
        except ModuleNotFoundError as error:
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                why = f"no such module, neither installed nor in {folder}"
                remedy = "give its dotted name, as in an import statement, and start where that holds"
                problems.append(Problem("import", name, why, remedy))
            else:
                problems.append(
                    Problem("import", name, f"it needs {error.name!r}, which is not installed", "install it")
                )
            continue
        except LlamaDytError as error:
            problems.append(Problem("import", name, str(error)))
            continue
        except (Exception, SystemExit) as error:  # whatever a user's module raises while it runs
            reason = f"it failed while it was imported: {in_one_line(error)}"
            problems.append(Problem("import", name, reason, "mend the module"))
            continue
        file = getattr(module, "__file__", None)
        _loaded[name] = Extension(name, file or "", _digest(module) if file else "")
    return problems


def _import(name: str) -> ModuleType:
    global _importing
    _importing = name
    try:
        return importlib.import_module(name)
    finally:
        _importing = None


def workers_need_it() -> None:
    """The module that is being imported registers something that data workers look up by its name."""
    if _importing is not None:
        _for_workers.add(_importing)


def for_workers() -> tuple[str, ...]:
    """The names of what was imported and has something for data workers; a norm would have them import torch."""
    return tuple(name for name in _loaded if name in _for_workers)


def _a_file(name: str, folder: str) -> Problem:
    """A file's path was given where a module's name is asked for."""
    path = os.path.relpath(os.path.join(folder, os.path.expanduser(name)), folder).removesuffix(".py")
    parts = path.split(os.sep)
    if all(part.isidentifier() for part in parts):
        remedy = f"give --import {'.'.join(parts)}"
    elif parts[-1].isidentifier():
        remedy = f"give --import {parts[-1]}, and start in its folder or have that in PYTHONPATH"
    else:
        remedy = f"give the file a name that a module can have, unlike {parts[-1]!r}"
    return Problem("import", name, "this is a file, and a module's name is asked for", remedy)


def _digest(module: ModuleType) -> str:
    if not hasattr(module, "__path__"):
        return hashlib.sha256(Path(module.__file__).read_bytes()).hexdigest()
    folder = Path(module.__file__).parent
    files = sorted(folder.rglob("*.py"))
    return hashlib.sha256(
        b"\0".join(str(file.relative_to(folder)).encode() + b"\0" + file.read_bytes() for file in files)
    ).hexdigest()


def loaded() -> tuple[Extension, ...]:
    """What was imported, in order."""
    return tuple(_loaded.values())


def names() -> tuple[str, ...]:
    """The names of what was imported, in order."""
    return tuple(_loaded)
