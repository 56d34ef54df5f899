import json
import random

import numpy
import torch

from llama_dyt.training.picture import draw
from llama_dyt.training.randomness import rng_state, set_rng_state
from llama_dyt.training.tracking import Tracker, read_metrics
from llama_dyt.training.validation import Figures


def record(step, loss=1.0):
    return {"step": step, "loss": loss, "lr": 1e-3, "tokens_per_second": 10.0}


def make_tracker(save_dir, start_step=0):
    tracker = Tracker(True, save_dir, None, "kind: pretrain\n", start_step, total_steps=10, description="test")
    tracker.open()
    return tracker


def test_losses_come_back_to_the_last_bit(tmp_path):
    loss = 2.0 / 3.0 + 2.0**-50
    tracker = make_tracker(tmp_path)
    tracker.log(record(1, loss))
    tracker.close()
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["loss"] == loss


def test_resuming_removes_records_of_steps_that_were_lost(tmp_path):
    tracker = make_tracker(tmp_path)
    for step in (1, 2, 3, 4):
        tracker.log(record(step))
    tracker.close()
    with (tmp_path / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 5, "lo')  # killed while writing
    tracker = make_tracker(tmp_path, start_step=2)
    tracker.log(record(3, loss=9.0))
    tracker.close()
    assert [(r["step"], r["loss"]) for r in read_metrics(tmp_path / "metrics.jsonl")] == [(1, 1.0), (2, 1.0), (3, 9.0)]


def test_a_tracker_that_was_not_opened_leaves_nothing(tmp_path):
    Tracker(True, tmp_path / "run", tmp_path / "tb", "", 0, total_steps=10, description="test").close()
    assert list(tmp_path.iterdir()) == []


def test_only_the_first_rank_writes(tmp_path):
    tracker = Tracker(False, tmp_path / "run", tmp_path / "tb", "", 0, total_steps=10, description="test")
    tracker.open()
    tracker.log(record(1))
    assert tracker.draw("test", 100) is None
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


def test_a_validation_is_a_record_of_its_own_and_is_drawn(tmp_path, capsys):
    tracker = make_tracker(tmp_path)
    tracker.log(record(1, loss=2.0))
    tracker.log_validation(1, {"wiki": Figures(1.5, 100), "code": Figures(1000.0, 7)}, seconds=0.5)
    tracker.close()
    _, validation = read_metrics(tmp_path / "metrics.jsonl")
    assert validation["validation_loss"] == {"wiki": 1.5, "code": 1000.0}
    assert validation["validation_tokens"] == {"wiki": 100, "code": 7}
    assert validation["validation_perplexity"]["wiki"] == Figures(1.5, 100).perplexity
    assert 1e300 < validation["validation_perplexity"]["code"] < float("inf"), "a number in JSON"
    assert "loss" not in validation and validation["step"] == 1
    printed = capsys.readouterr().err
    assert "step 1: validation loss 1.5000, perplexity 4.48 on wiki (100 tokens)" in printed
    assert "loss 2.0000, 10 tokens/s, validation 1.5000" in printed
    assert tracker.draw("test", 100).read_bytes().startswith(b"\x89PNG")


def test_a_resumed_run_keeps_validations_up_to_its_step(tmp_path):
    tracker = make_tracker(tmp_path)
    for step in (1, 2):
        tracker.log(record(step))
        tracker.log_validation(step, {"wiki": Figures(1.5, 100)}, seconds=0.5)
    tracker.close()
    make_tracker(tmp_path, start_step=1).close()
    assert [(r["step"], "loss" in r) for r in read_metrics(tmp_path / "metrics.jsonl")] == [(1, True), (1, False)]
