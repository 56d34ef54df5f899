"""What transformers asks of its own models, asked of ours: its suites for models and training, for DyT and for RMSNorm.

No test is left out. Where the suite skips one by itself, the same test is put to plain llama, which must skip it too: a
class that lacks what a test looks for would otherwise pass without a word.
"""

from __future__ import annotations

import re
import unittest
from pathlib import Path
from unittest import mock

import pytest
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.auto import modeling_auto

from llama_dyt.models import LlamaDytConfig, LlamaDytForCausalLM, LlamaDytModel

from .adapter import SmallDecoder, suite

try:
    common, training = suite("test_modeling_common"), suite("test_training_mixin")
except unittest.SkipTest as reason:
    pytest.skip(str(reason), allow_module_level=True)


class Suites(common.ModelTesterMixin, common.GenerationTesterMixin, training.TrainingTesterMixin):
    pass


class PlainLlama(Suites, unittest.TestCase):
    """transformers' own, by which ours is measured."""

    __test__ = False  # by itself it would test transformers
    all_model_classes = (LlamaModel, LlamaForCausalLM)
    model_tester = SmallDecoder(LlamaConfig, LlamaForCausalLM, LlamaModel)


class Ours(Suites):
    all_model_classes = (LlamaDytModel, LlamaDytForCausalLM)
    # The suites tell by a class's name what it is, from tables of transformers' own models.
    tables = {"MODEL_MAPPING_NAMES": "LlamaDytModel", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "LlamaDytForCausalLM"}

    def setUp(self):
        super().setUp()
        for table, name in self.tables.items():
            self.enterContext(mock.patch.dict(getattr(modeling_auto, table), {"llama_dyt": name}))

    def skipTest(self, reason):
        result = unittest.TestResult()
        PlainLlama(self._testMethodName).run(result)
        if not result.skipped:
            self.fail(f"our model skips what plain llama does not: {reason}")
        super().skipTest(reason)


class TestDyt(Ours, unittest.TestCase):
    # At transformers' 0.02 a DyT of width 32 has scores so near to 0 that positions hardly matter (1e-6 of the output),
    # and a first gradient so small that it cannot fall by nine tenths: no norm brings activations to unit size.
    model_tester = SmallDecoder(
        LlamaDytConfig, LlamaDytForCausalLM, LlamaDytModel, norm_type="dyt", initializer_range=0.2
    )


class TestRmsNorm(Ours, unittest.TestCase):
    model_tester = SmallDecoder(LlamaDytConfig, LlamaDytForCausalLM, LlamaDytModel, norm_type="rmsnorm")


def test_the_suites_are_those_of_the_transformers_that_is_installed():
    root = Path(__file__).parents[2]
    pins = [
        re.search(r"^transformers==(\S+)", (root / name).read_text(encoding="utf-8"), flags=re.MULTILINE).group(1)
        for name in ("requirements.txt", "requirements-suites.txt")
    ]
    assert pins == [transformers.__version__] * 2
