"""A plugin in one file outside of the package (`my_plugin.py`) trains, saves, resumes and is told about as ours are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import Corpus, corpus  # noqa: F401
from tests.cli.entries import Command, Outcome

ALONE = Path(__file__).with_name("my_plugin.py")
STEPS = 4


def start(corpus: Corpus, folder: Path, plugin: str, **flags) -> Outcome:  # noqa: F811
    """Two ranks of `pretrain.py`, in a folder that has the user's file and nothing else of his."""
    shutil.copy(ALONE, folder / "mine.py")
    given = {
        "import": "mine" if plugin == "bucketed" else None,
        "plugin": plugin,
        "max_steps": STEPS,
        "save_interval": STEPS // 2,
        "lr_scheduler": "constant",
        "gradient_clipping": 0.9,
        "tensorboard_dir": "none",
        "save_dir": plugin,
    }
    words = corpus.pretrain_flags(**{**given, **flags})
    return Command("pretrain", words, folder, launcher="srun", processes=2).run()


def course(folder: Path) -> list[tuple]:
    names = ("step", "loss", "grad_norm", "lr", "tokens_seen")
    return [tuple(record[name] for name in names) for record in read_metrics(folder / "metrics.jsonl")]


def tensors(step: Path) -> dict[str, torch.Tensor]:
    """Weights and moments."""
    moments = load_file(step / "optimizer/optimizer.safetensors")
    return load_file(step / "model/model.safetensors") | {f"moment {name}": value for name, value in moments.items()}


def assert_equal(step: Path, expected: Path) -> None:
    own, wanted = tensors(step), tensors(expected)
    assert own.keys() == wanted.keys()
    assert all(torch.equal(own[name], wanted[name]) for name in wanted)


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> Path:  # noqa: F811
    """`ddp` and `bucketed`, the latter broken off half way and gone on with."""
    folder = tmp_path_factory.mktemp("strategy")
    for outcome in (
        start(corpus, folder, "ddp"),
        start(corpus, folder, "bucketed", bucket_kb=8, max_steps=STEPS // 2),
        start(corpus, folder, "bucketed", bucket_kb=8, load="auto"),
    ):
        assert outcome.status == 0, outcome.stderr
    return folder


@pytest.mark.slow
def test_a_plugin_in_one_file_trains_and_resumes_with_the_numbers_of_ddp(runs):
    assert course(runs / "bucketed") == course(runs / "ddp")
    for number in (STEPS // 2, STEPS):
        assert_equal(runs / f"bucketed/step_{number:08d}", runs / f"ddp/step_{number:08d}")


@pytest.mark.slow
def test_its_checkpoint_is_gone_on_with_under_ours(runs, corpus, tmp_path):  # noqa: F811
    half = runs / f"bucketed/step_{STEPS // 2:08d}"
    outcome = start(corpus, tmp_path, "fsdp", load=half)
    assert outcome.status == 0, outcome.stderr
    assert course(tmp_path / "fsdp")[-1] == pytest.approx(course(runs / "ddp")[-1], rel=1e-5)


def test_its_flags_and_name_stand_in_help_and_its_capability_is_told(corpus, tmp_path):  # noqa: F811
    shutil.copy(ALONE, tmp_path / "mine.py")
    shown = Command("pretrain", ["--import", "mine", "--help"], tmp_path).run()
    assert shown.status == 0 and "--bucket_kb" in shown.stdout and "bucketed" in shown.stdout
    words = ["--import", "mine", "--plugin", "bucketed", "--mixed_precision", "bf16", "--tp", "2", "--fp32_gradients"]
    refused = Command("pretrain", [*corpus.pretrain_flags(plugin=None, mixed_precision=None), *words], tmp_path).run()
    assert refused.status != 0
    for problem in (
        "--mixed_precision bf16: --plugin bucketed has fp32 only on cpu",
        "--tp 2: --plugin bucketed has no tensor parallelism",
        "--fp32_gradients: bucketed has no other; leave it out",
    ):
        assert problem in refused.stderr, json.dumps(refused.errors)


def test_its_memory_is_that_of_whole_states_on_every_rank(corpus, tmp_path):  # noqa: F811
    shutil.copy(ALONE, tmp_path / "mine.py")
    plans = []
    for words in (["--import", "mine", "--plugin", "bucketed"], ["--plugin", "ddp"]):
        flags = ["--dry_run", "--dry_run_processes", "8", *corpus.pretrain_flags(plugin=None), *words]
        outcome = Command("pretrain", flags, tmp_path).run()
        assert outcome.status == 0, outcome.stderr
        plans.append([line for line in outcome.stdout.splitlines() if "memory a rank" in line])
    assert plans[0] == plans[1] != []
