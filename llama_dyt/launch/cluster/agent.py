"""What runs on each machine: it reads questions, one JSON object a line, and answers each with one. It ends with its
input, so nothing is left where the asking side is gone.

    python -m llama_dyt.launch.cluster.agent
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from llama_dyt.launch.cluster import facts, links

_listeners: list[links.Listener] = []


def listen(port: int) -> dict[str, Any]:
    """Open a port until `close`."""
    try:
        _listeners.append(links.Listener(port))
    except OSError as error:
        return {"error": error.strerror or str(error)}
    return {"port": _listeners[-1].port}


def close() -> None:
    while _listeners:
        _listeners.pop().close()


ANSWERS: dict[str, Callable[..., Any]] = {
    "take_over": facts.take_over,
    "facts": facts.facts,
    "clock": facts.clock,
    "remove": facts.remove,
    "listen": listen,
    "close": close,
    "measure": links.measure,
    "all_reduce": links.all_reduce,
}


def main() -> None:
    # Whatever a library prints goes to stderr: standard output is for answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"answer": ANSWERS[asked.pop("ask")](**asked)}
        except Exception as error:  # the asking side tells it, with the machine's name
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # threads that still answer others need not be waited for


if __name__ == "__main__":
    main()
