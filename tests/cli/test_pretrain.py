"""pretrain.py from its command line to what it leaves behind, under every launcher."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from itertools import islice

import pytest
from safetensors.torch import load_file

from llama_dyt.config import cli
from llama_dyt.config.run import RunConfig
from llama_dyt.data.loaders.documents_apart import DocumentsApart
from llama_dyt.data.loaders.packed import TokenBatches
from llama_dyt.data.loaders.step import BatchShape
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.data.validation_sets import ValidationSet
from tests.cli.conftest import NUM_STEPS, VOCAB_SIZE, Run
from tests.cli.entries import Command, run_two_at_once

METRICS = [
    "step",
    "loss",
    "lr",
    "grad_norm",
    "tokens_seen",
    "tokens_per_second",
    "tflops_per_device",
    "mfu",
    "max_memory_mb",
    "data_wait_fraction",
]
LAUNCHERS = ("torchrun", "colossalai", "srun")


def test_a_good_run_ends_with_a_summary_and_no_traceback(pretrained):
    assert pretrained.outcome.status == 0
    assert "Traceback" not in pretrained.outcome.stderr
    assert "Warning" not in pretrained.outcome.stderr
    assert f"finished at step {NUM_STEPS} of {NUM_STEPS}" in pretrained.outcome.stdout
    for left in (f"run/step_{NUM_STEPS:08d}", "run/metrics.jsonl", "run/loss.png", "tensorboard --logdir tb_logs"):
        assert left in pretrained.outcome.stdout


def test_every_step_is_a_line_of_metrics_with_all_fields(pretrained):
    assert [record["step"] for record in pretrained.metrics] == list(range(1, NUM_STEPS + 1))
    for record in pretrained.metrics:
        assert set(METRICS) <= record.keys()
        assert all(math.isfinite(record[name]) for name in METRICS)
    assert pretrained.metrics[-1]["tokens_seen"] == NUM_STEPS * 2 * 32


def test_the_loss_starts_at_that_of_guessing_and_falls(pretrained):
    losses = [record["loss"] for record in pretrained.metrics]
    assert losses[0] == pytest.approx(math.log(VOCAB_SIZE), abs=0.05)
    assert losses[-1] < losses[0] - 0.1


def test_alpha_and_saturation_of_every_site_are_logged(pretrained):
    record = pretrained.metrics[0]
    layers = [f"model.layers.{n}.{norm}" for n in range(2) for norm in ("input_layernorm", "post_attention_layernorm")]
    assert set(record["alpha"]) == set(record["saturation"]) == {*layers, "model.norm"}


def test_config_yaml_is_the_run(pretrained):
    assert RunConfig.from_yaml(pretrained.save_dir / "config.yaml") == cli.parse("pretrain", pretrained.flags)


def test_tensorboard_shows_the_metrics(pretrained):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(pretrained.save_dir.parent / "tb_logs")).Reload()
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [(record["step"], pytest.approx(record["loss"])) for record in pretrained.metrics]
    assert "alpha/model.norm" in events.Tags()["scalars"]


def test_the_picture_is_a_png(pretrained):
    assert (pretrained.save_dir / "loss.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_a_checkpoint_has_the_documented_layout(pretrained):
    folders = sorted(path.name for path in pretrained.save_dir.iterdir() if path.is_dir())
    assert folders == [f"step_{step:08d}" for step in (NUM_STEPS // 2, NUM_STEPS)]
    step = pretrained.step(NUM_STEPS)
    assert (pretrained.save_dir / "latest").read_text() == f"{step.name}\n"
    assert {path.name for path in step.iterdir()} == {
        "model",
        "optimizer",
        "lr_scheduler",
        "trainer_state.json",
        "forward_check.json",
        "COMPLETE",
    }
    sizes = {str(p.relative_to(step)): p.stat().st_size for p in step.rglob("*") if p.is_file()}
    sizes.pop("COMPLETE")
    marker = json.loads((step / "COMPLETE").read_text())
    assert {name: entry["bytes"] for name, entry in marker.items()} == sizes
    digests = {name: hashlib.sha256((step / name).read_bytes()).hexdigest() for name in sizes}
    assert {name: entry["sha256"] for name, entry in marker.items()} == digests
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json"} <= sizes.keys()
    state = json.loads((step / "trainer_state.json").read_text())
    assert (state["step"], state["tokens_seen"]) == (NUM_STEPS, NUM_STEPS * 2 * 32)
    assert state["position"] and len(state["rng"]) == 1


def test_saved_weights_are_fp32_under_their_own_names(pretrained):
    weights = load_file(pretrained.step(NUM_STEPS) / "model" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in weights.values()} == {"torch.float32"}
    assert weights["model.embed_tokens.scale"].shape == weights["model.norm.alpha"].shape == (1,)
    assert weights["model.layers.1.self_attn.k_proj.weight"].shape == (16, 32)
    assert weights["lm_head.weight"].shape == (VOCAB_SIZE, 32)


def test_the_checkpoint_can_be_read_by_whoever_may_read_its_folder(pretrained):
    files = [path for path in pretrained.step(NUM_STEPS).rglob("*") if path.is_file()]
    assert len({path.stat().st_mode for path in files}) == 1


def test_the_model_loads_and_generates_where_this_package_does_not_exist(pretrained, tmp_path):
    program = """
