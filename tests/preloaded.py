"""What the server of forks does before it forks, once for all: imports, and what every run would do alike.

Nothing here may start a thread or draw from a global generator.
"""

from __future__ import annotations

import gc
import importlib
import io
from functools import cache

import torch

MODULES = [
    "llama_dyt.boosters.adaptation",
    "llama_dyt.boosters.boosted",
    "llama_dyt.boosters.strategies.fsdp.runtime",
    "llama_dyt.boosters.strategies.gemini.runtime",
    "llama_dyt.boosters.strategies.hybrid.runtime",
    "llama_dyt.data.loaders.documents_apart",
    "llama_dyt.models.specs.llama",
    "llama_dyt.norms.layers",
    "llama_dyt.norms.specs.dyt",
    "llama_dyt.norms.specs.rmsnorm",
    "llama_dyt.training.evaluation.held_out",
    "llama_dyt.training.checkpoint.reader",
    "llama_dyt.training.entry",
    "llama_dyt.training.session",
    "llama_dyt.training.plan.make",
    "llama_dyt.training.trackers.picture",
    "torch.utils.tensorboard",
    "transformers.models.auto.tokenization_auto",
    "matplotlib.backends.backend_agg",
    "matplotlib.pyplot",
]


def measure_the_machine_once() -> None:
    """A processor's peak rate, a second of every run's start, is the same for all forks of one server."""
    from llama_dyt.training.measurement import peak

    measure = cache(peak.measure_matmul)

    def measured(device, dtype, sizes=None, seconds=1.0, own=1):
        return measure(device, dtype, sizes, seconds)

    peak.measure_matmul = measured
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        peak.peak_tflops(torch.device("cpu"), dtype)


def load_fonts() -> None:
    """Which matplotlib looks for when it draws the first time."""
    from matplotlib import pyplot

    figure, axis = pyplot.subplots()
    axis.set_title("fonts")
    figure.savefig(io.BytesIO(), format="png")
    pyplot.close(figure)


for name in MODULES:
    importlib.import_module(name)
measure_the_machine_once()
load_fonts()
gc.collect()
gc.freeze()  # forks do not look through all that again whenever they collect, nor copy its pages
