"""Imports, once, everything a run imports, and says what was found.

Run by scripts/setup.sh: it proves that the two-step install is complete and leaves the byte code of exactly these
modules behind.
"""

import importlib
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

MODULES = (
    "torch.utils.tensorboard",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "transformers.generation.utils",
    "datasets",
    "matplotlib.pyplot",
    "sentencepiece",
    # ours, from the bottom up; `boosters.compat` imports Colossal-AI with its adaptation to this torch
    "llama_dyt.config.cli",
    "llama_dyt.models",
    "llama_dyt.boosters.engine.compat",
    "colossalai.cli.launcher",
)

sys.path.insert(0, str(REPOSITORY))
for name in MODULES:
    importlib.import_module(name)

torch, colossalai, transformers = (sys.modules[name] for name in ("torch", "colossalai", "transformers"))
versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (torch, transformers, colossalai))
device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
print(f"{versions}, {device}")
