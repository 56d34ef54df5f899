"""Validation from the command line: what is held out, what is printed and kept, and that training does not notice."""

from __future__ import annotations

import json
import shutil

import pytest

import pretrain
from llama_dyt.core.errors import ConfigurationError
from llama_dyt.training.plan import make_plan
from tests.cli.conftest import Run, write_lines
from tests.cli.entries import Command, run_two_at_once
from tests.cli.test_finetune import finetune_flags

FRACTION = 0.2
NUM_STEPS = 6


@pytest.fixture(scope="module")
def runs(corpus, tmp_path_factory) -> dict[str, Run]:
    """Two runs without the same held-out documents: "validated" by two processes, and "plain" by one."""
    flags = {"max_steps": NUM_STEPS, "save_dir": "run", "validation_fraction": FRACTION}
    all_flags = {
        "validated": corpus.pretrain_flags(**flags, batch_size=1, validation_freq=4, validation_batches=3),
        "plain": corpus.pretrain_flags(**flags),
    }
    folders = {name: tmp_path_factory.mktemp(name) for name in all_flags}
    commands = [
        Command("pretrain", all_flags["validated"], folders["validated"], "srun", processes=2),
        Command("pretrain", all_flags["plain"], folders["plain"]),
    ]
    outcomes = run_two_at_once(*commands)
    return {name: Run(folders[name] / "run", all_flags[name], o) for name, o in zip(all_flags, outcomes)}


def test_every_validation_is_a_record_of_metrics_and_a_line(runs):
    run = runs["validated"]
    assert run.outcome.status == 0, run.outcome.stderr
    records = [record for record in run.metrics if "validation_loss" in record]
    assert [record["step"] for record in records] == [4, NUM_STEPS]
    for record in records:
        loss, perplexity = record["validation_loss"]["train"], record["validation_perplexity"]["train"]
        assert perplexity == pytest.approx(2.718281828**loss)
        assert record["validation_tokens"] == {"train": 3 * 2 * 31}
        line = f"step {record['step']}: validation loss {loss:.4f}, perplexity {perplexity:,.2f} on train (186 tokens)"
        assert line in run.outcome.stderr
    assert records[1]["validation_loss"]["train"] < records[0]["validation_loss"]["train"]
    assert "validation every 4 steps on train (" in run.outcome.stderr
    assert "3 batches, 186 tokens" in run.outcome.stderr
    assert (run.save_dir / "loss.png").read_bytes().startswith(b"\x89PNG")


ASKS_TO_END = """
import os, signal
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback

class AsksToEnd(Callback):
    name, every_rank, order = "asks_to_end", True, 69

    def after_step(self, trainer, outcome):
        if outcome.step == 4 and trainer.boosted.grid.dp_rank == 1 and not os.path.exists("asked"):
            open("asked", "w").close()
            signal.raise_signal(signal.SIGTERM)

CALLBACKS.register(AsksToEnd)
"""


def test_a_validation_that_a_signal_cut_short_is_made_up_for_once(runs, tmp_path):
    (tmp_path / "asks.py").write_text(ASKS_TO_END)
    flags = [*runs["validated"].flags, "--import", "asks", "--callback", "asks_to_end", "--load", "auto"]
    command = Command("pretrain", flags, tmp_path, "srun", processes=2)

    def validated(records: list[dict]) -> list[tuple]:
        return [(record["step"], record["validation_loss"]) for record in records if "validation_loss" in record]

    stopped = command.run()
    run = Run(tmp_path / "run", flags, stopped)
    assert stopped.status == 75 and validated(run.metrics) == [], stopped.stderr
    kept = run.step(4)
    for _ in range(2):  # the second time as if the first had been killed before it saved
        for later in [path for path in (tmp_path / "run").glob("step_*") if path.name > kept.name]:
            shutil.rmtree(later)
        state = json.loads((kept / "trainer_state.json").read_text())
        assert state["callbacks"]["llama_dyt.validation"] == {"owed_step": 4}
        resumed = command.run()
        assert resumed.status == 0, resumed.stderr
        assert validated(run.metrics) == validated(runs["validated"].metrics)
    assert [r["step"] for r in run.metrics] == [r["step"] for r in runs["validated"].metrics]


