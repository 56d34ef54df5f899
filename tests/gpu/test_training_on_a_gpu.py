"""The quickstart's job on a GPU, under every plugin, held to the same job on the CPU of the same machine."""

import json

import pytest
import torch

from tests.cli.entries import MODEL_SIZE, Command

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

PRECISIONS = [("zero2", "fp32"), ("zero2", "bf16"), ("zero2_cpu", "bf16"), ("hybrid_parallel", "bf16")]
PRECISIONS += [("gemini", "bf16"), ("gemini", "fp16"), ("gemini_auto", "bf16")]
PRECISIONS += [("zero1", "bf16"), ("ddp", "bf16"), ("fsdp", "fp32"), ("fsdp", "fp16"), ("fsdp_cpu", "bf16")]


def losses(folder, plugin, precision, more=()):
    flags = ["-d", "sample", "-c", "15m", *MODEL_SIZE, "-l", "64", "-b", "4", "--max_steps", "24", "-s", "6"]
    flags += ["--lr", "1e-2", "-p", plugin, "-x", precision, "-o", "run", "-t", "none", *more]
    outcome = Command("pretrain", flags, folder).run()
    assert outcome.status == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    return [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    """Losses of the fp32 run with the GPUs hidden."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return losses(tmp_path_factory.mktemp("cpu"), "zero2", "fp32")


@pytest.mark.parametrize(("plugin", "precision"), PRECISIONS)
def test_losses_on_the_gpu_are_those_of_the_cpu(tmp_path, on_cpu, plugin, precision):
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    assert on_cpu[0] - on_cpu[-1] > 20 * tolerance
    assert losses(tmp_path, plugin, precision) == pytest.approx(on_cpu, abs=tolerance)
