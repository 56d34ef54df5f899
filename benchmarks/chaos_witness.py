"""What chaos.py has its runs import: each step that was trained, written down, those done again again."""

from __future__ import annotations

import os
from pathlib import Path

from llama_dyt.training.callbacks.callback import CALLBACKS, Callback


class Witness(Callback):
    """Appends a line a step to the file that CHAOS_WITNESS names, whatever becomes of the run's own records."""

    name = "witness"

    def after_step(self, trainer, outcome):
        with Path(os.environ["CHAOS_WITNESS"]).open("a", encoding="ascii") as file:
            file.write(f"{outcome.step}\n")


CALLBACKS.register(Witness)
