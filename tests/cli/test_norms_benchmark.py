"""benchmarks/norms.py measures side by side, compares numbers first, and leaves a dated file."""

import json
import subprocess
import sys

import pytest
import torch

from llama_dyt.norms import DynamicTanh
from tests.cli.entries import LIMIT_SECONDS, ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))
import norms


def test_sides_are_measured_in_the_same_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr(norms, "RIVALS", ("RMSNorm torch",))
    rows = norms.measure("64x32", "fp32", "cpu", 3, False, ["DyT ours", "RMSNorm torch", "RMSNorm HF"])
    sides = {row["side"] for row in rows} - {"a copy of x"}
    assert sides == {"DyT ours", "RMSNorm torch", "RMSNorm HF"}
    assert len(rows) == 3 * (2 * len(sides) + 1) and all(row["seconds"] > 0 for row in rows)
    summary = norms.summarise(rows, norms.FLOORS)
    assert set(summary) == {
        f"64x32 fp32 {what}: DyT ours / {other}"
        for what in ("forward", "forward+backward")
        for other in ("RMSNorm torch", "floor")
    }
    ratio = summary["64x32 fp32 forward+backward: DyT ours / RMSNorm torch"]
    assert ratio["pairs"] == 3 and ratio["interval"][0] <= ratio["median"] <= ratio["interval"][1]


@pytest.mark.parametrize("residual", [False, True])
def test_wrong_numbers_end_the_comparison(residual):
    layer = DynamicTanh(8, alpha_init=0.7)
    values = [torch.randn(4, 8) for _ in range(1 + residual)]
    right = norms.as_called("DyT", layer, residual)
    norms.check_numbers("DyT", right, layer, values, values, "fp32")

    def wrong(*inputs):
        return tuple(y * 1.001 for y in right(*inputs))

    with pytest.raises(SystemExit, match="DyT in fp32 differs from double precision by 1.0e-03"):
        norms.check_numbers("DyT", wrong, layer, values, values, "fp32")


@pytest.mark.slow
def test_the_command_leaves_a_dated_file(tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "norms.py"), "--device", "cpu", "--results", str(tmp_path)]
    command += ["--shapes", "64x32", "--rounds", "2", "--sides", "DyT ours", "RMSNorm torch", "--residual"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert ended.returncode == 0, ended.stderr
    (file,) = tmp_path.iterdir()
    assert ended.stdout.splitlines()[-1] == str(file) and "times the floor" in ended.stdout
    report = json.loads(file.read_text())
    assert report["allocator"]["MALLOC_MMAP_THRESHOLD_"] and {row["dtype"] for row in report["rows"]} == {
        "fp32",
        "bf16",
    }
