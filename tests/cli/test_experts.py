"""A Mixtral through the entries, experts spread over two processes: trained, resumed, scored, exported, reported."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from llama_dyt.models import load_pretrained
from tests.cli.conftest import NUM_STEPS, Corpus, Run
from tests.cli.entries import Command, run_two_at_once
from tests.cli.test_resume import assert_same_checkpoint

EXPERTS = {"config": "mixtral_8x2m", "num_local_experts": 4, "plugin": "zero2", "ep": 2, "batch_size": 1}
HALF = NUM_STEPS // 2


def flags_of(corpus: Corpus, **changes) -> list[str]:
    return corpus.pretrain_flags(**{**EXPERTS, "save_dir": "run", "save_interval": HALF, "log_interval": 1, **changes})


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> dict[str, Run]:
    """By the norm, each of two processes that share the experts."""
    flags = {"rmsnorm": {"norm": "rmsnorm"}, "dyt": {"router_z_loss_coef": "0.001"}}
    flags = {name: flags_of(corpus, **changes) for name, changes in flags.items()}
    folders = {name: tmp_path_factory.mktemp(name) for name in flags}
    commands = [Command("pretrain", flags[name], folders[name], "srun", processes=2) for name in flags]
    outcomes = run_two_at_once(*commands)
    return {name: Run(folders[name] / "run", flags[name], outcome) for name, outcome in zip(flags, outcomes)}


@pytest.mark.parametrize("norm", ["rmsnorm", "dyt"])
def test_it_learns_and_says_what_its_routers_do(runs, norm):
    run = runs[norm]
    assert run.outcome.status == 0, run.outcome.stderr
    first, *_, last = records = [record for record in run.metrics if "loss" in record]
    assert len(records) == NUM_STEPS and last["loss"] < first["loss"] - 0.1
    for record in records:
        assert (
            0 < record["router_entropy"] <= math.log(4)
            and record["expert_load_least"] <= 1 <= record["expert_load_most"]
        )
        assert record["router_balance_loss"] > 1.9 and record["router_z"] > 0 and "router_dropped" not in record
    assert sorted(first["expert_load"]) == [f"{layer}.{expert}" for layer in range(2) for expert in range(4)]
    assert sorted(first["router_entropy_by_layer"]) == ["0", "1"]
    report = (run.save_dir / "report.html").read_text(encoding="utf-8")
    assert "expert_load" in report and "router_entropy_by_layer" in report


@pytest.mark.parametrize(("processes", "changes"), [(2, {}), (1, {"ep": 1, "batch_size": 2})], ids=["same", "alone"])
def test_it_goes_on_from_its_middle_spread_as_before_or_not_at_all(corpus, runs, tmp_path, processes, changes):
    """One process takes the same rows: routers' losses are of a micro batch, which is the same there."""
    whole = runs["dyt"]
    shutil.copytree(whole.save_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / f"run/step_{NUM_STEPS:08d}")
    flags = flags_of(corpus, router_z_loss_coef="0.001", load="auto", **changes)
    resumed = Command("pretrain", flags, tmp_path, "srun" if processes > 1 else "python", processes=processes).run()
    assert resumed.status == 0, resumed.stderr
    run = Run(tmp_path / "run", flags, resumed)
    found, wanted = ([record["loss"] for record in one.metrics if "loss" in record] for one in (run, whole))
    if changes:
        assert found == pytest.approx(wanted, rel=1e-5)
    else:
        assert found == wanted
        assert_same_checkpoint(run.step(NUM_STEPS), whole.step(NUM_STEPS))


def test_one_of_rmsnorm_is_transformers_own(runs):
    saved = runs["rmsnorm"].step(NUM_STEPS) / "model"
    assert json.loads((saved / "config.json").read_text())["model_type"] == "mixtral" and not list(saved.glob("*.py"))
    model, report = AutoModelForCausalLM.from_pretrained(saved, output_loading_info=True)
    assert type(model).__module__.startswith("transformers.models.mixtral")
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids = torch.arange(3, 35)[None]
    torch.testing.assert_close(model.eval()(ids).logits, load_pretrained(saved).eval()(ids).logits, rtol=0, atol=1e-5)


def test_a_finished_one_is_exported_scored_and_writes(corpus, runs, tmp_path):
    hub, dyt = tmp_path / "hub", str(runs["dyt"].save_dir)
    exported, scored = run_two_at_once(
        Command(
            "convert",
            ["--input_path", str(runs["rmsnorm"].step(NUM_STEPS)), "--to", "hf", "--output_path", str(hub), "--verify"],
            tmp_path,
        ),
        Command("eval_model", ["--model_path", dyt, "--dataset", str(corpus.train), "--max_length", "32"], tmp_path),
    )
    assert exported.status == 0, exported.stderr
    assert any("block_sparse_moe.experts.3.w2" in name for name in shapes_in(hub))
    assert scored.status == 0 and "perplexity" in scored.stdout.lower(), scored.stderr
    written = Command("generate", ["--model_path", dyt, "--prompt", "def ", "--max_new_tokens", "4"], tmp_path).run()
    assert written.status == 0 and "def " in written.stdout, written.stderr


def test_a_dense_model_becomes_one_with_experts_that_computes_the_same(pretrained, tmp_path):
    dense, up = pretrained.step(NUM_STEPS) / "model", tmp_path / "up"
    flags = ["--input_path", str(dense), "--output_path", str(up), "--upcycle", "4", "--verify"]
    outcome = Command("convert", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    counts = [sum(map(math.prod, shapes_in(folder).values())) for folder in (dense, up)]
    assert counts[1] > 1.5 * counts[0]
    said = re.findall(r"([\d,]+) parameters", outcome.stdout + outcome.stderr)
    assert said == [f"{count:,}" for count in counts]


def shapes_in(folder: Path) -> dict[str, list[int]]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names = opened.keys()
            found |= {name: opened.get_slice(name).get_shape() for name in names}
    return found


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"ep": 3}, "--ep 3"),
        ({"num_local_experts": 3}, "does not divide the 3 experts of a layer"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok 5"),
        ({"plugin": "gemini", "mixed_precision": "bf16"}, "gemini"),
    ],
)
def test_what_cannot_be_is_told_in_one_line_before_anything_starts(corpus, tmp_path, changes, reason):
    outcome = Command("pretrain", flags_of(corpus, **changes), tmp_path, "srun", processes=2).run()
    assert outcome.status == 2 and reason in outcome.stderr, outcome.stderr
    assert not (tmp_path / "run").exists()
