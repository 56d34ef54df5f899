"""Failures as the entries report them: one line on stderr, a status that is not 0, no traceback, no rank left waiting.

The messages themselves are in test_wrong_input.py; here are the programs, and what can only go wrong while they run.
"""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.conftest import NUM_STEPS
from tests.cli.entries import Command, run_two_at_once


def test_a_wrong_command_line_is_answered_a_line_a_problem_by_every_entry(corpus, tmp_path):
    flags = corpus.pretrain_flags(plugin="zero3", dataset="no.jsonl", save_dir="run", typo=1)
    pretrain, finetune = run_two_at_once(
        Command("pretrain", flags, tmp_path), Command("finetune", ["--typo", "-p", "zero3", "-d", "no.jsonl"], tmp_path)
    )
    assert pretrain.status == finetune.status == 2
    assert pretrain.stdout == finetune.stdout == ""
    typo, plugin, dataset = pretrain.stderr.splitlines()
    assert typo.startswith("error: unknown flag '--typo'")
    assert plugin.startswith("--plugin: unknown plugin 'zero3'")
    assert dataset.startswith("--dataset no.jsonl: no such file")
    assert "--model_path is needed" in finetune.stderr
    assert len(finetune.stderr.splitlines()) == 4
    assert not list(tmp_path.iterdir()), "something was left behind"


@pytest.fixture(scope="module")
def broken_corpus(corpus, tmp_path_factory) -> Path:
    """The corpus with two lines after its first that cannot be used: broken JSON, then an object without text."""
    lines = corpus.train.read_text(encoding="utf-8").splitlines(keepends=True)
    path = tmp_path_factory.mktemp("broken") / "train.jsonl"
    path.write_text("".join([lines[0], '{"text": "half\n', '{"txt": "misspelt"}\n', *lines[1:]]), encoding="utf-8")
    return path


def test_a_broken_line_met_while_training_ends_every_rank(corpus, broken_corpus, tmp_path):
    flags = corpus.pretrain_flags(dataset=broken_corpus, save_dir="run")
    outcome = Command("pretrain", flags, tmp_path, "srun", processes=2).run()
    assert outcome.status != 0
    (message,) = [line for line in outcome.stderr.splitlines() if "error: " in line]
    assert message.startswith(f"error: {broken_corpus}, line 2: is not valid JSON")
    assert "--skip_bad_lines" in message
    assert 'pretrain.py", line' not in outcome.stderr, "a traceback of ours"
    assert 0 < len(read_metrics(tmp_path / "run" / "metrics.jsonl")) < NUM_STEPS, "the first document has been learned"
    assert not list((tmp_path / "run").glob("*step_*")), "something was left behind"


def test_a_broken_line_met_while_counting_steps_ends_the_run(corpus, broken_corpus, tmp_path):
    """Without --max_steps the first rank reads everything beforehand, and what it finds is everyone's."""
    flags = corpus.pretrain_flags(dataset=broken_corpus, save_dir="run", max_steps=None)
    outcome = Command("pretrain", flags, tmp_path, "srun", processes=2).run()
    assert outcome.status == 2
    assert f"error: {broken_corpus}, line 2: is not valid JSON" in outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_skipped_lines_are_counted(corpus, tmp_path):
    """Two steps of 512 tokens use up the short documents, and the lines among them that cannot be used."""
    lines = ['{"text": "short"}\n', '{"text": "half\n', '{"txt": "misspelt"}\n', '{"text": "short too"}\n']
    dataset = tmp_path / "train.jsonl"
    dataset.write_text("".join(lines) + corpus.train.read_text(encoding="utf-8"), encoding="utf-8")
    flags = corpus.pretrain_flags(dataset=dataset, save_dir="run", max_length=256, max_steps=2, warmup_steps=1)
    outcome = Command("pretrain", [*flags, "--skip_bad_lines"], tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert "left out    2 unusable lines" in outcome.stdout


@pytest.fixture
def full_disk(tmp_path) -> Iterator[tuple[Path, Callable[[], None] | None]]:
    """A folder with room for metrics and not for a checkpoint, and what makes it so in the new process, if anything.

    A real small file system where the test may mount one, else a limit on the size of files: /dev/full is no folder.
    """
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", folder], capture_output=True)
    if mounted.returncode == 0:
        yield folder, None
        subprocess.run(["umount", folder], check=True)
    else:
        yield folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_full_disk_on_save_ends_every_rank_and_leaves_no_half_checkpoint(corpus, full_disk, tmp_path):
    disk, limit = full_disk
    flags = corpus.pretrain_flags(save_dir=disk / "run", max_steps=2, warmup_steps=1)
    outcome = Command("pretrain", flags, tmp_path, "torchrun", processes=2, before=limit).run()
    assert outcome.status != 0
    (message,) = [line for line in outcome.stderr.splitlines() if "error: " in line]
    assert message.startswith(f"error: could not write checkpoint {disk}/run/step_00000002")
    assert "No space left on device" in message or "File too large" in message
    assert "free space or take another --save_dir, and resume with --load auto" in message
    assert 'pretrain.py", line' not in outcome.stderr, "a traceback of ours"
    left = {path.name for path in (disk / "run").iterdir()} - {"report.html"}  # which may find room, or not
    assert left == {"config.yaml", "events.jsonl", "metrics.jsonl"}


def test_a_disk_too_full_for_metrics_ends_the_run_in_one_line(corpus, tmp_path):
    flags = corpus.pretrain_flags(save_dir="run", tensorboard_dir="none")
    limit = 2_000  # two lines of metrics, or three
    outcome = Command(
        "pretrain", flags, tmp_path, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    ).run()
    assert outcome.status == 2
    assert "error: could not write metrics in run (File too large); free space" in outcome.stderr
    assert "Traceback" not in outcome.stderr


def test_a_loss_that_is_not_finite_stops_every_rank_before_the_weights_change(corpus, tmp_path):
    flags = corpus.pretrain_flags(save_dir="run", lr="1e30", warmup_steps=0, save_interval=1)
    outcome = Command("pretrain", flags, tmp_path, "srun", processes=2).run()
    assert outcome.status == 2
    (message,) = [line for line in outcome.stderr.splitlines() if "error: " in line]
    assert message.startswith("error: loss is nan at step 2: stopped before the weights were changed")
    assert "run/step_00000001" in message
    assert sorted(path.name for path in (tmp_path / "run").glob("step_*")) == ["step_00000001"]
    assert "Traceback" not in outcome.stderr
