"""A model family in one file of a user's own: boosted in every way, resumed, sized, exported and generated from."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from llama_dyt.models import FAMILIES, build_config, empty_model, family_of, recomputed_layers
from llama_dyt.training.measurement.performance import hardware_flops_per_token
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import VOCAB_SIZE
from tests.cli.entries import MODEL_SIZE, Command, Outcome, run_two_at_once
from tests.cli.test_resume import assert_same_checkpoint

FILE = Path(__file__).with_name("two_matrix_family.py")
STEPS = 4
# Two ranks each, and the same global batches.
WAYS = {
    "ddp": ["--plugin", "ddp", "--batch_size", "2", "--save_interval", "2"],
    "fsdp": ["--plugin", "fsdp", "--batch_size", "2"],
    "tp2": ["--plugin", "3d", "--tp", "2", "--batch_size", "4"],
    "pp2": ["--plugin", "3d", "--pp", "2", "--mbs", "1", "--batch_size", "4"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where a user works: one file beside the runs."""
    folder = tmp_path_factory.mktemp("user")
    shutil.copy(FILE, folder / "my_family.py")
    return folder


@pytest.fixture(scope="module")
def family(folder):
    """The family as this process knows it while these tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FAMILIES, "_entries", {})
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "my_family", raising=False)
        importlib.import_module("my_family")
        yield FAMILIES.get("two_matrix")
        sys.modules.pop("my_family")


def command(corpus, folder: Path, save_dir: str, *more: str, imports: bool = True, processes: int = 2) -> Command:
    """A run of the family's own preset, its size from nowhere else."""
    given = corpus.pretrain_flags(save_dir=save_dir, max_steps=STEPS, plugin=None, mixed_precision=None)
    words = ["--config", "two_matrix_tiny", *given[len(MODEL_SIZE) :], "--tensorboard_dir", "none", *more]
    words += ["--mixed_precision", "fp32"]
    words = [*(["--import", "my_family"] if imports else []), *words]
    return Command("pretrain", words, folder, "srun" if processes > 1 else "python", processes)


@pytest.fixture(scope="module")
def runs(corpus, folder) -> dict[str, Outcome]:
    """One of each way."""
    commands = [command(corpus, folder, way, *words) for way, words in WAYS.items()]
    outcomes = dict(zip(WAYS, run_two_at_once(*commands)))
    for outcome in outcomes.values():
        assert outcome.status == 0, outcome.stderr
    return outcomes


def course(run: Path, name: str) -> list[float]:
    return [record[name] for record in read_metrics(run / "metrics.jsonl")]


@pytest.mark.slow
@pytest.mark.parametrize("way", [way for way in WAYS if way != "ddp"])
def test_its_course_is_the_same_however_it_is_boosted_and_cut(runs, folder, way):
    assert len(course(folder / "ddp", "loss")) == STEPS
    for name in ("loss", "grad_norm"):
        assert course(folder / way, name) == pytest.approx(course(folder / "ddp", name), rel=2e-5), name


@pytest.mark.slow
def test_the_layers_own_loss_counts_and_its_flag_reaches_the_config(runs, corpus, folder):
    without = command(corpus, folder, "without", *WAYS["tp2"], "--stream_loss", "0", "--max_steps", "1").run()
    assert without.status == 0, without.stderr
    assert course(folder / "without", "loss")[0] == course(folder / "tp2", "loss")[0], "logged is the cross entropy"
    with_loss, alone = (course(folder / run, "grad_norm")[0] for run in ("tp2", "without"))
    assert abs(with_loss - alone) > 0.05 * alone
    config = json.loads((folder / "without/step_00000001/model/config.json").read_text())
    assert config["stream_loss"] == 0


@pytest.mark.slow
def test_a_run_is_gone_on_with_to_the_last_bit_and_says_what_it_needs(runs, corpus, folder):
    whole, half = folder / "ddp" / f"step_{STEPS:08d}", folder / "half"
    shutil.copytree(folder / "ddp", half)
    shutil.rmtree(half / f"step_{STEPS:08d}")
    without = command(corpus, folder, "half", *WAYS["ddp"], "--load", "auto", imports=False, processes=1)
    refused, resumed = run_two_at_once(
        Command("pretrain", _without_config(without.flags), folder),
        command(corpus, folder, "half", *WAYS["ddp"], "--load", "auto"),
    )
    assert resumed.status == 0, resumed.stderr
    assert_same_checkpoint(half / f"step_{STEPS:08d}", whole)
    assert refused.status == 2
    assert refused.errors == [
        "--import my_family: half/step_00000002/model has the model family 'two_matrix', which is in this module; give "
        "--import my_family, where Python finds it"
    ]


