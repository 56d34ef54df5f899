"""finetune.py from one of our checkpoints and from a plain HuggingFace folder: what carries loss, and resuming."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from llama_dyt.data.formats.sources import ReadOptions
from llama_dyt.data.loaders.instructions import InstructionBatches
from llama_dyt.data.loaders.step import BatchShape
from llama_dyt.data.opening import open_data
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.models import build_config
from tests.cli.conftest import VOCAB_SIZE, Corpus, Run, as_flags
from tests.cli.entries import Command
from tests.cli.test_resume import assert_same_checkpoint, assert_same_course

NUM_STEPS = 12  # 48 examples in batches of 4


def finetune_flags(corpus: Corpus, model_path: Path, **changes) -> list[str]:
    flags = {
        "model_path": model_path,
        "dataset": corpus.prompts,
        "plugin": "zero2",
        "mixed_precision": "fp32",
        "max_length": 64,
        "batch_size": 4,
        "lr": "1e-2",
        "save_dir": "run",
    }
    return as_flags({**flags, **changes})


@pytest.fixture(scope="module")
def plain_llama(corpus, tmp_path_factory) -> Path:
    """An HF folder of a stock LlamaForCausalLM, as anybody may have one."""
    folder = tmp_path_factory.mktemp("plain_llama")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, num_key_value_heads=2, **sizes)).save_pretrained(folder)
    load_tokenizer(corpus.tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def runs(corpus, pretrained, plain_llama, tmp_path_factory) -> dict[str, Run]:
    """From our checkpoint uninterrupted ("whole") and resumed from its middle ("resumed"); from a plain LLaMA."""

    def run(name: str, flags: list[str], prepare=lambda folder: None) -> Run:
        folder = tmp_path_factory.mktemp(name)
        prepare(folder)
        return Run(folder / "run", flags, Command("finetune", flags, folder).run())

    def whole_then_resumed() -> tuple[Run, Run]:
        whole = run("whole", finetune_flags(corpus, pretrained.save_dir, save_interval=NUM_STEPS // 2))

        def break_off(folder: Path) -> None:
            shutil.copytree(whole.save_dir, folder / "run")
            shutil.rmtree(folder / "run" / whole.step(NUM_STEPS).name)

        return whole, run("resumed", [*whole.flags, "--load", "auto"], break_off)

    with ThreadPoolExecutor(2) as pool:
        ours = pool.submit(whole_then_resumed)
        plain = pool.submit(run, "plain", finetune_flags(corpus, plain_llama))
        whole, resumed = ours.result()
        return {"whole": whole, "resumed": resumed, "plain": plain.result()}


@pytest.mark.parametrize("name", ["whole", "plain"])
def test_the_loss_falls(runs, name):
    run = runs[name]
    assert run.outcome.status == 0, run.outcome.stderr
    assert "Traceback" not in run.outcome.stderr
    losses = [record["loss"] for record in run.metrics]
    assert len(losses) == NUM_STEPS
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["whole", "plain"])
def test_only_completions_carry_loss(runs, name, corpus, pretrained, plain_llama):
    """The first loss is that of the starting weights on the first batch's completions and EOS, computed by hand."""
    start = plain_llama if name == "plain" else pretrained.step(12) / "model"
    model = AutoModelForCausalLM.from_pretrained(start)
    tokenizer = load_tokenizer(start)
    source = open_data(corpus.prompts, ReadOptions(fields=("prompt", "completion")))
    with InstructionBatches(source, tokenizer, 64, BatchShape(4)) as batches:
        (batch,) = next(iter(batches)).micro_batches
    total, count = 0.0, 0
    for row in batch["input_ids"]:
        text = tokenizer.decode(row, skip_special_tokens=True)
        prompt, completion = text.split(": ", 1)
        head = [tokenizer.bos_token_id, *tokenizer(f"{prompt}: ", add_special_tokens=False)["input_ids"]]
        tail = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([head + tail])
        assert row[: ids.shape[1]].tolist() == ids[0].tolist()
        with torch.no_grad():
            logits = model(ids).logits[0, len(head) - 1 : -1]
        total += float(functional.cross_entropy(logits, torch.tensor(tail), reduction="sum"))
        count += len(tail)
    assert runs[name].metrics[0]["loss"] == pytest.approx(total / count, rel=1e-5)


def test_a_resumed_run_equals_the_uninterrupted_one(runs):
    assert runs["resumed"].outcome.status == 0, runs["resumed"].outcome.stderr
    assert "resumed from run/step_00000006" in runs["resumed"].outcome.stderr
    assert_same_course(runs["resumed"].metrics, runs["whole"].metrics)
    assert_same_checkpoint(runs["resumed"].step(NUM_STEPS), runs["whole"].step(NUM_STEPS))


@pytest.mark.parametrize(("name", "norm"), [("whole", "dyt"), ("plain", "rmsnorm")])
def test_the_norm_of_the_weights_is_kept(runs, name, norm):
    folder = runs[name].step(NUM_STEPS) / "model"
    assert build_config(folder).norm_type == norm
    names = AutoModelForCausalLM.from_pretrained(folder).state_dict().keys()
    assert ("model.norm.alpha" in names) == ("model.embed_tokens.scale" in names) == (norm == "dyt")


def test_the_tokenizer_of_the_weights_goes_with_them(runs, corpus):
    tokenizer = load_tokenizer(runs["whole"].step(NUM_STEPS))
    assert tokenizer.get_vocab() == load_tokenizer(corpus.tokenizer).get_vocab()
