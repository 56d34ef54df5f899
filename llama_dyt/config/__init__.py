"""What a run is: its settings, the flags and YAML they come from, the sizes with names, and what is wrong with a run.

Imports nothing but the standard library (YAML where a file is read), so that `--help` and errors come at once.
"""

from llama_dyt.config.benchmark import BenchmarkSettings
from llama_dyt.config.capabilities import CAPABILITIES, Capability, capability, zero_stage
from llama_dyt.config.options import KINDS, Kind
from llama_dyt.config.run import RunConfig
from llama_dyt.config.settings import (
    DEFAULT_CONFIG,
    DEFAULT_NORM,
    DEFAULT_TOKENIZER,
    FINETUNE_WARMUP_FRACTION,
    BoosterSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    RunSettings,
)
from llama_dyt.config.sizes import ALIASES, SIZES, Size, get_size, read_size

__all__ = [
    "ALIASES",
    "CAPABILITIES",
    "DEFAULT_CONFIG",
    "DEFAULT_NORM",
    "DEFAULT_TOKENIZER",
    "FINETUNE_WARMUP_FRACTION",
    "KINDS",
    "SIZES",
    "BenchmarkSettings",
    "BoosterSettings",
    "Capability",
    "DataSettings",
    "Kind",
    "ModelSettings",
    "OptimizerSettings",
    "RunConfig",
    "RunSettings",
    "Size",
    "capability",
    "get_size",
    "read_size",
    "zero_stage",
]
