"""What a checkpoint says of the user's own modules that its run had, held against those that are imported now."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from llama_dyt.core import extensions


def modules_had() -> list[dict[str, str]]:
    """The modules that were imported, as `trainer_state.json` keeps them: name, and sha256 of the source."""
    return [{"name": module.name, "sha256": module.sha256} for module in extensions.loaded()]


def differences(trainer_state: Mapping[str, Any], callbacks: Iterable[str], trackers: Iterable[str]) -> list[str]:
    """What a run that resumes has otherwise than the one that saved, a line each; nothing here ends a run.

    Args:
        trainer_state: of the checkpoint; one of before modules were kept tells of none.
        callbacks, trackers: names of those that the run has.
    """
    had = {module["name"]: module["sha256"] for module in trainer_state.get("imports", ())}
    now = {module.name: module.sha256 for module in extensions.loaded()}
    lines = [
        f"--import {name}: its file is not the one that the checkpoint was made with"
        for name, digest in had.items()
        if name in now and now[name] != digest
    ]
    missing = [f"--import {name}" for name in had if name not in now]
    for name in trainer_state.get("callbacks", {}):
        if name not in callbacks:
            ways = " ".join([*missing, f"--callback {name}"])
            lines.append(f"the checkpoint keeps the state of a callback {name!r}, which is lost without {ways}")
    for name in trainer_state.get("trackers", ()):
        if name not in trackers:
            ways = " ".join([*missing, f"--tracker {name}"])
            lines.append(f"the run that saved had a tracker {name!r}, and this one has not; {ways} goes on with it")
    if missing and not lines:
        lines.append(f"the run that saved had {' '.join(missing)}, and this one has not")
    return lines
