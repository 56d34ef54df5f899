"""Runs that are broken off and resumed equal the uninterrupted one to the last bit, however they ended."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llama_dyt.training.plan import make_plan
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import NUM_STEPS, Corpus, Run
from tests.cli.entries import Command, finish, run_two_at_once, wait_until

HALF = NUM_STEPS // 2


def assert_same_course(records: list[dict], expected: list[dict]) -> None:
    """Equal to the last bit: JSON holds floats in full."""
    for name in ("step", "loss", "lr", "grad_norm", "tokens_seen"):
        assert [record[name] for record in records] == [record[name] for record in expected], name


def assert_same_checkpoint(step: Path, expected: Path) -> None:
    for name in ("model/model.safetensors", "optimizer/optimizer.safetensors"):
        tensors, wanted = load_file(step / name), load_file(expected / name)
        assert tensors.keys() == wanted.keys()
        assert all(torch.equal(tensors[key], wanted[key]) for key in wanted), name
    for name in ("lr_scheduler", "trainer_state.json", "optimizer/optimizer.json"):
        assert json.loads((step / name).read_text()) == json.loads((expected / name).read_text()), name


@pytest.fixture(scope="module")
def broken_off(corpus, tmp_path_factory) -> dict:
    """The two broken-off runs below, made side by side: a start is mostly importing, on one processor."""
    with ThreadPoolExecutor(2) as pool:
        killed = pool.submit(kill_in_a_save_and_resume, corpus, tmp_path_factory.mktemp("killed"))
        stopped = pool.submit(stop_and_resume, corpus, tmp_path_factory.mktemp("stopped"))
        return {"killed": killed.result(), "stopped": stopped.result()}


@pytest.fixture(scope="module")
def killed(broken_off) -> Run:
    return broken_off["killed"]


@pytest.fixture(scope="module")
def stopped(broken_off) -> tuple[Run, Run]:
    return broken_off["stopped"]


def kill_in_a_save_and_resume(corpus: Corpus, folder: Path) -> Run:
    """A run ended by SIGKILL while it was writing a checkpoint, then `--load auto` until its end."""
    save_dir = folder / "run"
    # `auto` is for a script that is started again and again: the first time there is nothing to load.
    flags = corpus.pretrain_flags(save_dir="run", save_interval=1, load="auto")
    (process,) = Command("pretrain", flags, folder).start()
    wait_until((save_dir / "step_00000001" / "COMPLETE").is_file, process)

    def is_stopped_in_a_save() -> bool:
        """Whether the folder being written still stands once the process has been stopped."""
        if not any(save_dir.glob(".step_*.unfinished")):
            return False
        process.send_signal(signal.SIGSTOP)
        if any(save_dir.glob(".step_*.unfinished")):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    wait_until(is_stopped_in_a_save, process)
    process.kill()
    finish([process])
    (unfinished,) = save_dir.glob(".step_*.unfinished")
    shutil.copytree(unfinished, folder / "as_it_was_killed")
    outcome = Command("pretrain", flags, folder).run()
    (folder / "killed_in_step").write_text(unfinished.name.split("_")[1].split(".")[0])
    return Run(save_dir, flags, outcome)


def stop_and_resume(corpus: Corpus, folder: Path) -> tuple[Run, Run]:
    """A run asked to end by SIGTERM after its first steps (a copy of it), and its resumption by `--load SAVE_DIR`."""
    save_dir = folder / "run"
    flags = corpus.pretrain_flags(save_dir="run", save_interval=2)
    (process,) = Command("pretrain", flags, folder).start()
    wait_until(lambda: bool(read_metrics(save_dir / "metrics.jsonl")), process)
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):  # stopped, it cannot reach its end in between
        process.send_signal(number)
    while process.poll() is None:  # through the rest of the step, the save, the summary, to the last moment
        time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
    outcome = finish([process])
    first = Run(Path(shutil.copytree(save_dir, folder / "as_it_stopped")), flags, outcome)
    flags = [*flags, "--load", "run"]
    return first, Run(save_dir, flags, Command("pretrain", flags, folder).run())


def test_a_run_killed_while_saving_resumes_from_the_checkpoint_before(killed, pretrained):
    lost = int((killed.save_dir.parent / "killed_in_step").read_text())
    assert 1 < lost <= NUM_STEPS
    assert not (killed.save_dir.parent / "as_it_was_killed" / "COMPLETE").exists()
    assert killed.outcome.status == 0, killed.outcome.stderr
    assert f"resumed from run/step_{lost - 1:08d}, step {lost - 1}" in killed.outcome.stderr
    assert_same_course(killed.metrics, pretrained.metrics)
    assert_same_checkpoint(killed.step(NUM_STEPS), pretrained.step(NUM_STEPS))


def test_what_a_killed_save_left_is_cleared_by_the_next_one(killed):
    assert not list(killed.save_dir.glob(".*"))
    assert "the unfinished checkpoint of a run that is gone" in killed.outcome.stderr
    assert re.search(r"run is taken over from pretrain.py \(process \d+ on .*which is gone", killed.outcome.stderr)


def test_sigterm_however_often_saves_and_ends_with_its_own_status(stopped):
    run, _ = stopped
    assert run.outcome.status == 75
    last = run.metrics[-1]["step"]
    assert 1 <= last < NUM_STEPS
    assert (run.step(last) / "COMPLETE").is_file()
    assert f"stopped on a signal at step {last} of {NUM_STEPS}" in run.outcome.stdout
    assert "--load auto" in run.outcome.stdout
    status = json.loads((run.save_dir / "status.json").read_text())
    assert (status["state"], status["step"], status["total_steps"]) == ("stopped", last, NUM_STEPS)
    assert "Traceback" not in run.outcome.stderr


def test_a_run_resumed_after_sigterm_equals_the_uninterrupted_one(stopped, pretrained):
    _, run = stopped
    assert run.outcome.status == 0, run.outcome.stderr
    assert "a save takes" in run.outcome.stderr  # as long as the last one of the run before
    assert json.loads((run.save_dir / "status.json").read_text())["state"] == "finished"
    assert_same_course(run.metrics, pretrained.metrics)
    assert_same_checkpoint(run.step(NUM_STEPS), pretrained.step(NUM_STEPS))


@pytest.fixture(scope="module")
def continued_elsewhere(corpus, pretrained, tmp_path_factory) -> list[Run]:
    """Two runs from the checkpoint in the middle, by its path, into other folders: on one process and on two."""
    folders = [tmp_path_factory.mktemp("elsewhere") for _ in range(2)]
    load = pretrained.step(HALF)
    flags = [corpus.pretrain_flags(save_dir="run", load=load, batch_size=size) for size in (2, 1)]
    outcomes = run_two_at_once(
        Command("pretrain", flags[0], folders[0]),
        Command("pretrain", flags[1], folders[1], launcher="srun", processes=2),
    )
    return [Run(folder / "run", words, o) for folder, words, o in zip(folders, flags, outcomes)]


def test_a_step_folder_resumed_into_another_save_dir_equals_the_uninterrupted_run(continued_elsewhere, pretrained):
    run = continued_elsewhere[0]
    assert run.outcome.status == 0, run.outcome.stderr
    assert_same_course(run.metrics, pretrained.metrics[HALF:])
    assert_same_checkpoint(run.step(NUM_STEPS), pretrained.step(NUM_STEPS))


def test_a_run_resumed_on_more_processes_goes_on_with_the_same_data(continued_elsewhere, pretrained):
    run = continued_elsewhere[1]
    assert run.outcome.status == 0, run.outcome.stderr
    expected = pretrained.metrics[HALF:]
    assert [record["tokens_seen"] for record in run.metrics] == [record["tokens_seen"] for record in expected]
    assert [record["loss"] for record in run.metrics] == pytest.approx([record["loss"] for record in expected], 1e-5)


def test_going_back_to_an_earlier_step_warns_of_the_later_ones(corpus, pretrained):
    flags = corpus.pretrain_flags(save_dir=pretrained.save_dir, load=pretrained.step(HALF))
    (warning,) = make_plan("pretrain", flags).warnings
    assert f"also holds step_{NUM_STEPS:08d}" in warning
    assert "remove them" in warning


def test_a_checkpoint_under_another_name_can_be_gone_on_from(corpus, pretrained, tmp_path):
    """Such as a `latest` link: what step it is stands in the checkpoint, not in its name."""
    latest = tmp_path / "latest"
    latest.symlink_to(pretrained.step(6))
    flags = corpus.pretrain_flags(save_dir="run", load=latest)
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert [path.name for path in (tmp_path / "run").glob("step_*")] == [f"step_{NUM_STEPS:08d}"]