import importlib.abc, sys
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("llama_dyt", "colossalai"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
from transformers import AutoModelForCausalLM, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
out = model.generate(**tokenizer("class ", return_tensors="pt"), max_new_tokens=5, do_sample=False)
print(type(model).__name__, model.config.norm_type, out.shape[1])
"""
    model = str(pretrained.step(NUM_STEPS) / "model")
    words = [sys.executable, "-I", "-c", program, model]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("LlamaDytForCausalLM dyt ")


@pytest.fixture(scope="module")
def launched(corpus, tmp_path_factory) -> dict[str, Run]:
    """The same run by two processes under every launcher; a rank's batch is half of `pretrained`'s."""
    folders = {launcher: tmp_path_factory.mktemp(launcher) for launcher in LAUNCHERS}
    flags = corpus.pretrain_flags(save_dir="run", batch_size=1)
    commands = [Command("pretrain", flags, folder, launcher, processes=2) for launcher, folder in folders.items()]
    outcomes = run_two_at_once(*commands)
    return {launcher: Run(folders[launcher] / "run", flags, o) for launcher, o in zip(folders, outcomes)}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_under_every_launcher(launched, pretrained, launcher):
    run = launched[launcher]
    assert run.outcome.status == 0, run.outcome.stderr
    assert "Traceback" not in run.outcome.stderr
    assert run.outcome.stdout.count("finished at step") == 1, "only the first rank sums up"
    assert "on 2 cpu processes" in run.outcome.stderr
    assert (run.step(NUM_STEPS) / "COMPLETE").is_file()
    alone = [record["loss"] for record in pretrained.metrics]
    assert [record["loss"] for record in run.metrics] == pytest.approx(alone, rel=1e-5)


def test_the_documented_defaults_train_under_gemini_in_fp16(corpus, tmp_path):
    flags = corpus.pretrain_flags(plugin=None, mixed_precision=None, max_steps=3, warmup_steps=1, save_dir="run")
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert "gemini fp16" in outcome.stderr
    records = Run(tmp_path / "run", flags, outcome).metrics
    # From the first step on: no step skipped, and the norm is logged without the scale in it.
    assert [record["skipped_steps"] for record in records] == [0, 0, 0]
    assert all(record["loss_scale"] > 1 and 0 < record["grad_norm"] < 10 for record in records)


def test_the_sample_corpus_is_built_at_once_and_scored_where_that_is_asked_for(corpus, tmp_path):
    flags = corpus.pretrain_flags(dataset="sample", tokenizer=None, max_steps=2, warmup_steps=1)
    scored = [*flags, "--save_dir", "scored", "--shuffle", "sequences", "--score_held_out"]
    outcomes = [Command("pretrain", more, tmp_path).run() for more in (scored, [*flags, "--save_dir", "plain"])]
    assert [outcome.status for outcome in outcomes] == [0, 0], outcomes[0].stderr + outcomes[1].stderr
    assert "bits per byte on" in outcomes[0].stdout
    assert "bits per byte" not in outcomes[1].stdout
    assert list((tmp_path / "data" / "sample").glob("*/train/*.jsonl"))


def test_documents_apart_train_and_validate(corpus, tmp_path):
    """From the command line to the model: the first tokens of documents are no targets."""
    flags = corpus.pretrain_flags(max_steps=3, max_length=256, validation_freq=2, validation_fraction=0.1)
    flags = [*flags, "--reset_position_ids", "--reset_attention_mask", "--save_dir", "run"]
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    records = Run(tmp_path / "run", flags, outcome).metrics
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    assert [record["step"] for record in records if "validation_loss" in record] == [2, 3]

    tokenizer = load_tokenizer(corpus.tokenizer)
    held_out = ValidationSet("train", str(corpus.train), 0.1).open()
    with TokenBatches(held_out, tokenizer, 256, BatchShape(2)) as batches:
        packed = list(islice(batches, 16))
    apart = list(DocumentsApart(iter(packed), tokenizer.eos_token_id, True, True, lambda count: lambda: count))
    targets, all_targets = (sum(step.num_label_tokens for step in steps) for steps in (apart, packed))
    assert records[-1]["validation_tokens"]["train"] == targets < all_targets
