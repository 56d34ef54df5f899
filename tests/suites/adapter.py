"""transformers' own suites for models, made to test ours: where their files are, and the figures they ask for.

The suites are mixins of transformers' repository, in no installed package. Its source distribution has those for models
and training, which `scripts/setup.sh --dev` puts into the environment. Those for generation and export are in the
repository alone: LLAMA_DYT_TRANSFORMERS_TESTS may name the `tests` folder of a checkout of the pinned version, which
has them all.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from pathlib import Path
from unittest import SkipTest

import torch

VARIABLE = "LLAMA_DYT_TRANSFORMERS_TESTS"
PACKAGE = "transformers_suites"
ONLY_IN_A_CHECKOUT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
"""Modules a source distribution lacks → the mixin that the others take from each."""


def suites_folder() -> Path:
    """Where the suites' files are.

    Raises:
        SkipTest: nowhere; the text says what to do.
    """
    folder = Path(os.environ.get(VARIABLE) or Path(sys.prefix) / "transformers-tests")
    if not (folder / "test_modeling_common.py").is_file():
        raise SkipTest(
            f"no suites of transformers in {folder}: bash scripts/setup.sh --dev takes them from its source "
            f"distribution, or {VARIABLE} names the tests folder of a checkout"
        )
    return folder


def suite(module: str) -> types.ModuleType:
    """A module of the suites. A mixin that only a checkout has is empty without one: it tests nothing.

    Raises:
        SkipTest: there are no suites here.
    """
    folder = suites_folder()
    if PACKAGE not in sys.modules:
        package = sys.modules[PACKAGE] = types.ModuleType(PACKAGE, "The tests folder of transformers.")
        package.__path__ = [str(folder)]
        for name, mixin in ONLY_IN_A_CHECKOUT.items():
            if not (folder / f"{name.replace('.', '/')}.py").is_file():
                parent = f"{PACKAGE}.{name.partition('.')[0]}"
                sys.modules.setdefault(parent, types.ModuleType(parent))
                empty = sys.modules[f"{PACKAGE}.{name}"] = types.ModuleType(f"{PACKAGE}.{name}")
                setattr(empty, mixin, type(mixin, (), {}))
    return importlib.import_module(f"{PACKAGE}.{module}")


class SmallDecoder:
    """The `model_tester` of a suite: a small config, with the figures of transformers' own llama, and inputs.

    Args:
        config_class, causal_lm_class, base_model_class: of the family.
        fields: of the config, beside those figures.
    """

    is_training = True
    batch_size, seq_length = 13, 7
    num_hidden_layers, num_attention_heads, hidden_size = 2, 2, 32

    def __init__(self, config_class: type, causal_lm_class: type, base_model_class: type, **fields: object) -> None:
        self.config_class, self.causal_lm_class, self.base_model_class = config_class, causal_lm_class, base_model_class
        self._fields = fields

    def get_config(self):
        figures = {
            "vocab_size": 99,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 512,
            "initializer_range": 0.02,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        return self.config_class(**figures | self._fields)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = torch.randint(3, config.vocab_size, (self.batch_size, self.seq_length))
        return config, {"input_ids": ids, "attention_mask": torch.ones_like(ids).tril()}
