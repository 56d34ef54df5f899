"""What chaos.py has its runs import: each step that was trained, written down, those done again again."""

from __future__ import annotations

import os
import time
from pathlib import Path

from llama_dyt.training.callbacks.callback import CALLBACKS, Callback

PACE_SECONDS = 0.1
"""What a step lasts at least: as long as a larger model's, so that there is time to disturb it."""


class Witness(Callback):
    """Appends a line a step to the file that CHAOS_WITNESS names, whatever becomes of the run's own records."""

    name = "witness"

    def after_step(self, trainer, outcome):
        with Path(os.environ["CHAOS_WITNESS"]).open("a", encoding="ascii") as file:
            file.write(f"{outcome.step}\n")
        time.sleep(PACE_SECONDS)


CALLBACKS.register(Witness)
