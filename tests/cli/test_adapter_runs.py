"""finetune.py with an adapter: what a run leaves, that it resumes, that peft reads it, and what is refused."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import generate
from llama_dyt.core.errors import CheckpointError, ConfigurationError
from llama_dyt.training.plan import make_plan
from tests.cli.conftest import NUM_STEPS as LAST
from tests.cli.conftest import Corpus, Run, as_flags
from tests.cli.entries import Command
from tests.cli.test_resume import assert_same_course

NUM_STEPS = 12  # 48 examples in batches of 4


def adapter_flags(corpus: Corpus, model_path: Path | str, **changes) -> list[str]:
    flags = {
        "model_path": model_path,
        "dataset": corpus.prompts,
        "plugin": "ddp",
        "mixed_precision": "fp32",
        "max_length": 64,
        "batch_size": 4,
        "lr": "5e-2",
        "save_dir": "run",
        "lora_rank": 4,
        "lora_dropout": 0.1,
        "save_interval": NUM_STEPS // 2,
    }
    return as_flags({**flags, **changes})


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


@pytest.fixture(scope="module")
def runs(corpus, pretrained, tmp_path_factory) -> dict[str, Run]:
    """Uninterrupted ("whole"), and resumed from its middle ("resumed")."""
    base = pretrained.step(LAST) / "model"
    before = digests(base)
    folder = tmp_path_factory.mktemp("whole")
    flags = [*adapter_flags(corpus, pretrained.save_dir), "--merge_adapter"]
    whole = Run(folder / "run", flags, Command("finetune", flags, folder).run())
    assert whole.outcome.status == 0, whole.outcome.stderr

    folder = tmp_path_factory.mktemp("resumed")
    shutil.copytree(whole.save_dir, folder / "run")
    shutil.rmtree(folder / "run" / whole.step(NUM_STEPS).name)
    flags = [*whole.flags, "--load", "auto"]
    resumed = Run(folder / "run", flags, Command("finetune", flags, folder).run())
    assert resumed.outcome.status == 0, resumed.outcome.stderr
    assert digests(base) == before
    return {"whole": whole, "resumed": resumed}


def test_the_loss_falls_and_what_is_trained_is_said(runs):
    losses = [record["loss"] for record in runs["whole"].metrics]
    assert len(losses) == NUM_STEPS
    assert losses[-1] < 0.95 * losses[0]
    trained = 4 * sum(sides for *_, sides in LINEARS) * 2
    assert f"{trained:,} parameters trained" in runs["whole"].outcome.stderr


LINEARS = [("q", 64), ("k", 48), ("v", 48), ("o", 64), ("gate", 96), ("up", 96), ("down", 96)]
"""Inputs and outputs of each linear of a layer of the corpus's runs."""


def test_a_checkpoint_holds_the_adapter_alone_and_names_its_base(runs, pretrained):
    step = runs["whole"].step(NUM_STEPS)
    assert sorted(path.name for path in step.iterdir() if path.is_dir()) == ["adapter", "optimizer"]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= set(digests(step / "adapter"))
    base = json.loads((step / "adapter" / "base.json").read_text())
    assert base["path"] == str((pretrained.step(LAST) / "model").absolute())
    weights = pretrained.step(LAST) / "model" / "model.safetensors"
    assert base["files"]["model.safetensors"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_a_resumed_run_equals_the_uninterrupted_one(runs):
    assert "resumed from run/step_00000006" in runs["resumed"].outcome.stderr
    assert_same_course(runs["resumed"].metrics, runs["whole"].metrics)
    for file in ("adapter/adapter_model.safetensors", "optimizer/optimizer.safetensors"):
        tensors, wanted = (load_file(runs[name].step(NUM_STEPS) / file) for name in ("resumed", "whole"))
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted)


