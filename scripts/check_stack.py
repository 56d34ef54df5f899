"""Imports, once, everything a run imports, and says what was found.

Run by scripts/setup.sh: it proves that the two-step install is complete and leaves the byte code of exactly these
modules behind.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets  # noqa: F401
import matplotlib.pyplot  # noqa: F401
import sentencepiece  # noqa: F401
import torch
import torch.utils.tensorboard  # noqa: F401
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

import llama_dyt.boosters.compat  # noqa: F401  (imports colossalai, with its adaptation to this torch)
import llama_dyt.config.cli  # noqa: F401
import llama_dyt.models  # noqa: F401

import colossalai
import colossalai.cli.launcher  # noqa: F401  (`colossalai run`)

device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU only"
print(f"torch {torch.__version__}, transformers {transformers.__version__}, colossalai {colossalai.__version__}, {device}")
