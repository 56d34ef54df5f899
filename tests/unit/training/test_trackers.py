"""What the trackers of a run leave, and that one which fails is told of once."""

import json
import random

import numpy
import pytest
import torch

from llama_dyt.config.run import RunConfig
from llama_dyt.core import console
from llama_dyt.training.callbacks.validation import Figures, validation_record
from llama_dyt.training.checkpoint.generators import rng_state, set_rng_state
from llama_dyt.training.trackers.jsonl import read_metrics
from llama_dyt.training.trackers.picture import draw
from llama_dyt.training.trackers.tracker import Tracked, Tracker
from llama_dyt.training.trackers.trackers import Trackers


def record(step, loss=1.0):
    return {"step": step, "loss": loss, "lr": 1e-3, "tokens_per_second": 10.0}


def validation(step, loss=1.5):
    return validation_record(step, {"wiki": Figures(loss, 100)}, seconds=0.5)


def trackers_of(save_dir, start_step=0, first=True, tensorboard_dir=None):
    run = RunConfig.build("pretrain", tensorboard_dir=tensorboard_dir)
    return Trackers.of_run(Tracked(run, save_dir, start_step, 10, "test", "test", 100, print), first)


@pytest.fixture
def opened(tmp_path):
    """Opens the trackers of a run in `tmp_path`, and closes them in the end."""
    made = []

    def make(**given):
        made.append(trackers_of(tmp_path, **given))
        made[-1].open()
        return made[-1]

    yield make
    for trackers in made:
        trackers.close()
    assert console.on_its_own_line("x") == "x\n"


def test_losses_come_back_to_the_last_bit(opened, tmp_path):
    loss = 2.0 / 3.0 + 2.0**-50
    opened().log(record(1, loss))
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == loss


def test_resuming_removes_records_of_steps_that_were_lost(opened, tmp_path):
    trackers = opened()
    for step in (1, 2, 3, 4):
        trackers.log(record(step))
    trackers.close()
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 5, "lo')  # killed while writing
    opened(start_step=2).log(record(3, loss=9.0))
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 1.0), (3, 9.0)]


def test_trackers_that_were_not_opened_leave_nothing(tmp_path):
    trackers_of(tmp_path / "run", tensorboard_dir=str(tmp_path / "tb")).close()
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_rank_writes(tmp_path, capsys):
    trackers = trackers_of(tmp_path / "run", first=False, tensorboard_dir=str(tmp_path / "tb"))
    trackers.open()
    trackers.log(record(1))
    trackers.say("nobody hears this")
    trackers.close()
    console.bar_stands(False)
    assert trackers.results() == [] and capsys.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_the_picture_is_a_png(tmp_path):
    draw([record(step, loss=8.0 / step) for step in range(1, 9)], tmp_path / "loss.png", "test", vocab_size=4096)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_every_generator_goes_on_where_its_state_was_taken():
    state = json.loads(json.dumps(rng_state()))  # as trainer_state.json keeps it
    drawn = (random.random(), numpy.random.rand(), torch.rand(3).tolist(), random.gauss(0, 1))
    set_rng_state(state)
    assert (random.random(), numpy.random.rand(), torch.rand(3).tolist(), random.gauss(0, 1)) == drawn


def test_a_validation_is_a_record_of_its_own_and_is_drawn(opened, tmp_path, capsys):
    trackers = opened()
    trackers.log(record(1, loss=2.0))
    trackers.log_validation(validation_record(1, {"wiki": Figures(1.5, 100), "code": Figures(1000.0, 7)}, seconds=0.5))
    trackers.finish()
    trackers.close()
    _, validated = read_metrics(tmp_path / "metrics.jsonl")
    assert validated["validation_loss"] == {"wiki": 1.5, "code": 1000.0}
    assert validated["validation_tokens"] == {"wiki": 100, "code": 7}
    assert validated["validation_perplexity"]["wiki"] == Figures(1.5, 100).perplexity
    assert 1e300 < validated["validation_perplexity"]["code"] < float("inf"), "a number in JSON"
    assert "loss" not in validated and validated["step"] == 1
    assert "loss 2.0000, 10 tokens/s, validation 1.5000" in capsys.readouterr().err
    assert dict(trackers.results())["picture"].read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_keeps_validations_up_to_its_step(opened, tmp_path):
    trackers = opened()
    for step in (1, 2):
        trackers.log(record(step))
        trackers.log_validation(validation(step))
    trackers.close()
    opened(start_step=1)
    assert [(r["step"], "loss" in r) for r in read_metrics(tmp_path / "metrics.jsonl")] == [(1, True), (1, False)]


def test_records_of_a_run_without_a_checkpoint_are_kept_beside_those_of_the_new_one(opened, tmp_path, capsys):
    for attempt in range(3):
        trackers = opened()
        trackers.log(record(1, loss=float(attempt)))
        trackers.close()
    kept = {path.name: [record["loss"] for record in read_metrics(path)] for path in tmp_path.glob("metrics*")}
    assert kept == {"metrics.1.jsonl": [0.0], "metrics.2.jsonl": [1.0], "metrics.jsonl": [2.0]}
    assert "kept as metrics.2.jsonl" in capsys.readouterr().err


class Failing(Tracker):
    name, calls = "failing", 0

    def log(self, record):
        self.calls += 1
        raise OSError("no room")


def test_one_that_fails_is_told_of_once_and_still_told_of_everything(tmp_path, capsys):
    failing = Failing(None)
    trackers = Trackers([failing], quiet=False)
    for step in (1, 2):
        trackers.log(record(step))
    assert failing.calls == 2
    assert capsys.readouterr().err.count("tracker failing failed in log: OSError: no room; the run goes on") == 1


def test_one_that_is_needed_ends_the_run(tmp_path):
    failing = Failing(None)
    failing.needed = True
    with pytest.raises(OSError, match="no room"):
        Trackers([failing]).log(record(1))


def test_a_line_beside_an_unfinished_bar_begins_on_its_own(tmp_path, capsys):
    trackers = trackers_of(tmp_path)
    console.say("waiting for rank 1")
    assert capsys.readouterr().err.endswith("\nwaiting for rank 1\n")
    trackers.close()
    console.say("done")
    assert capsys.readouterr().err.endswith("\ndone\n")
