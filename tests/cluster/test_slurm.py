"""The batch files under a real Slurm: saved on its signal, put back in the queue, gone on with, on two machines."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import yaml

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import Corpus
from tests.cli.test_snapshots import assert_same, flags_of
from tests.cluster.machines import machines
from tests.cluster.slurm import Slurm, slurm
from tests.cluster.test_snapshots import IN_MEMORY, left_in, undisturbed
from tests.forks import ROOT

STEPS = 400
LIMIT_SECONDS = 240
EXPERTS = {"config": "mixtral_8x2m", "ep": 2}
"""Of a small model whose experts two machines share, by flags that are no size."""


def write_recipe(corpus: Corpus, folder: Path, **more) -> Path:
    flags = {"max_steps": STEPS, "batch_size": 1, "save_interval": 1000, "log_interval": 1}
    return as_recipe(corpus.pretrain_flags(**flags, **more), folder)


def as_recipe(words: list, folder: Path) -> Path:
    flags = {name.removeprefix("--"): yaml.safe_load(value) for name, value in zip(words[::2], words[1::2])}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(flags), encoding="utf-8")
    return recipe


def submit(slurm: Slurm, folder: Path, script: str, *flags: object, **variables: str) -> str:
    """Hand a batch file to Slurm, for one process a machine; returns the job's number."""
    options = ["--ntasks-per-node=1", "--gpus-per-node=0", f"--output={folder}/job-%j.out"]
    options += ["--nodes=2"] if script.startswith("pretrain") else []
    words = ("sbatch", "--parsable", f"--chdir={ROOT}", *options, ROOT / "scripts/slurm" / script, *flags)
    variables |= {"SAVE_DIR": str(folder / "run"), "GPUS_PER_NODE": "1", "OMP_NUM_THREADS": "1"}
    return slurm.run("env", "-C", ROOT, *words, **variables).stdout.strip()


def wait_for_steps(slurm: Slurm, folder: Path, count: int) -> None:
    metrics, deadline = folder / "run/metrics.jsonl", time.monotonic() + LIMIT_SECONDS
    while not metrics.exists() or len(read_metrics(metrics)) < count:
        said = "".join(file.read_text() for file in folder.glob("job-*.out"))
        assert time.monotonic() < deadline, said + slurm.logs()
        time.sleep(0.2)


@pytest.mark.matrix
@pytest.mark.parametrize(
    ("script", "model"),
    [
        ("pretrain_srun.sbatch", {}),
        ("pretrain.sbatch", {}),
        ("pretrain_8x7b_srun.sbatch", EXPERTS),
        ("pretrain_8x7b.sbatch", EXPERTS),
    ],
)
def test_a_job_saves_on_the_signal_goes_back_in_the_queue_and_goes_on(script, model, corpus, tmp_path):
    recipe = write_recipe(corpus, tmp_path, **model)
    with machines(2, tmp_path) as nodes, slurm(nodes, tmp_path / "slurm") as cluster:
        job = submit(cluster, tmp_path, script, CONFIG_FILE=str(recipe))
        said, saved = stop_and_go_on(cluster, tmp_path, job)
    assert f"step {saved}" in said.split("resumed from")[1]
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.matrix
def test_a_fine_tuning_job_saves_on_the_signal_goes_back_in_the_queue_and_goes_on(corpus, pretrained, tmp_path):
    flags = ["--batch_size", 1, "--max_steps", STEPS, "--num_epochs", 20, "--max_length", 32, "--save_interval", 1000]
    files = {"MODEL_PATH": str(pretrained.save_dir), "DATASET": str(corpus.prompts)}
    with machines(1, tmp_path) as nodes, slurm(nodes, tmp_path / "slurm") as cluster:
        job = submit(cluster, tmp_path, "finetune.sbatch", *flags, "--log_interval", 1, **files)
        said, saved = stop_and_go_on(cluster, tmp_path, job)
    assert f"step {saved}" in said.split("resumed from")[1]
    assert [line["step"] for line in read_metrics(tmp_path / "run/metrics.jsonl")] == list(range(1, STEPS + 1))


@pytest.mark.matrix
@pytest.mark.parametrize("script", ["pretrain_srun.sbatch", "pretrain.sbatch"])
def test_a_job_whose_rank_is_killed_goes_back_in_the_queue_and_on_from_memory(script, corpus, tmp_path):
    whole = undisturbed(corpus, tmp_path / "through")
    recipe = as_recipe(flags_of(corpus, tmp_path, **IN_MEMORY), tmp_path)
    with machines(2, tmp_path) as nodes, slurm(nodes, tmp_path / "slurm") as cluster:
        job = submit(cluster, tmp_path, script, CONFIG_FILE=str(recipe), PYTHONPATH=str(tmp_path))
        cluster.wait_for(job, ["COMPLETED", "FAILED"], LIMIT_SECONDS)
        said = (tmp_path / f"job-{job}.out").read_text()
        assert cluster.state(job) == "COMPLETED", said
        assert [left_in(node) for node in nodes] == [[], []]
    assert f"failed after a save; putting job {job} back in the queue" in said
    assert "resumed from the snapshot in memory, step 6, 2 steps lost" in said
    assert_same(tmp_path, whole)


def stop_and_go_on(slurm: Slurm, folder: Path, job: str) -> tuple[str, int]:
    """Have a running job stop as before the end of its time, and wait until it was put back and is done.

    Returns:
        (what it printed, the step that it saved).
    """
    wait_for_steps(slurm, folder, 3)
    slurm.run("scancel", "--signal=TERM", job)  # to its steps, as --signal does before the end of its time
    slurm.wait_for(job, ["PENDING"], LIMIT_SECONDS)
    saved = json.loads((folder / "run/status.json").read_text())
    assert saved["state"] == "stopped" and 3 <= saved["step"] < STEPS
    slurm.wait_for(job, ["COMPLETED"], LIMIT_SECONDS)
    said = (folder / f"job-{job}.out").read_text()
    assert f"putting job {job} back in the queue" in said
    assert json.loads((folder / "run/status.json").read_text())["state"] == "finished"
    return said, saved["step"]


def test_the_machines_of_an_allocation_are_looked_at(tmp_path):
    with machines(2, tmp_path) as nodes, slurm(nodes, tmp_path / "slurm") as cluster:
        words = ("python", ROOT / "scripts/check_cluster.py", "--megabytes", "0")
        ended = cluster.run("salloc", "--quiet", "--nodes=2", *words)
    assert "2 machines, nothing wrong" in ended.stdout, ended.stdout
