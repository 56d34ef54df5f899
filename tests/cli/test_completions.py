"""What finetune.py taught comes back from generate.py to the letter, with a tokenizer that puts spaces before texts."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import generate
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.models import LlamaDytConfig
from llama_dyt.training.plan import make_plan
from tests.cli.conftest import as_flags, write_lines
from tests.cli.entries import Command, Outcome
from tests.sentencepiece_models import write_model

VOCAB_SIZE = 600
CHATML = ("<|im_start|>", "<|im_end|>")
PAIRS = [
    ("The sky is", " blue"),
    ("The sky is not ", "green"),
    ("def f(x):", "\n        return  x"),
    ("  1 + 1 =", "  2"),
]
CHATS = [
    (f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", f"{answer}<|im_end|>\n")
    for question, answer in (("Which colour?", "red"), ("How many?", "  two"))
]


def start(folder: Path, vocab_size: int) -> None:
    """A plain LLaMA's weights."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, max_position_embeddings=64, **sizes)).save_pretrained(folder)


def overfit(folder: Path, pairs: list[tuple[str, str]], **flags) -> Outcome:
    write_lines(folder / "pairs.jsonl", [{"prompt": prompt, "completion": answer} for prompt, answer in pairs])
    common = {
        "model_path": folder / "start",
        "dataset": folder / "pairs.jsonl",
        "plugin": "ddp",
        "mixed_precision": "fp32",
        "max_length": 64,
        "batch_size": len(pairs),
        "num_epochs": 60,
        "lr": "5e-3",
        "save_dir": "run",
    }
    return Command("finetune", as_flags({**common, **flags}), folder).run()


@pytest.fixture(scope="module")
def overfitted(tmp_path_factory) -> dict[str, Path]:
    """The save_dirs of two runs: on PAIRS with a bare tokenizer.model as LLaMA's, on CHATS with ChatML's tokens."""
    pairs, chats = tmp_path_factory.mktemp("pairs"), tmp_path_factory.mktemp("chats")
    start(pairs / "start", VOCAB_SIZE)
    model = write_model(pairs / "start" / "tokenizer.model", vocab_size=VOCAB_SIZE)
    start(chats / "start", VOCAB_SIZE + len(CHATML))
    tokenizer = load_tokenizer(model)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CHATML)})
    tokenizer.save_pretrained(chats / "start")
    with ThreadPoolExecutor(2) as pool:
        outcomes = [
            pool.submit(overfit, pairs, PAIRS),
            pool.submit(overfit, chats, CHATS, parse_special_tokens="true"),
        ]
        for outcome in outcomes:
            assert outcome.result().status == 0, outcome.result().stderr
    return {"pairs": pairs / "run", "chats": chats / "run"}


def generated(capsys, save_dir: Path, prompts: list[str], *flags: str) -> list[str]:
    given = [word for prompt in prompts for word in ("--prompt", prompt)]
    generate.main(["--model_path", str(save_dir), *given, "--temperature", "0", "--max_new_tokens", "32", *flags])
    return capsys.readouterr().out.removesuffix("\n").split("\n---\n")


@pytest.mark.parametrize(("name", "pairs"), [("pairs", PAIRS), ("chats", CHATS)])
def test_generation_gives_exactly_the_completions(overfitted, capsys, name, pairs):
    texts = generated(capsys, overfitted[name], [prompt for prompt, _ in pairs])
    assert texts == [prompt + completion for prompt, completion in pairs]


def test_the_rule_for_special_tokens_goes_with_the_model(overfitted, capsys):
    """And a flag of generate.py overrules it: as text, the same markers take too many tokens for the model."""
    (step,) = overfitted["chats"].glob("step_*")
    assert json.loads((step / "model" / "tokenizer_config.json").read_text())["split_special_tokens"] is False
    (step,) = overfitted["pairs"].glob("step_*")
    assert json.loads((step / "model" / "tokenizer_config.json").read_text())["split_special_tokens"] is True
    markers = CHATML[1] * 40
    assert generated(capsys, overfitted["chats"], [markers], "--max_new_tokens", "1")
    with pytest.raises(ConfigurationError, match="and the model has 64 positions"):
        generated(capsys, overfitted["chats"], [markers], "--no-parse_special_tokens")


def test_a_config_names_no_bos_that_the_tokenizer_lacks(tmp_path, monkeypatch, corpus):
    """The id that transformers takes by default is one of the tokenizer's pieces."""
    monkeypatch.chdir(tmp_path)
    model = write_model(tmp_path / "bare.model", bos_id=-1, eos_id=1)
    config = make_plan("pretrain", corpus.pretrain_flags(tokenizer=model)).model_config
    config.save_pretrained(tmp_path / "saved")
    for said in (config, LlamaDytConfig.from_pretrained(tmp_path / "saved")):
        assert (said.bos_token_id, said.eos_token_id, said.pad_token_id) == (None, 1, None)
