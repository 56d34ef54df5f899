"""What benchmarks/faults.py has its runs import: one rank that fails, in the way and at the moment that FAULT says."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from llama_dyt.training.callbacks.callback import CALLBACKS, Callback

WORDS = "not this rank's day"
STEP = 4
"""The step in which it fails, where that is no save's."""


def fail(moment: str) -> None:
    """Fail if this is the rank and the moment, and write down when."""
    kind, when, rank = os.environ.get("FAULT", "none at 0").split()
    if moment != when or os.environ.get("RANK", os.environ.get("SLURM_PROCID")) != rank:
        return
    file = Path(os.environ["FAULT_TIME"])
    file.with_suffix(".new").write_text(str(time.time()))
    file.with_suffix(".new").rename(file)
    if kind == "raise":
        raise RuntimeError(WORDS)
    if kind == "memory":
        bytearray(10**15)
    os.kill(os.getpid(), signal.SIGKILL if kind == "kill" else signal.SIGSTOP)


class Fault(Callback):
    """Before a step, and in a save."""

    name, every_rank = "fault", True

    def before_step(self, trainer, step):
        time.sleep(0.05)
        if step == STEP:
            fail("step")

    def state(self):
        fail("save")
        return {}


CALLBACKS.register(Fault)
fail("start")