def test_peft_reads_it_and_gives_what_the_merged_folder_gives(runs, pretrained, capsys):
    whole = runs["whole"]
    base = AutoModelForCausalLM.from_pretrained(pretrained.step(LAST) / "model").eval()
    ids = torch.arange(40, 60)[None]
    with torch.no_grad():
        plain = base(ids).logits
        theirs = peft.PeftModel.from_pretrained(base, whole.step(NUM_STEPS) / "adapter").eval()(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(whole.save_dir / "merged").eval()(ids).logits
    assert (theirs - plain).abs().max() > 1e-2
    torch.testing.assert_close(merged, theirs, rtol=0, atol=1e-5)

    texts = []
    for flags in (["--model_path", whole.save_dir / "merged"], ["--adapter", whole.save_dir]):
        generate.main([*map(str, flags), "--prompt", "Colour", "--temperature", "0", "--max_new_tokens", "8"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_an_adapter_is_no_model_to_generate_from(runs, tmp_path):
    for path in (runs["whole"].save_dir, runs["whole"].step(NUM_STEPS) / "adapter"):
        with pytest.raises(CheckpointError, match="holds an adapter alone; give it as --adapter"):
            generate.main(["--model_path", str(path)])
    with pytest.raises(CheckpointError, match="--adapter .*nowhere: no such folder; give one with an adapter_config"):
        generate.main(["--adapter", str(tmp_path / "nowhere")])
    with pytest.raises(ConfigurationError, match="--model_path is needed, or --adapter, which names its base"):
        generate.main([])


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path, monkeypatch, runs) -> Path:
    """The working directory, with the folder of an adapter's run to resume or begin from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shutil.copytree(runs["whole"].save_dir, tmp_path / "adapters")
    return tmp_path


def problems_of(flags: list[str]) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        make_plan("finetune", flags)
    assert all("\n" not in problem for problem in caught.value.problems)
    return caught.value.problems


REFUSED = {
    "rank 0": ({"lora_rank": 0}, "--lora_rank 0: give 1 or more"),
    "a rank that is no number": ({"lora_rank": "four"}, "--lora_rank: 'four' is not a whole number"),
    "unknown target": (
        {"lora_targets": "q_prj"},
        "--lora_targets q_prj: unknown module .*did you mean 'q_proj'.*known",
    ),
    "gemini": (
        {"plugin": "gemini", "mixed_precision": "bf16"},
        "--lora_rank 4: --plugin gemini trains all of a model; take --plugin zero1 or zero2",
    ),
    "flags without an adapter": (
        {"lora_rank": None, "lora_dropout": None, "lora_targets": "q_proj"},
        "--lora_targets .* has no effect without an adapter; add --lora_rank or --adapter",
    ),
    "another norm": ({"norm": "rmsnorm"}, "--norm rmsnorm starts a norm anew"),
    "a file that brings its rank": ({"adapter": "adapters"}, "--lora_rank 4 contradicts --adapter adapters"),
    "no such adapter": ({"lora_rank": None, "adapter": "nowhere"}, "--adapter nowhere: no such folder; give"),
    "no adapter in a folder": (
        {"lora_rank": None, "adapter": "."},
        "--adapter .: no adapter_config.json and no checkpoint in it; give a folder",
    ),
    "a whole model as adapter": (
        {"lora_rank": None, "adapter": "MODEL"},
        "--adapter .* whole model; give it as --model",
    ),
    "an adapter as model": (
        {"model_path": "adapters"},
        "--model_path adapters: .* holds an adapter alone; give its base",
    ),
    "zero bubbles": (
        {"plugin": "3d", "pp": 2, "pp_style": "zbv"},
        "--lora_rank 4: the linear layers of --pp_style zbv put off gradients of weights.*take another style",
    ),
    "a stage without an adapter": (
        {"plugin": "3d", "pp": 2, "lora_targets": "layers.0,lm_head"},
        "--pp 2: a stage has to train something, and the adapter has nothing in layer 1; give --pp 1, or target",
    ),
    "weights by 8 bits": (
        {"mixed_precision": "bf16", "fp8": "tensorwise", "fp8_emulate": True},
        "--lora_rank 4 with --fp8 would be trained beside weights of which 8 bits are used; leave one out",
    ),
    "a checkpoint of another rank": (
        {"lora_rank": 8, "load": "adapters"},
        "holds LoRA of rank 4.*asks for LoRA of rank 8",
    ),
    "a checkpoint of an adapter": (
        {"lora_rank": None, "lora_dropout": None, "load": "adapters"},
        "holds an adapter alone: give the --lora_rank",
    ),
    "a checkpoint of a model": ({"load": "MODEL"}, "holds a whole model, and this run trains an adapter"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_each_mistake_is_one_line_with_its_remedy(corpus, pretrained, place, monkeypatch, case):
    changes, expected = REFUSED[case]
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(changes.get("pp", 1)))
    changes = {name: pretrained.save_dir if value == "MODEL" else value for name, value in changes.items()}
    (problem,) = problems_of(adapter_flags(corpus, changes.pop("model_path", pretrained.save_dir), **changes))
    assert re.search(expected, problem), problem


def test_an_adapter_needs_weights(corpus, place):
    flags = corpus.pretrain_flags(lora_rank=4, save_dir="run")
    with pytest.raises(ConfigurationError, match="--lora_rank 4 needs weights to be trained beside; give --model_path"):
        make_plan("pretrain", flags)


def test_a_saved_adapter_is_gone_on_with_under_its_own_rank(corpus, pretrained, place):
    flags = adapter_flags(corpus, pretrained.save_dir, lora_rank=None, adapter="adapters")
    plan = make_plan("finetune", flags)
    assert plan.adapter_folder == Path("adapters") / f"step_{NUM_STEPS:08d}" / "adapter"
    assert {place.rank for place in plan.adapter.places.values()} == {4}
    assert {place.dropout for place in plan.adapter.places.values()} == {0.1}
    (problem,) = problems_of([*flags, "--use_dora"])
    assert "--use_dora contradicts --adapter adapters" in problem


def test_another_base_is_refused_by_its_checksum(corpus, pretrained, place):
    base = shutil.copytree(pretrained.step(LAST) / "model", place / "base")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    flags = adapter_flags(corpus, base, save_dir="adapters", load="auto", save_interval=1)
    shutil.rmtree(place / "adapters" / f"step_{NUM_STEPS:08d}")
    outcome = Command("finetune", flags, place).run()
    assert outcome.status == 2
    (message,) = outcome.errors
    assert "is not the base that adapters/step_00000006 was trained beside: model.safetensors holds other" in message
