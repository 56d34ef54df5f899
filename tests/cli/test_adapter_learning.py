"""A model pretrained here on string transformations learns another one by an adapter alone, exactly."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.models import build_config, build_model
from tests.cli.conftest import as_flags, write_lines
from tests.cli.entries import Command

LETTERS = "abcdefghij"
OLD = {"C": lambda word: word, "R": lambda word: word[::-1], "D": lambda word: word[1:] + word[:1]}
"""Copy, reverse, rotate: what the weights learn."""
NEW = {"N": lambda word: "".join(LETTERS[(LETTERS.index(letter) + 1) % len(LETTERS)] for letter in word)}
"""The next letter of each: what the adapter learns."""


def records(transformations: dict, words: list[str]) -> list[dict[str, str]]:
    return [
        {"prompt": f"{key}{word}>", "completion": transform(word)}
        for word in words
        for key, transform in transformations.items()
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Data, and a model with its starting weights and a tokenizer of single characters."""
    folder = tmp_path_factory.mktemp("learning")
    characters = ["<s>", "</s>", "<unk>", *LETTERS, *OLD, *NEW, ">"]
    tokenizer = Tokenizer(models.WordLevel({token: id for id, token in enumerate(characters)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "start")
    sizes = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    config = build_config(
        "15m", vocab_size=len(characters), initializer_range=0.08, max_position_embeddings=32, **sizes
    )
    build_model(config, seed=0).save_pretrained(folder / "start")
    generator = random.Random(0)
    words = sorted({"".join(generator.choices(LETTERS, k=5)) for _ in range(8000)})
    generator.shuffle(words)
    write_lines(folder / "old.jsonl", records(OLD, words[:4000]))
    write_lines(folder / "new.jsonl", records(NEW, words[4000:7000]))
    write_lines(folder / "held_out.jsonl", records(NEW, words[7000:7200]))
    return folder


def train(place: Path, **flags) -> None:
    common = {"plugin": "ddp", "mixed_precision": "fp32", "batch_size": 48, "max_length": 14, "num_epochs": 5}
    outcome = Command("finetune", as_flags({**common, **flags}), place).run()
    assert outcome.status == 0, outcome.stderr


def share_right(folder: Path, held_out: list[dict[str, str]]) -> float:
    """How many of the answers are right to the last letter."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)
    encoded = [tokenizer(record["prompt"], add_special_tokens=False)["input_ids"] for record in held_out]
    ids = torch.tensor([[tokenizer.bos_token_id, *row] for row in encoded])
    end = tokenizer.eos_token_id
    answers = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=end, pad_token_id=end)[
        :, len(ids[0]) :
    ]
    expected = [[*tokenizer(record["completion"], add_special_tokens=False)["input_ids"], end] for record in held_out]
    return sum(answer.tolist() == right for answer, right in zip(answers, expected, strict=True)) / len(held_out)


@pytest.mark.matrix  # three quarters of a minute
@pytest.mark.slow
def test_an_adapter_alone_learns_a_new_transformation_exactly(place):
    held_out = [json.loads(line) for line in (place / "held_out.jsonl").open()]
    train(place, model_path="start", dataset="old.jsonl", max_steps=120, lr="2e-3", save_dir="pretrained")
    assert share_right(place / "pretrained" / "step_00000120" / "model", held_out) < 0.05
    adapter = {"lora_rank": 8, "merge_adapter": True, "weight_decay": 0}
    train(place, model_path="pretrained", dataset="new.jsonl", max_steps=70, lr="1e-2", save_dir="adapter", **adapter)
    assert share_right(place / "adapter" / "merged", held_out) >= 0.95
