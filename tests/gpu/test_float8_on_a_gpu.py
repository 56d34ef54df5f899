"""8-bit products of the GPU's own units, held to the emulation, which every other test of them is about."""

import pytest
import torch
from torch import nn

from llama_dyt.models import Float8Linear, why_no_float8
from tests.cli.entries import Command
from tests.gpu.test_training_on_a_gpu import losses

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(why_no_float8() is not None, reason=f"no 8-bit products: {why_no_float8()}"),
]


@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
@pytest.mark.parametrize("num_rows", [1, 33, 512])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_units_compute_what_the_emulation_does(scaling, num_rows, compiled):
    torch.manual_seed(0)
    results = []
    weight = torch.randn(192, 256, device="cuda", dtype=torch.bfloat16) / 16
    given = torch.randn(num_rows, 256, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn(num_rows, 192, device="cuda", dtype=torch.bfloat16)
    for emulate in (True, False):
        module = nn.Linear(256, 192, bias=False, device="cuda", dtype=torch.bfloat16)
        module.weight = nn.Parameter(weight.clone())
        module.__class__, module.rowwise, module.emulate = Float8Linear, scaling == "rowwise", emulate
        rows = given.clone().requires_grad_()
        out = torch.compile(module)(rows) if compiled and not emulate else module(rows)
        out.backward(gradient)
        results.append((out.detach(), rows.grad, module.weight.grad))
    for ours, theirs in zip(*results):
        assert ((ours - theirs).float().norm() / theirs.float().norm()).item() < 1e-2


@pytest.mark.parametrize("plugin", ["zero2", "fsdp", "ddp"])
@pytest.mark.parametrize("scaling", ["tensorwise", "rowwise"])
def test_training_in_8_bits_stays_near_bf16(tmp_path, plugin, scaling):
    folders = [tmp_path / name for name in ("bf16", "fp8")]
    for folder in folders:
        folder.mkdir()
    exact = losses(folders[0], plugin, "bf16")
    rounded = losses(folders[1], plugin, "bf16", more=["--fp8", scaling])
    assert exact[0] - exact[-1] > 0.4
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.02)


def test_the_benchmark_runs_in_8_bits(tmp_path):
    flags = ["-c", "100m", "-p", "zero2", "-l", "256", "-b", "2", "--fp8"]
    outcome = Command("benchmark", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert "fp8 tensorwise" in outcome.stderr
