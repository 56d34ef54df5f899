"""--dry_run tells what a run would be, quickly, and leaves nothing behind."""

from __future__ import annotations

import re
import shutil
import time

import pytest

import benchmark
import finetune
import pretrain
from llama_dyt.config import cli
from llama_dyt.config.run import RunConfig
from tests.cli.entries import ROOT, Command


@pytest.fixture
def dry_run(monkeypatch, capsys, tmp_path):
    """`dry_run(entry, flags, processes)`: what its main prints in this process, as the first of so many."""
    monkeypatch.chdir(tmp_path)

    def run(entry, flags, processes=1) -> str:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        monkeypatch.setattr("sys.argv", [f"{entry.__name__}.py", *map(str, flags), "--dry_run"])
        entry.main()
        return capsys.readouterr().out

    yield run
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_a_dry_run_prints_the_run_and_what_it_takes(corpus, tmp_path):
    flags = corpus.pretrain_flags(save_dir="run", max_steps=None, num_epochs=2)
    outcome = Command("pretrain", [*flags, "--dry_run"], tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert not list(tmp_path.iterdir()), "something was left behind"
    # The flags as YAML, which can be given to --config_file; figures as its comments.
    assert RunConfig.from_yaml(outcome.stdout).replace(dry_run=True) == cli.parse("pretrain", [*flags, "--dry_run"])
    figures = dict(line[2:].split(maxsplit=1) for line in outcome.stdout.splitlines() if line.startswith("# "))
    assert figures["parameters"] == "51,366"
    assert "tokens a step   64" in outcome.stdout
    assert int(figures["steps"].split()[0].replace(",", "")) > 100
    assert "documents" in outcome.stderr, "steps of a local dataset are counted"
    assert "memory a rank" in outcome.stdout


@pytest.mark.parametrize(
    ("size", "processes", "flags", "parameters"),
    [
        ("7b", 8, ["-p", "gemini", "-x", "bf16"], "6,738,415,682"),
        ("7b", 8, ["-p", "zero2_cpu", "-x", "fp16", "-g"], "6,738,415,682"),
        ("70b", 64, ["-p", "3d", "--tp", 8, "--pp", 4, "-b", 8, "-x", "bf16", "-g"], "68,976,648,354"),
        (
            "34b",
            64,
            ["-p", "hsdp", "--shard_size", 8, "-x", "bf16", "--selective_checkpointing", "1/2"],
            "33,743,970,402",
        ),
        ("70b", 64, ["-p", "gemini_auto", "-x", "bf16", "-g"], "68,976,648,354"),
    ],
)
def test_large_models_are_sized_up_in_seconds(dry_run, size, processes, flags, parameters):
    start = time.monotonic()
    text = dry_run(benchmark, ["-c", size, *["--mixed_precision" if f == "-x" else f for f in flags]], processes)
    assert time.monotonic() - start < 20
    assert f"# parameters      {parameters}" in text
    assert f"# processes       {processes} (" in text
    assert "# steps           5" in text


def test_the_parts_of_70b_over_32_processes_are_printed_and_add_up(dry_run):
    start = time.monotonic()
    flags = ["-c", "70b", "-p", "3d", "--tp", 8, "--pp", 4, "-b", 8, "--mixed_precision", "bf16", "-g"]
    text = dry_run(benchmark, [*flags, "--dry_run_processes", 32])
    assert time.monotonic() - start < 20
    stages = re.findall(
        r"^# stage (\d) +layers (\S+): ([\d,]+) parameters each of 8 .* of the model ([\d,]+); ", text, re.M
    )
    assert [(number, layers) for number, layers, *_ in stages] == [
        ("0", "0-19"),
        ("1", "20-39"),
        ("2", "40-59"),
        ("3", "60-79"),
    ]
    assert sum(int(distinct.replace(",", "")) for *_, distinct in stages) == 68_976_648_354
    assert "# all stages      68,976,648,354 parameters" in text
    assert "# processes       32 (" in text


def test_pretraining_of_a_large_model_is_sized_up_with_the_corpus(dry_run, corpus):
    flags = ["-c", "70b", "-p", "3d", "--tp", 8, "--pp", 4, "-b", 4, "-x", "bf16", "-d", corpus.train]
    text = dry_run(pretrain, [*flags, "--tokenizer", corpus.tokenizer, "--max_steps", 5000], 64)
    assert "# tokens a step   32,768" in text
    assert "# steps           5,000 (163,840,000 tokens)" in text


def test_snapshots_are_sized_up(dry_run, corpus):
    flags = [*corpus.pretrain_flags(), "--snapshot_interval", 5]
    (line,) = [line for line in dry_run(pretrain, flags, 2).splitlines() if line.startswith("# snapshots")]
    text = dry_run(pretrain, corpus.pretrain_flags(), 2)
    assert "# snapshots" not in text
    (numbers,) = [line.split()[-1] for line in text.splitlines() if line.startswith("# parameters")]
    a_rank = 2 * 12 * int(numbers.replace(",", "")) / 2 / 2**30  # two slots, masters and moments, half on each rank
    words = line.split()
    assert float(words[2]) == pytest.approx(a_rank, rel=0.05) and "in /dev/shm for a rank" in line
    assert float(words[9].lstrip(",")) == pytest.approx(2 * a_rank, rel=0.05), line


def test_finetuning_counts_its_steps_from_the_examples(dry_run, corpus, pretrained):
    flags = ["--model_path", pretrained.save_dir, "-d", corpus.prompts, "-b", 4, "-l", 64, "-e", 2, "-p", "zero2"]
    assert "# steps           24" in dry_run(finetune, [*flags, "-x", "fp32"])
    assert "# steps           12" in dry_run(finetune, [*flags, "-x", "fp32"], 2)


def test_what_fits_of_8x7b_is_what_the_page_says(dry_run):
    page = (ROOT / "docs/experts.md").read_text(encoding="utf-8")
    head, *rows = re.findall(r"^\| (?:GPUs|\d+) \|.*$", page, re.M)
    layouts = [cell.strip(" `").split() for cell in head.split("|")[2:-1]]
    assert len(layouts) == 5 and len(rows) == 4
    for row in rows[1::2]:
        processes, *told = (cell.strip() for cell in row.split("|")[1:-1])
        for plugin, said in zip(layouts, told, strict=True):
            sequences = 2 if "--pp" in plugin else 1
            flags = ["-c", "mixtral_8x7b", "-p", *plugin, "-l", 4096, "-b", sequences, "-g"]
            text = dry_run(benchmark, [*flags, "--dry_run_processes", processes])
            (memory,) = re.findall(r"^# memory a rank +([\d.]+) GiB", text, re.M)
            assert f"{float(memory):.0f}" == said, (processes, plugin, memory)


RECIPES = sorted(
    path for path in (ROOT / "configs").glob("*.yaml") if path.stem not in ("quickstart", "finetune_7b", "lora_7b")
)
"""Those with data to fetch and without weights, whose config a size would have to come from."""


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_sized_up_where_its_data_tokenizer_and_gpu_are_not(dry_run, recipe, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    text = dry_run(pretrain, ["--config_file", recipe, "--dry_run_processes", 64])
    assert "# memory a rank   " in text and "# parameters      " in text
    assert "# warning: a run on this machine would refuse: --dataset " in text


def test_steps_are_not_known_without_the_data(dry_run):
    flags = ["-c", "15m", "-p", "zero2", "-x", "fp32", "-d", "no.jsonl", "--tokenizer", "./nowhere"]
    text = dry_run(pretrain, flags)
    assert "# steps           not known without the data" in text
    assert "would refuse: --dataset no.jsonl: no such file" in text and "tokenizer ./nowhere" in text


def test_finetuning_is_sized_up_without_examples_and_weights(dry_run, pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config_alone")
    shutil.copy(pretrained.step(12) / "model" / "config.json", folder)
    flags = ["--model_path", folder, "-d", "no.jsonl", "-p", "zero2", "-x", "fp32", "--max_steps", 7]
    text = dry_run(finetune, flags)
    assert "# steps           7 (" in text and "# parameters      51,366" in text