def _without_config(words: list[str]) -> list[str]:
    """Of a run whose size is given by hand: the preset would be the first to be missed."""
    return [*MODEL_SIZE, *words[2:]]


LOAD_ALONE = """
import json, sys, torch
sys.modules["llama_dyt"] = None
from transformers import AutoModelForCausalLM
model, report = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True, output_loading_info=True)
assert not report["missing_keys"] and not report["unexpected_keys"], report
model.eval()
again = type(model)(model.config)  # starts a new one, by the family's own rule
print(json.dumps([type(model).__module__, again.model.layers[0].mlp.down_proj.weight.std().item()]))
torch.save(model(torch.tensor([[1, 2, 3]])).logits, sys.argv[2])
"""


@pytest.mark.slow
def test_what_it_saved_loads_without_the_package_and_is_generated_from(runs, family, folder, tmp_path):
    copy = shutil.copytree(folder / "ddp" / f"step_{STEPS:08d}" / "model", tmp_path / "model")
    words = [sys.executable, "-I", "-W", "ignore", "-c", LOAD_ALONE, str(copy), str(tmp_path / "logits.pt")]
    prompt = ["--prompt", "The ", "--max_new_tokens", "4", "--model_path", "tp2"]
    loading = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    generated = Command("generate", ["--import", "my_family", *prompt], folder).run()
    without = Command("generate", prompt, folder).run()
    stdout, stderr = loading.communicate(timeout=240)
    assert loading.returncode == 0, stderr
    module, std = json.loads(stdout.splitlines()[-1])
    assert module.startswith("transformers_modules.") and module.endswith(".my_family")
    assert std == pytest.approx(0.02 / 4**0.5, rel=0.1)
    model = family.load_causal_lm_class().from_pretrained(copy).eval()
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), model(torch.tensor([[1, 2, 3]])).logits)
    assert generated.status == 0 and generated.stdout.startswith("The "), generated.stderr
    assert without.status == 2 and "give --import my_family" in without.stderr, without.stderr


def test_the_dry_run_has_its_exact_size(corpus, folder):
    cut = ["--plugin", "3d", "--tp", "2", "--pp", "2", "--mbs", "1", "--batch_size", "2"]
    big = command(corpus, folder, "sized", *cut, "--dry_run", "--dry_run_processes", "4", processes=1)
    outcome = Command("pretrain", [{"two_matrix_tiny": "two_matrix_7b"}.get(w, w) for w in big.flags], folder).run()
    assert outcome.status == 0, outcome.stderr
    hidden, between, layers = 4096, 16512, 32
    layer = 4 * hidden * hidden + 2 * hidden * between + 2 * (hidden + 1)
    expected = layers * layer + 2 * VOCAB_SIZE * hidden + (hidden + 1) + 1  # tables, last norm, embedding's scale
    assert f"# parameters      {expected:,}\n" in outcome.stdout
    assert re.search(rf"# all stages +{expected:,} parameters, each counted once", outcome.stdout)


def test_its_flops_are_those_of_its_matrices(family):
    config = build_config("two_matrix_tiny", vocab_size=VOCAB_SIZE)
    assert family_of(config) is family
    matrices = {
        name: parameter.numel()
        for name, parameter in empty_model(config).named_parameters()
        if parameter.dim() == 2 and "embed_tokens" not in name
    }
    attention = 12 * config.num_hidden_layers * config.hidden_size * 64
    assert family.flops_per_token(config, 64) == 6 * sum(matrices.values()) + attention
    forward_of_layers = 2 * (sum(matrices.values()) - matrices["lm_head.weight"]) + attention / 3
    once_more = hardware_flops_per_token(config, 64, 0.5) - family.flops_per_token(config, 64)
    share = len(recomputed_layers(config.num_hidden_layers, 0.5)) / config.num_hidden_layers
    assert once_more == pytest.approx(share * forward_of_layers)


def test_a_run_whose_file_could_not_travel_is_refused_before_it_starts(corpus, folder):
    text = (folder / "my_family.py").read_text()
    first = "from torch import nn\n"
    (folder / "tied_family.py").write_text(
        text.replace(first, f"{first}from llama_dyt.models.build import build_model\n")
    )
    run = command(corpus, folder, "tied", "--plugin", "ddp", imports=False, processes=1)
    outcome = Command("pretrain", ["--import", "tied_family", *run.flags], folder).run()
    assert outcome.status == 2
    (problem,) = outcome.errors
    assert problem.startswith(
        "model family two_matrix: its file tied_family cannot travel with the model, since it needs "
        "'llama_dyt.models.build': let it import torch"
    )
    assert not (folder / "tied").exists()
