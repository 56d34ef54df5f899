"""benchmark.py prints the line that Colossal-AI's users know, and figures that agree with it."""

from __future__ import annotations

import gzip
import json
import re

import pytest

from llama_dyt.training.measurement.figures import figure, percentage
from tests.cli.entries import MODEL_SIZE, Command

NUMBER = r"([\d,]+\.\d+)"
RESULT = re.compile(rf"max memory usage:  {NUMBER} MB, throughput:  {NUMBER} samples/s, TFLOPS/GPU:  {NUMBER}")


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """Two processes of which each takes half of the batches: 5 steps, 2 of them not measured, as by default."""
    folder = tmp_path_factory.mktemp("benchmark")
    flags = [*MODEL_SIZE, "-p", "zero2", "--mixed_precision", "fp32", "-l", "64", "-b", "2"]
    outcome = Command("benchmark", flags, folder, "srun", processes=2).run()
    assert not list(folder.iterdir()), "a benchmark writes nothing unless asked to"
    return outcome


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """One process that is asked for everything a benchmark can write: (outcome, folder)."""
    folder = tmp_path_factory.mktemp("written")
    flags = [*MODEL_SIZE, "-p", "ddp", "--mixed_precision", "fp32", "-l", "16", "-b", "1", "-g", "-s", "4", "-i", "1"]
    outcome = Command("benchmark", [*flags, "--json", "new/result.json", "--profile"], folder).run()
    assert outcome.status == 0, outcome.stderr
    return outcome, folder


def test_the_result_is_the_documented_line_printed_once(outcome):
    assert outcome.status == 0, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert RESULT.fullmatch(outcome.stdout.splitlines()[0])
    assert float(RESULT.search(outcome.stdout)[3]) > 0, "what is small is not 0.00"
    assert len(RESULT.findall(outcome.stdout)) == 1


def test_five_steps_are_run_of_which_two_are_ignored(outcome):
    steps = re.findall(r"^step (\d+): .*? s, loss [\d.]+( \(ignored\))?$", outcome.stderr, re.MULTILINE)
    assert [(int(number), bool(ignored)) for number, ignored in steps] == [
        (1, True),
        (2, True),
        (3, False),
        (4, False),
        (5, False),
    ]
    assert "median of 3" in outcome.stdout


def test_tokens_and_utilisation_agree_with_the_line(outcome):
    memory, samples, _ = (float(text.replace(",", "")) for text in RESULT.search(outcome.stdout).groups())
    tokens = float(re.search(rf"{NUMBER} tokens/s/GPU", outcome.stdout)[1].replace(",", ""))
    step = float(re.search(rf"step {NUMBER} s", outcome.stdout)[1])
    assert memory > 50
    assert tokens == pytest.approx(samples * 64 / 2, abs=1)
    assert samples == pytest.approx(2 * 2 / step, rel=0.2), "both ranks' batches, in the time of a step"
    source = r"cpu: measured float32 matmul of \d+x\d+, 1 threads(, not idle: [\d.]+ processors worked for others)?"
    assert re.search(rf"MFU {NUMBER}%, HFU {NUMBER}% of {NUMBER} TFLOPS \({source}\)", outcome.stdout)


def test_the_json_has_the_printed_figures_and_all_that_led_to_them(written):
    outcome, folder = written
    assert [file.name for file in (folder / "new").iterdir()] == ["result.json"], "written aside, then renamed"
    report = json.loads((folder / "new" / "result.json").read_text(encoding="utf-8"))
    result, settings = report["result"], report["settings"]
    memory, samples, _ = (float(text.replace(",", "")) for text in RESULT.search(outcome.stdout).groups())
    assert round(result["max_memory_mb"], 2) == memory
    assert round(result["samples_per_second"], 2) == samples
    mfu, hfu, peak = percentage(result["mfu"]), percentage(result["hfu"]), figure(result["peak_tflops"])
    assert f"MFU {mfu}, HFU {hfu} of {peak} TFLOPS" in outcome.stdout
    assert result["hfu"] > result["mfu"], "recomputation is counted in one of them"
    assert [step["measured"] for step in result["steps"]] == [False, True, True, True]
    times = sorted(step["seconds"] for step in result["steps"][1:])
    assert result["median_step_seconds"] == times[1]
    assert result["tokens_per_second"] == pytest.approx(16 / times[1])
    assert [f"{step['loss']:.4f}" for step in result["steps"]] == re.findall(r"loss ([\d.]+)", outcome.stderr)
    assert settings["plugin"] == "ddp" and settings["gradient_checkpoint"] is True and settings["max_length"] == 16
    assert {"python", "torch", "transformers", "colossalai"} <= set(report["versions"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT.*", report["date"])


def test_the_profile_is_a_trace_and_a_table_of_steps_that_are_not_measured(written):
    outcome, folder = written
    with gzip.open(folder / "profile" / "trace.json.gz") as trace:
        names = {event.get("name") for event in json.load(trace)["traceEvents"]}
    assert "aten::mm" in names
    table = (folder / "profile" / "operators.txt").read_text(encoding="utf-8")
    assert "aten::mm" in table and table in outcome.stderr
    assert len(re.findall(r"^step \d", outcome.stderr, re.MULTILINE)) == 4