def test_tensorboard_shows_the_validation(runs):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = runs["validated"]
    events = EventAccumulator(str(run.save_dir.parent / "tb_logs")).Reload()
    records = [record for record in run.metrics if "validation_loss" in record]
    for name in ("validation_loss", "validation_perplexity"):
        shown = [(event.step, event.value) for event in events.Scalars(f"{name}/train")]
        assert shown == [(record["step"], pytest.approx(record[name]["train"])) for record in records]


def test_training_does_not_notice(runs):
    """Two processes sum in another order than one; that a validation changes no bit is tested where ranks are equal."""
    plain = [record["loss"] for record in runs["plain"].metrics]
    validated = [record["loss"] for record in runs["validated"].metrics if "loss" in record]
    assert len(plain) == NUM_STEPS
    assert validated == pytest.approx(plain, rel=1e-5)


def test_what_is_held_out_is_not_trained_on(corpus, runs, pretrained):
    """The same flags with all documents give other losses, from the first batch with a document that is held out."""
    whole = [record["loss"] for record in pretrained.metrics][:NUM_STEPS]
    assert [record["loss"] for record in runs["plain"].metrics] != whole


def test_fine_tuning_validates_on_examples_of_its_own(corpus, pretrained, tmp_path):
    held = write_lines(tmp_path / "held.jsonl", [{"prompt": f"Colour of {n}: ", "completion": "red"} for n in range(5)])
    flags = finetune_flags(
        corpus, pretrained.step(12), max_steps=2, validation_freq=1, validation_batches=9, validation_dataset=held
    )
    outcome = Command("finetune", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    records = [r for r in Run(tmp_path / "run", flags, outcome).metrics if "validation_loss" in r]
    assert [record["step"] for record in records] == [1, 2]
    assert "2 batches" in outcome.stderr  # five examples in batches of four
    assert records[1]["validation_loss"]["held"] != records[0]["validation_loss"]["held"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_dry_run_prints_what_is_validated_on(corpus, here, monkeypatch, capsys):
    flags = corpus.pretrain_flags(validation_freq=100, validation_batches=10, validation_fraction=FRACTION)
    monkeypatch.setattr("sys.argv", ["pretrain.py", *flags, "--dry_run"])
    pretrain.main()
    printed = capsys.readouterr().out
    assert f"# validation      every 100 steps and at the end on train ({corpus.train}, the 0.2 of it" in printed
    assert "at most 10 batches (640 tokens)" in printed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"validation_dataset": "no.jsonl"}, "--validation_dataset no.jsonl: no such file or folder"),
        ({"validation_dataset": "blank.jsonl"}, "--validation_dataset blank.jsonl: "),
        ({"validation_dataset": "without_words.jsonl"}, "without_words.jsonl: no record with text in its text"),
        ({"validation_dataset": "nowhere/set"}, "--validation_dataset 'nowhere/set' is no local path"),
        ({"validation_fraction": "1e-9"}, "--validation_fraction 1e-09 holds out no document of "),
    ],
)
def test_a_validation_set_that_cannot_serve_is_told_before_anything_starts(
    corpus, here, monkeypatch, changes, expected
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (here / "blank.jsonl").write_text("\n\n")
    write_lines(here / "without_words.jsonl", [{"text": ""}])
    with pytest.raises(ConfigurationError) as caught:
        make_plan("pretrain", corpus.pretrain_flags(validation_freq=2, **changes))
    (problem,) = caught.value.problems
    assert problem.startswith(expected) or expected in problem


def test_the_sample_is_validated_on_by_its_own_held_out_file(here, monkeypatch):
    flags = ["--dataset", "sample", "--config", "15m", "--mixed_precision", "fp32", "--plugin", "zero2"]
    plan = make_plan("pretrain", [*flags, "--validation_freq", "5", "--max_steps", "9", "--warmup_steps", "1"])
    (chosen,) = plan.validation
    assert (chosen.name, chosen.dataset, chosen.fraction) == ("sample", plan.sample.validation_file, None)
