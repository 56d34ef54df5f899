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
