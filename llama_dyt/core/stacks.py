"""What this process is doing, as Python sees it: whole for a file, and in a line for a screen.

The collective that it waits in is found in two places: torch's flight recorder, which numbers them for each group and
keeps the last of them, and the stack.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_dyt.core.code import FOLDER

_SHOWN_FRAMES = 4
_SHOWN_OPERATIONS = 12
_OF_COLLECTIVES = ("torch/distributed/distributed_c10d.py", "torch/distributed/_functional_collectives.py")
_BESIDE_THE_POINT = {"core/ranks.py", "core/watch.py", "core/standing.py", "training/entry.py"}
"""Files of ours that stand in many stacks and tell nothing of where a rank was."""


@dataclass(frozen=True)
class Doing:
    """What a process is doing.

    Attributes:
        short: the innermost frames of ours, the inner last: "loop.py:81 fit, step.py:84 train_step".
        collective: what it waits in, with its number in its group where torch knows: "all_reduce #57 of default_pg";
            empty for nothing.
        whole: the stacks of all its threads, and the last operations of the flight recorder.
    """

    short: str
    collective: str
    whole: str


def doing(error: BaseException | None = None) -> Doing:
    """What this process is doing, called from any thread.

    Args:
        error: what the main thread ended with, which then tells where it was.
    """
    main = threading.main_thread().ident
    frames = sys._current_frames()
    if error is not None:
        of_main = list(traceback.extract_tb(error.__traceback__))
    else:
        of_main = list(traceback.extract_stack(frames[main])) if main in frames else []
    operations = _recorded_operations()
    parts = ["main thread, the innermost frame last:\n" + "".join(traceback.format_list(of_main))]
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for number, frame in frames.items():
        if number not in (main, threading.get_ident()):
            stack = "".join(traceback.format_list(traceback.extract_stack(frame)))
            parts.append(f"thread {names.get(number, number)}:\n{stack}")
    parts.append(_operations_in_words(operations))
    return Doing(_shortened(of_main), _collective(of_main, operations), "\n".join(parts))


def _shortened(frames: Iterable[traceback.FrameSummary]) -> str:
    """The innermost frames of ours, or the innermost of all where none is."""
    ours, last = [], ""
    for frame in frames:
        path = Path(frame.filename)
        if frame.name.startswith("<"):  # a comprehension stands in the line of who has it
            continue
        if FOLDER in path.parents and path.relative_to(FOLDER).as_posix() not in _BESIDE_THE_POINT:
            ours.append(f"{path.name}:{frame.lineno} {frame.name}")
        last = f"{path.name}:{frame.lineno} {frame.name}"
    return ", ".join(ours[-_SHOWN_FRAMES:]) or last


# --- collectives -----------------------------------------------------------------------------------------------------


def _collective(frames: list[traceback.FrameSummary], operations: list[dict[str, Any]] | None) -> str:
    """Of the frames, the call that ours made; of the recorder, the operation that was begun last and is not done."""
    named = next((frame.name for frame in frames if frame.filename.endswith(_OF_COLLECTIVES)), "")
    undone = [operation for operation in operations or () if not operation.get("retired", True)]
    if undone:
        recorded = _operation_in_words(undone[-1])
        if not named:  # begun by hand, and perhaps not what is waited for
            return f"{recorded}, begun and not done"
        return recorded if recorded.startswith(named) else f"{named}: {recorded}"
    return named


def _recorded_operations() -> list[dict[str, Any]] | None:
    """The flight recorder's, oldest first; None where this torch has none, or it is off (TORCH_FR_BUFFER_SIZE=0)."""
    try:
        functions = importlib.import_module("torch._C._distributed_c10d")
        dump = getattr(functions, "_dump_fr_trace_json", None) or functions._dump_nccl_trace_json
        return json.loads(dump(True)).get("entries")
    except Exception:  # other builds of torch have other functions, and this is said beside a failure
        return None


def _operation_in_words(operation: dict[str, Any]) -> str:
    name = str(operation.get("profiling_name", "?")).rpartition(":")[2]
    number = operation.get("p2p_seq_id" if operation.get("is_p2p") else "collective_seq_id", "?")
    groups = [str(part) for part in operation.get("process_group", ()) if part not in ("", "undefined")]
    sizes = ", ".join("x".join(map(str, size)) for size in operation.get("input_sizes", ()))
    return f"{name} #{number} of group {groups[-1] if groups else '?'}" + (f" ({sizes})" if sizes else "")


def _operations_in_words(operations: list[dict[str, Any]] | None) -> str:
    if not operations:
        return "torch's flight recorder has nothing: this build has none, or it is off (TORCH_FR_BUFFER_SIZE)\n"
    lines = [
        f"  {'done  ' if operation.get('retired') else 'begun '} {_operation_in_words(operation)}"
        for operation in operations[-_SHOWN_OPERATIONS:]
    ]
    return "\n".join(["torch's flight recorder, the last operations, the newest last:", *lines]) + "\n"
