"""A norm in one file of a user's own: it trains, resumes, is exported, generated from and swapped into weights."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import Command
from tests.cli.test_resume import assert_same_checkpoint

STEPS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a user works: one file beside the runs."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(Path(__file__).with_name("dyisru.py"), folder / "my_norm.py")
    return folder


def flags(corpus, save_dir: str, *more: str, **changes) -> list[str]:
    changes = {"max_steps": STEPS, "save_dir": save_dir, **changes}
    return ["--import", "my_norm", *corpus.pretrain_flags(**changes), *more]


def run(entry: str, words: list[str], folder: Path, processes: int = 1):
    launcher = "srun" if processes > 1 else "python"
    outcome = Command(entry, words, folder, launcher=launcher, processes=processes).run()
    assert outcome.status == 0, outcome.stderr
    return outcome


@pytest.mark.parametrize("plugin", ["ddp", "fsdp"])
def test_a_users_norm_trains_and_resumes_to_the_last_bit(corpus, folder, plugin):
    norm = ["--norm", "dyisru", "--dyisru_beta", "0.5"]
    run("pretrain", flags(corpus, f"whole-{plugin}", *norm, plugin=plugin), folder, 2)
    run("pretrain", flags(corpus, f"half-{plugin}", *norm, plugin=plugin, save_interval=2), folder, 2)
    half, whole = folder / f"half-{plugin}", folder / f"whole-{plugin}"
    shutil.rmtree(half / f"step_{STEPS:08d}")
    run("pretrain", flags(corpus, half.name, *norm, plugin=plugin, save_interval=2, load="auto"), folder, 2)
    assert_same_checkpoint(half / f"step_{STEPS:08d}", whole / f"step_{STEPS:08d}")
    weights = load_file(whole / f"step_{STEPS:08d}" / "model" / "model.safetensors")
    betas = [tensor.item() for name, tensor in weights.items() if name.endswith(".beta")]
    assert len(betas) == 5 and all(beta != 0.5 for beta in betas), "every beta has learned"
    first = read_metrics(whole / "metrics.jsonl")[0]
    assert set(first["beta"].values()) == {0.5} and "alpha" not in first


@pytest.mark.parametrize("layout", [["--tp", "2"], ["--pp", "2", "--mbs", "1"]], ids=["tp2", "pp2"])
def test_its_course_is_the_same_however_the_model_is_cut(corpus, folder, layout):
    more = ["--norm", "dyisru", *layout]
    run("pretrain", flags(corpus, f"cut-{layout[0][2:]}", *more, plugin="3d"), folder, 2)
    run("pretrain", flags(corpus, f"one-{layout[0][2:]}", "--norm", "dyisru", plugin="ddp"), folder)
    cut, one = (read_metrics(folder / f"{kind}-{layout[0][2:]}" / "metrics.jsonl") for kind in ("cut", "one"))
    for name in ("loss", "grad_norm"):
        assert [r[name] for r in cut] == pytest.approx([r[name] for r in one], rel=2e-5), name


LOAD_ALONE = """
import sys, torch
sys.modules["llama_dyt"] = None
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(type(model.model.norm).__name__, float(model(torch.tensor([[1, 2, 3]])).logits.sum()))
"""


@pytest.fixture(scope="module")
def trained(corpus, folder) -> Path:
    run("pretrain", flags(corpus, "trained", "--norm", "dyisru", plugin="ddp"), folder)
    return folder / "trained" / f"step_{STEPS:08d}"


def test_an_exported_folder_loads_without_the_package_and_without_the_users_file(trained, tmp_path):
    copy = shutil.copytree(trained / "model", tmp_path / "model")
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD_ALONE, copy], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0 and result.stdout.startswith("DyISRU "), result.stderr
    assert "my_norm.py" in {path.name for path in copy.iterdir()}
    assert not any("layers_rms_norm" in path.name for path in copy.iterdir()), (
        "only the model's own norm travels, and dyt"
    )


def test_a_checkpoint_without_its_module_says_which_is_needed(corpus, trained, folder):
    words = corpus.pretrain_flags(max_steps=STEPS + 1, save_dir="trained", load="auto")
    outcome = Command("pretrain", words, folder).run()
    assert outcome.status == 2
    (problem,) = outcome.errors
    assert problem.startswith("--import my_norm: ") and "'dyisru'" in problem


def test_a_module_that_has_changed_is_told(corpus, folder):
    shutil.copy(folder / "my_norm.py", folder / "changing_norm.py")
    words = ["--import", "changing_norm", *corpus.pretrain_flags(max_steps=1, save_dir="changed"), "--norm", "dyisru"]
    run("pretrain", words, folder)
    with (folder / "changing_norm.py").open("a") as file:
        file.write("# as good as before\n")
    outcome = run("pretrain", ["2" if word == "1" else word for word in words] + ["--load", "auto"], folder)
    assert "--import changing_norm: its file is not the one that the checkpoint was made with" in outcome.stderr


def test_it_is_swapped_into_trained_weights_of_another_norm(corpus, folder):
    run("pretrain", flags(corpus, "rms", "--norm", "rmsnorm", plugin="ddp"), folder)
    words = flags(corpus, "swapped", "--norm", "dyisru", "--model_path", "rms", plugin="ddp", max_steps=1)
    size = words.index("--hidden_width")
    outcome = run("pretrain", words[:size] + words[size + 10 :], folder)
    assert "rmsnorm to dyisru" in outcome.stderr
    config = json.loads((folder / "swapped" / "step_00000001" / "model" / "config.json").read_text())
    assert (config["norm_type"], config["dyisru_beta"], config["norm_module"]) == ("dyisru", 1.0, "my_norm")


def test_a_norm_that_needs_a_neighbour_refuses_to_be_saved_in_one_line(corpus, folder):
    text = (
        (folder / "my_norm.py")
        .read_text()
        .replace("import torch\n", "import torch\nfrom llama_dyt.data import sample\n", 1)
    )
    (folder / "my_tied_norm.py").write_text(text)
    words = corpus.pretrain_flags(max_steps=1, save_dir="tied")
    outcome = Command("pretrain", ["--import", "my_tied_norm", *words, "--norm", "dyisru"], folder).run()
    assert outcome.status != 0
    assert [line for line in outcome.errors if "my_tied_norm cannot travel" in line], outcome.stderr


def test_its_flags_and_name_are_in_the_help(folder):
    outcome = run("pretrain", ["--import", "my_norm", "--help"], folder)
    assert "--dyisru_beta" in outcome.stdout and "|dyisru" in outcome.stdout.replace("\n", "")
