"""A run whose rank is killed, started again by the same command, goes on from the snapshot in memory: nothing of what
it comes to differs from an undisturbed run's. What does not fit is refused with a reason, and the checkpoint is taken.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama_dyt.core.store import at, store_of
from llama_dyt.training.trackers.events import read_events
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import NUM_STEPS, Corpus, as_flags
from tests.cli.entries import Command, Outcome, run_two_at_once

KILLS_A_RANK = '''
import os, pathlib, signal, time
import torch.distributed as dist
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback

HERE = pathlib.Path(__file__).parent

class KillsARank(Callback):
    """The last one, once, after step 8, when the snapshot of step 6 is whole on all."""
    name, every_rank, order = "kills", True, 95

    def after_step(self, trainer, outcome):
        if outcome.step != 8 or (HERE / "killed").exists():
            return
        folder, rank, ranks = pathlib.Path(self.run.snapshots.snapshot_dir), dist.get_rank(), dist.get_world_size()
        while not any('"step": 6' in path.read_text() for path in folder.glob(f"*/rank{rank:05d}.*.json")):
            time.sleep(0.01)
        (HERE / f"whole{rank}").touch()
        while not all((HERE / f"whole{number}").exists() for number in range(ranks)):
            time.sleep(0.01)
        if rank == ranks - 1:
            (HERE / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

CALLBACKS.register(KillsARank)
'''
SNAPSHOT_AT, SAVED_AT, KILLED_AT, END = 6, 5, 8, 12


def flags_of(corpus: Corpus, folder: Path, **changes) -> list[str]:
    """A run that is killed once where `folder` has no file "killed"."""
    (folder / "kills.py").write_text(KILLS_A_RANK)
    (folder / "memory").mkdir(exist_ok=True)
    flags = {
        "save_dir": "run",
        "load": "auto",
        "snapshot_interval": 3,
        "snapshot_dir": "memory",
        "save_interval": SAVED_AT,
        "max_steps": END,
        "mixed_precision": "bf16",
        "batch_size": 1,
        "global_batch_size": 2,
        "tensorboard_dir": "none",
        "import": "kills",
        "callback": "kills",
    }
    return corpus.pretrain_flags(**{**flags, **changes})


def course(folder: Path) -> list[tuple]:
    names = ("step", "loss", "grad_norm", "lr", "tokens_seen")
    return [tuple(record[name] for name in names) for record in read_metrics(folder / "run/metrics.jsonl")]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and moments at the end."""
    step = folder / f"run/step_{END:08d}"
    moments = load_file(step / "optimizer/optimizer.safetensors")
    return load_file(step / "model/model.safetensors") | {f"moment {name}": value for name, value in moments.items()}


def assert_same(folder: Path, undisturbed: Path) -> None:
    assert course(folder) == course(undisturbed)
    own, wanted = tensors(folder), tensors(undisturbed)
    assert own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in wanted)


def assert_nothing_left(folder: Path) -> None:
    assert not list((folder / "memory").iterdir()) and not list((folder / "run").glob(".*"))


