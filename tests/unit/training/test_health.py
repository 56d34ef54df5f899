"""What is advised where numbers are not finite fits the run: its precision, its clipping, its checkpoints."""

from pathlib import Path

import pytest

from llama_dyt.config.run import RunConfig
from llama_dyt.training.callbacks.logging import _finite
from llama_dyt.training.health.finite import remedy

LAST = Path("runs/a/step_00000010")


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("last", [None, LAST])
def test_another_precision_is_advised_in_fp16_alone(precision, last):
    run = RunConfig.build("pretrain", plugin="ddp", mixed_precision=precision, lr=0.003)
    advice = remedy(run, last, begun_from_it=False)
    assert ("--mixed_precision bf16" in advice) == (precision == "fp16")
    assert "a lower --lr (it is 0.003)" in advice
    assert "--gradient_clipping" not in advice


def test_clipping_is_advised_where_it_is_off():
    run = RunConfig.build("pretrain", plugin="ddp", gradient_clipping=0.0)
    assert "--gradient_clipping 1.0 (it is off)" in remedy(run, None, begun_from_it=False)


def test_the_checkpoint_that_a_run_began_from_is_not_what_it_is_sent_back_to():
    run = RunConfig.build("pretrain", plugin="ddp")
    assert f"resume from {LAST}, whose weights are finite" in remedy(run, LAST, begun_from_it=False)
    assert f"resume from an earlier checkpoint than {LAST}" in remedy(run, LAST, begun_from_it=True)


def test_a_record_has_no_number_that_json_has_no_word_for():
    record = {"step": 1, "loss": float("nan"), "alpha": {"norm": float("-inf"), "other": 0.5}, "skipped_steps": 0}
    assert _finite(record) == {"step": 1, "loss": None, "alpha": {"norm": None, "other": 0.5}, "skipped_steps": 0}
