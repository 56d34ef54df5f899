"""A callback, and a format, that hold a rank up at a place that the environment names, until a file `go` is there.

HELD=/folder HELD_AT=on_start HELD_RANK=1 python pretrain.py --import held_callback --callback held …
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import torch.distributed as dist

from llama_dyt.data.formats.format import FORMATS, FileFormat
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback


class Held(Callback):
    name, every_rank = "held", True

    def on_start(self, trainer):
        self._hold("on_start")

    def after_step(self, trainer, outcome):
        if outcome.step == 3:
            self._hold("after_step")

    def _hold(self, place):
        folder = Path(os.environ["HELD"])
        (folder / f"{place}.{dist.get_rank()}").touch()
        if os.environ["HELD_AT"] == place and dist.get_rank() == int(os.environ.get("HELD_RANK", 0)):
            while not (folder / "go").exists():
                time.sleep(0.02)


class HeldText(FileFormat):
    """.held: as many records of text as the file says, the rest once there is `go`."""

    name, suffixes = "held", (".held",)

    def records(self, path, first, settings):
        number, folder = first, Path(os.environ["HELD"])
        while True:
            if number >= int(path.read_text()):
                (folder / f"data.{os.environ.get('SLURM_PROCID', 0)}").touch()
                while not (folder / "go").exists():
                    time.sleep(0.02)
            yield {"text": f"record {number} of a text that somebody sends"}
            number += 1


CALLBACKS.register(Held)
FORMATS.register(HeldText())
