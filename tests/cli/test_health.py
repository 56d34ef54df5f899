"""What is wrong with a run and does not end it at once is told where its user looks: events, report, last lines."""

from __future__ import annotations

import json
import signal
import socket
import time
from pathlib import Path

import pytest

from llama_dyt.training.trackers.events import read_events
from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import Command, finish

POISON = """
import torch.distributed as dist
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback


class Poison(Callback):
    name, every_rank = "poison", True

    def on_start(self, trainer):
        self.now = False
        if dist.get_rank() == 1:
            embedding = trainer.boosted.module.get_input_embeddings()
            embedding.register_forward_hook(lambda module, given, made: made * float("nan") if self.now else made)

    def before_step(self, trainer, step):
        self.now = step in (2, 3)

    def after_step(self, trainer, outcome):
        self.now = False


CALLBACKS.register(Poison)
"""
"""A user's callback by which the second rank's part of two batches makes the loss nan."""


def events(folder: Path, kind: str) -> list[tuple[int, str]]:
    return [(event["step"], event["text"]) for event in read_events(folder) if event["kind"] == kind]


@pytest.mark.slow
def test_spoiled_batches_are_passed_over_told_and_counted_also_by_the_run_that_goes_on(corpus, tmp_path):
    (tmp_path / "poison.py").write_text(POISON)
    flags = corpus.pretrain_flags(
        **{"import": "poison", "callback": "poison", "skip_nonfinite": 3, "save_dir": "run", "tensorboard_dir": "none"}
    )
    flags = [*flags, "--save_interval", "2", "--max_steps"]
    first = Command("pretrain", [*flags, "2"], tmp_path, "srun", processes=2).run()
    assert first.status == 0, first.stderr
    outcome = Command("pretrain", [*flags, "4", "--load", "auto"], tmp_path, "srun", processes=2).run()
    assert outcome.status == 0, outcome.stderr
    left_out = "loss is nan, the step's update was left out"
    assert f"step 3: {left_out} (2 in a row, 2 in all; 3 in a row end the run)" in outcome.stderr
    assert "left out    2 updates that were not finite (--skip_nonfinite)" in outcome.stdout
    run = tmp_path / "run"
    assert [(step, text.partition(" (")[0]) for step, text in events(run, "skipped")] == [(2, left_out), (3, left_out)]
    assert "2 in a row, 2 in all" in (run / "report.html").read_text(encoding="utf-8")
    records = read_metrics(run / "metrics.jsonl")
    assert [record["loss"] is None for record in records] == [False, True, True, False]
    assert [record["nonfinite_steps"] for record in records] == [0, 1, 2, 2]
    assert "NaN" not in (run / "metrics.jsonl").read_text()
    state = json.loads((run / "step_00000004/trainer_state.json").read_text())
    assert (state["nonfinite_steps"], state["nonfinite_in_a_row"], state["skipped_steps"]) == (2, 0, 0)
    assert json.loads((run / "step_00000004/optimizer/optimizer.json").read_text())["steps"] == 2


@pytest.mark.matrix  # it works all the while
def test_a_rank_that_is_stopped_again_and_again_is_named(corpus, tmp_path):
    """SIGSTOP and SIGCONT in turns, as a machine does that others work on."""
    (tmp_path / "soon.py").write_text("from llama_dyt.training.health import pace\n\npace.SECONDS = 0.0\n")
    flags = {"import": "soon", "plugin": "ddp", "max_steps": 100_000, "log_interval": 5, "save_dir": "run"}
    flags = corpus.pretrain_flags(**flags, tensorboard_dir="none", num_epochs=100_000)
    processes = Command("pretrain", flags, tmp_path, "srun", processes=2).start()
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and not any("rank 1" in text for _, text in events(tmp_path / "run", "slow")):
        if not (tmp_path / "run/metrics.jsonl").is_file():
            time.sleep(0.1)
            continue
        for number in (signal.SIGSTOP, signal.SIGCONT):
            processes[1].send_signal(number)
            time.sleep(0.02)
    processes[0].send_signal(signal.SIGTERM)
    outcome = finish(processes)
    assert outcome.status == 75, outcome.stderr
    step, text = next(told for told in events(tmp_path / "run", "slow") if "rank 1" in told[1])
    assert text.startswith(f"rank 1 (host {socket.gethostname()}) is slow: a layer ")
    assert f"step {step}: {text}" in outcome.stderr
    record = next(one for one in read_metrics(tmp_path / "run/metrics.jsonl") if one["step"] == step)
    assert record["slowest_rank"] == 1 and record["slowest_rank_factor"] >= 1.5


