"""The settings of the loss."""

import pytest

from llama_dyt.config.check import collect_problems
from llama_dyt.config.run import RunConfig


@pytest.mark.parametrize("kind", ["pretrain", "benchmark"])
def test_z_loss_is_off_unless_asked_for(kind):
    assert RunConfig.build(kind).loss.z_loss == 0
    assert not collect_problems(RunConfig.build(kind, z_loss=1e-4))


@pytest.mark.parametrize("value", [-1e-4, float("nan"), float("inf")])
def test_a_z_loss_that_makes_no_sense_is_refused(value):
    (problem,) = collect_problems(RunConfig.build(z_loss=value))
    assert problem.startswith(f"--z_loss {value}")
