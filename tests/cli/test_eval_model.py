"""eval_model.py: its figures are the model's own, whatever the windows; two models beside each other; wrong input."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import eval_model
from llama_dyt.core.errors import CheckpointError, ConfigurationError, DataError
from llama_dyt.data.tokenizing.tokenizer import load_tokenizer
from llama_dyt.training.evaluation.windows import cut
from tests.cli.conftest import NUM_STEPS, write_lines
from tests.cli.entries import Command

TEXTS = ["class Thing:\n    pass\n", "é" * 9, "the end of it", "return value " * 12]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_lines(folder / "held.jsonl", [{"text": text} for text in [*TEXTS, ""]])
    return folder / "held.jsonl"


@pytest.fixture
def measured(tmp_path):
    def run(*flags) -> dict:
        eval_model.main([*map(str, flags), "--json", str(tmp_path / "result.json")])
        return json.loads((tmp_path / "result.json").read_text())

    return run


@pytest.fixture(scope="module")
def model(pretrained):
    folder = pretrained.step(NUM_STEPS) / "model"
    return AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)


@torch.no_grad()
def nats(model, ids: list[int]) -> list[float]:
    """Of every token but the first, seen with all before it."""
    logits = model(torch.tensor([ids]), use_cache=False).logits[0, :-1].double()
    return (-logits.log_softmax(-1)[range(len(ids) - 1), ids[1:]]).tolist()


def documents(tokenizer) -> list[list[int]]:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return [[bos, *tokenizer.encode(text, add_special_tokens=False), eos] for text in TEXTS]


def test_documents_are_scored_each_by_itself(pretrained, texts, model, measured):
    found = measured("--model_path", pretrained.save_dir, "--dataset", texts)["model"]["datasets"]["held"]
    each = [nats(model[0], ids) for ids in documents(model[1])]
    total, count = sum(map(sum, each)), sum(map(len, each))
    size = sum(len(text.encode()) for text in TEXTS)
    assert (found["tokens"], found["bytes"], found["documents"]) == (count, size, 4)
    assert found["loss"] == pytest.approx(total / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(total / count), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / size, rel=1e-5)


@pytest.mark.parametrize("stride", [4, 15])
def test_sliding_windows_predict_each_token_once_with_what_is_before_it(pretrained, texts, model, measured, stride):
    flags = ["--model_path", pretrained.save_dir, "-d", texts, "--max_length", 16]
    found = measured(*flags, "--windows", "sliding", "--stride", stride)["model"]["datasets"]["held"]
    stream, bos = sum(documents(model[1]), []), model[1].bos_token_id
    windows = list(cut(np.array(stream), 16, stride))
    assert [id for window in windows for id in window.tokens[window.scored :]] == stream[1:]
    assert all(window.scored >= 16 - stride and len(window.tokens) <= 16 for window in windows[1:])
    expected = [
        loss
        for window in windows
        for place, loss in enumerate(nats(model[0], window.tokens.tolist()), start=1)
        if place >= window.scored and window.tokens[place] != bos
    ]
    assert found["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    if stride == 15:
        assert found == measured(*flags, "--windows", "stream")["model"]["datasets"]["held"]


def test_a_table_has_another_model_beside_it(pretrained, texts, tmp_path):
    flags = ["--model_path", pretrained.step(NUM_STEPS // 2), "--against", pretrained.step(NUM_STEPS)]
    flags += ["-d", texts, "--json", "result.json"]
    outcome = Command("eval_model", [str(flag) for flag in flags], tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    ours, theirs = (result[side]["datasets"]["held"]["loss"] for side in ("model", "against"))
    assert ours != theirs
    line = next(line for line in outcome.stdout.splitlines() if line.startswith("held: loss"))
    assert line.split()[-3:] == [f"{ours:.4f}", f"{theirs:.4f}", f"{ours - theirs:+.4f}"]


def test_limits_take_the_first_documents(pretrained, texts, measured):
    flags = ["--model_path", pretrained.save_dir, "-d", texts]
    assert measured(*flags, "--max_documents", 2)["model"]["datasets"]["held"]["documents"] == 2
    assert measured(*flags, "--max_bytes", 23)["model"]["datasets"]["held"]["documents"] == 2


def test_mistakes_are_told_together_before_anything_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("llama_dyt.training.evaluation.harness.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError) as caught:
        eval_model.main(["--model_path", "x", "--stride", "9", "--batch_size", "0", "--tasks", "hellaswag,arc_easy"])
    told = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 3
    for part in ("--batch_size 0: give 1 or more", "--stride 9 is for --windows sliding", "run `pip install lm-eval`"):
        assert part in told
    with pytest.raises(ConfigurationError, match="there is nothing to measure; give --dataset, --tasks or both"):
        eval_model.main(["--model_path", "x"])


def test_datasets_and_models_that_are_not_there_are_named(pretrained, texts, tmp_path):
    with pytest.raises(ConfigurationError) as caught:
        eval_model.main(["--model_path", "x", "-d", str(tmp_path / "a.jsonl"), "-d", str(tmp_path / "b.jsonl")])
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        f"--dataset {tmp_path}/{name}.jsonl" for name in "ab"
    ]
    with pytest.raises(CheckpointError, match="--against .*: no complete checkpoint"):
        eval_model.main(["--model_path", str(pretrained.save_dir), "--against", str(tmp_path), "-d", str(texts)])
    write_lines(tmp_path / "bad.jsonl", [{"text": "t"}, {"txt": "t"}])
    with pytest.raises(DataError, match=r"--dataset .*bad\.jsonl, line 2: has no field 'text'"):
        eval_model.main(["--model_path", str(pretrained.save_dir), "-d", str(tmp_path / "bad.jsonl")])


def test_a_task_of_the_harness_is_done(pretrained, texts, tmp_path, measured):
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    write_lines(tmp_path / "asked.jsonl", [{"q": "class ", "a": "Thing", "b": "zzz"}] * 3)
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: " + str(tmp_path / "asked.jsonl") + "}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{q}}'\ndoc_to_target: 0\n"
        "doc_to_choice: '{{[a, b]}}'\nmetric_list: [{metric: acc}]\n"
    )
    found = measured("--model_path", pretrained.save_dir, "--tasks", "own", "--task_folder", tmp_path)
    assert found["model"]["tasks"]["own"]["acc"] in (0.0, 1.0)