FLIP = """
import torch
import torch.distributed as dist
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback


class Flip(Callback):
    name, every_rank = "flip", True

    def due(self, step):
        return step == 3

    def after_step(self, trainer, outcome):
        if dist.get_rank() == 1:
            weight = trainer.boosted.module.get_input_embeddings().weight
            weight.data.view(-1).view(torch.int32)[5] ^= 1 << 20


CALLBACKS.register(Flip)
"""
"""A user's callback that does to one weight of the second rank what a memory may."""


@pytest.mark.slow
def test_a_rank_whose_weights_are_not_the_others_ends_the_run_before_a_save(corpus, tmp_path):
    (tmp_path / "flip.py").write_text(FLIP)
    flags = {"import": "flip", "callback": "flip", "plugin": "ddp", "checksum_interval": 100, "save_dir": "run"}
    flags = corpus.pretrain_flags(**flags, tensorboard_dir="none", save_interval=2, max_steps=8)
    outcome = Command("pretrain", [*flags, "--async_save"], tmp_path, "srun", processes=2).run()
    assert outcome.status == 2
    (message,) = [line for line in outcome.stderr.splitlines() if "error: " in line]
    host = socket.gethostname()
    assert f"error: after step 4 rank 1 (host {host}) holds another model.embed_tokens.weight" in message
    assert "than rank 0; which of them is right cannot be told: a machine computes or remembers wrong" in message
    assert message.endswith("leave that machine out, and resume from run/step_00000002")
    assert [path.name for path in (tmp_path / "run").glob("step_*")] == ["step_00000002"]
    ((step, text),) = events(tmp_path / "run", "failed")
    assert step == 4 and "holds another model.embed_tokens.weight" in text
    assert "Traceback" not in outcome.stderr


JUMP = """
from llama_dyt.training.callbacks.callback import CALLBACKS, Callback
from llama_dyt.training.health import spikes

spikes.FEWEST = 4


class Jump(Callback):
    name = "jump"

    def __init__(self, run):
        super().__init__(run)
        self.steps = 0  # begun, those that are done again too
        self.now = False

    def on_start(self, trainer):
        norm = trainer.boosted.module.model.norm
        norm.register_forward_hook(lambda module, given, made: made * 1000.0 if self.now else made)

    def before_step(self, trainer, step):
        self.steps += 1
        self.now = self.steps == 8

    def after_step(self, trainer, outcome):
        self.now = False


CALLBACKS.register(Jump)
"""
"""A user's callback by which the eighth batch makes the loss jump."""


@pytest.mark.slow
def test_a_run_that_went_back_from_a_spike_has_one_story_in_its_files(corpus, tmp_path):
    (tmp_path / "jump.py").write_text(JUMP)
    flags = {"import": "jump", "callback": "jump", "rollback_on_spike": 2, "spike_factor": 3, "save_interval": 3}
    flags = corpus.pretrain_flags(**flags, save_dir="run", tensorboard_dir="run/tb", max_steps=10, lr="1e-4")
    outcome = Command("pretrain", flags, tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    run = tmp_path / "run"
    records = read_metrics(run / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == list(range(1, 11))
    assert max(record["loss"] for record in records) < 1.2 * records[0]["loss"], "the spike is still there"
    ((step, text),) = events(run, "rollback")
    left_out = f"the 2 batches of steps 7 to 8 ({2 * 64:,} tokens) are left out"
    assert (step, text) == (8, f"back to run/step_00000006: {left_out} (time 1 of at most 2)")
    assert events(run, "spike")[0][0] == 8
    assert f"step 8: {text}" in outcome.stderr
    state = json.loads((run / "step_00000010/trainer_state.json").read_text())
    assert (state["rollbacks"], state["skipped_batches"], state["skipped_tokens"]) == (1, 2, 128)
    assert state["tokens_seen"] == 10 * 64
    assert [step for name, step in _scalars(run / "tb") if name == "train/loss"] == list(range(1, 11))


def _scalars(folder: Path) -> list[tuple[str, int]]:
    """(name, step) of all that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    shown = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    shown.Reload()
    return [(name, point.step) for name in shown.Tags()["scalars"] for point in shown.Scalars(name)]
