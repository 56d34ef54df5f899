"""Every script of scripts/benchmark_* trains two steps as it is, shrunk by its own variables and flags."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from tests.cli.entries import MODEL_SIZE, ROOT, free_port
from tests.distributed import benchmark_cases
from tests.unit.test_scripts import BENCHMARKS, SMALL_SIZES, copy_of, make_command, run_script

pytestmark = pytest.mark.distributed

SMALL = [*MODEL_SIZE, "--num_layers", "4", "--num_steps", "2", "--ignore_steps", "1"]


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_what_a_script_asks_for_trains(pool, path: Path, tmp_path: Path):
    make_command(tmp_path / "venv/bin/colossalai", "printf '%s\\n' \"$@\"")
    make_command(tmp_path / "venv/bin/python", "true")
    script = copy_of(path.parent, tmp_path) / path.name
    size = SMALL_SIZES.get(path.parent.name, "15m")
    ended = run_script(script, *SMALL, CONFIG=size, NPROC="2", LENGTH="8", VENV=str(tmp_path / "venv"))
    words = ended.stdout.split("/benchmark.py\n")[1].splitlines()
    first, second = pool(2).run(benchmark_cases.measured, words=words)
    losses = [step["loss"] for step in first["steps"]]
    assert len(losses) == 2 and losses == [step["loss"] for step in second["steps"]]
    assert all(abs(loss - math.log(32000)) < 0.1 for loss in losses)
    assert first["samples_per_second"] > 0 and first["num_devices"] == 2


def test_a_script_runs_from_its_folder_to_the_result_line(tmp_path):
    folder = copy_of(ROOT / "scripts/benchmark_7B", tmp_path)
    repository = folder.parents[1]
    for name in ("benchmark.py", "llama_dyt"):
        (repository / name).symlink_to(ROOT / name)
    tools = Path(sys.executable).parent
    environment = {"VENV": str(tools.parent), "CONFIG": "15m", "NPROC": "2", "LENGTH": "8", "OMP_NUM_THREADS": "1"}
    ended = run_script(folder / "fsdp.sh", *SMALL, MASTER_PORT=str(free_port()), PYTHONPATH=str(ROOT), **environment)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("max memory usage: ") == 1
    assert "2 CPU process(es)" in ended.stdout and "fsdp bf16 on 2 cpu processes" in ended.stderr