@dataclass
class Killed:
    """A run that was killed, and can be gone on with more than once.

    Attributes:
        undisturbed: where the same run went through.
    """

    corpus: Corpus
    folder: Path
    undisturbed: Path

    @property
    def memory(self) -> Path:
        """The snapshots."""
        (found,) = (self.folder / "memory").iterdir()
        return found

    def as_it_was(self) -> None:
        for name in ("run", "memory"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            shutil.copytree(self.folder / "kept" / name, self.folder / name)

    def again(self, processes: int = 2, **changes) -> Outcome:
        """Go on with it by the same command."""
        flags = flags_of(self.corpus, self.folder, **changes)
        return Command("pretrain", flags, self.folder, "srun", processes=processes).run()


@pytest.fixture(scope="module")
def killed_run(corpus, tmp_path_factory) -> Killed:
    folder, undisturbed = tmp_path_factory.mktemp("killed"), tmp_path_factory.mktemp("undisturbed")
    (undisturbed / "killed").touch()
    through, broken = run_two_at_once(
        *(Command("pretrain", flags_of(corpus, where), where, "srun", processes=2) for where in (undisturbed, folder))
    )
    assert through.status == 0, through.stderr
    assert_nothing_left(undisturbed)
    assert broken.status != 0 and "rank 1" in broken.stderr, broken.stderr
    for name in ("run", "memory"):
        shutil.copytree(folder / name, folder / "kept" / name)
    return Killed(corpus, folder, undisturbed)


@pytest.fixture
def killed(killed_run) -> Iterator[Killed]:
    killed_run.as_it_was()
    yield killed_run


def resumed_from(outcome: Outcome) -> str:
    (line,) = [line for line in outcome.stderr.splitlines() if line.startswith("resumed from ")]
    return line.removeprefix("resumed from ")


def test_a_run_whose_rank_was_killed_goes_on_from_the_snapshot_to_the_same_weights(killed):
    outcome = killed.again()
    assert outcome.status == 0, outcome.stderr
    assert resumed_from(outcome).startswith(f"the snapshot in memory, step {SNAPSHOT_AT}, 2 steps lost, ")
    assert "verified" not in outcome.stderr, "the checkpoint was read for nothing"
    assert_same(killed.folder, killed.undisturbed)
    assert_nothing_left(killed.folder)
    (event,) = [event for event in read_events(killed.folder / "run") if event["kind"] == "resumed"]
    assert "the snapshot in memory, step 6, 2 steps lost" in event["text"]


@pytest.mark.matrix
def test_a_snapshot_that_was_damaged_or_half_written_is_passed_over(killed):
    (newest,) = [path for path in killed.memory.glob("rank00001.[01]") if f'"step": {SNAPSHOT_AT}' in marker_of(path)]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    outcome = killed.again()
    assert outcome.status == 0, outcome.stderr
    # That of step 3 is older than the checkpoint.
    reason = f"rank 1's part of step 6 is in no machine's memory ({newest.name} held other bytes than were written)"
    assert f"snapshots in memory are not used: {reason}" in outcome.stderr, outcome.stderr
    assert resumed_from(outcome).startswith(f"run/step_{SAVED_AT:08d}")
    assert_same(killed.folder, killed.undisturbed)
    assert_nothing_left(killed.folder)


def marker_of(path: Path) -> str:
    return path.with_name(f"{path.name}.json").read_text()


@pytest.mark.matrix
def test_snapshots_of_another_run_are_refused_with_the_difference(killed):
    outcome = killed.again(adam_beta2=0.99)
    assert outcome.status == 0, outcome.stderr
    reason = "they are of a run with --adam_beta2 0.95, not 0.99"
    assert f"snapshots in memory are not used: {reason}; the run goes on from run/step_{SAVED_AT:08d}" in outcome.stderr
    assert_nothing_left(killed.folder)


@pytest.mark.matrix
def test_snapshots_of_another_number_of_ranks_are_refused(killed):
    outcome = killed.again(processes=1)
    assert outcome.status == 0, outcome.stderr
    assert "the number of processes 2, not 1" in outcome.stderr
    assert resumed_from(outcome).startswith(f"run/step_{SAVED_AT:08d}")
    assert_nothing_left(killed.folder)


@pytest.mark.matrix
def test_a_run_that_began_anew_in_the_place_of_another_does_not_take_its_snapshots(killed):
    shutil.rmtree(killed.folder / "run")
    outcome = killed.again()
    assert outcome.status == 0, outcome.stderr
    assert "resumed from" not in outcome.stderr
    assert_same(killed.folder, killed.undisturbed)
    assert_nothing_left(killed.folder)


@pytest.mark.matrix
def test_a_finetuned_adapter_comes_back_beside_its_base(corpus, tmp_path, pretrained):
    flags = {"model_path": pretrained.step(NUM_STEPS), "dataset": corpus.prompts, "plugin": "ddp", "lora_rank": 4}
    for name in (".", "through"):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        (folder / "kills.py").write_text(KILLS_A_RANK)
        (folder / "memory").mkdir()
    (tmp_path / "through/killed").touch()
    more = {"max_length": 64, "batch_size": 1, "max_steps": END, "save_interval": SAVED_AT, "mixed_precision": "bf16"}
    taking = {"snapshot_interval": 3, "snapshot_dir": "memory", "import": "kills", "callback": "kills"}
    words = as_flags({**flags, **more, **taking, "save_dir": "run", "load": "auto", "tensorboard_dir": "none"})
    first, through = run_two_at_once(
        *(Command("finetune", words, folder, "srun", processes=2) for folder in (tmp_path, tmp_path / "through"))
    )
    assert first.status != 0 and through.status == 0, through.stderr
    outcome = Command("finetune", words, tmp_path, "srun", processes=2).run()
    assert outcome.status == 0, outcome.stderr
    assert resumed_from(outcome).startswith(f"the snapshot in memory, step {SNAPSHOT_AT}, 2 steps lost, ")
    assert course(tmp_path) == course(tmp_path / "through")
    for name in ("adapter/adapter_model.safetensors", "optimizer/optimizer.safetensors"):
        own, wanted = (load_file(folder / f"run/step_{END:08d}" / name) for folder in (tmp_path, tmp_path / "through"))
        assert own.keys() == wanted.keys() and all(torch.equal(own[key], wanted[key]) for key in wanted)
    assert_nothing_left(tmp_path)


@pytest.mark.matrix
def test_a_run_that_saves_to_an_object_store_keeps_all_its_records(corpus, tmp_path, killed_run, monkeypatch):
    pytest.importorskip("boto3", reason="needs boto3")
    pytest.importorskip("moto", reason="needs moto[s3]")
    from tests.s3_server import BUCKET, serving, use

    with serving("moto") as server:
        use(server, monkeypatch, tmp_path / "cache")
        flags = flags_of(corpus, tmp_path, save_dir=f"s3://{BUCKET}/runs/7")
        assert Command("pretrain", flags, tmp_path, "srun", processes=2).run().status != 0
        outcome = Command("pretrain", flags, tmp_path, "srun", processes=2).run()
        assert outcome.status == 0, outcome.stderr
        assert resumed_from(outcome).startswith(f"the snapshot in memory, step {SNAPSHOT_AT}, 2 steps lost, ")
        place = at(f"s3://{BUCKET}/runs/7")
        shutil.copytree(store_of(place).local(place), tmp_path / "run")
        assert store_of(place).records(place, "snapshots").numbers() == []
    assert_same(tmp_path, killed_run.undisturbed)
    assert not list((tmp_path / "memory").iterdir())


@pytest.mark.matrix
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_memory_too_small_is_told_before_the_first_step_and_nothing_is_left(corpus, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    (tmp_path / "killed").touch()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    try:
        flags = flags_of(corpus, tmp_path, snapshot_dir=small)
        outcome = Command("pretrain", flags, tmp_path, "srun", processes=2).run()
        assert outcome.status == 2
        (message,) = [line for line in outcome.stderr.splitlines() if "error: " in line]
        assert "2 slots for each of 2 ranks, of fp32 weights and moments); 1.18 MiB of it is not there yet" in message
        assert re.search(rf"{small} has room for 0\.9\d MiB: give it more", message)
        assert list(small.iterdir()) == [] and not list((tmp_path / "run").glob(".*"))
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.matrix
def test_torchrun_starts_a_killed_rank_again_from_the_snapshot(corpus, tmp_path, killed_run):
    """As users do it, with the snapshots where they are by default."""
    before = set(Path("/dev/shm").iterdir())
    flags = flags_of(corpus, tmp_path, snapshot_dir=None)
    outcome = Command("pretrain", flags, tmp_path, "torchrun", processes=2, restarts=1).run()
    assert outcome.status == 0, outcome.stderr
    assert f"the snapshot in memory, step {SNAPSHOT_AT}, 2 steps lost, " in outcome.stderr
    assert_same(tmp_path, killed_run.undisturbed)
    assert set(Path("/dev/shm").iterdir()) == before
