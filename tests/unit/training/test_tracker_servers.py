"""wandb, mlflow and aim where they are installed: what a run and its resumption left, as they read it back."""

import importlib.util
import struct

import pytest

from llama_dyt.config.run import RunConfig
from llama_dyt.core import console
from llama_dyt.training.trackers.picture import draw
from llama_dyt.training.trackers.tracker import TRACKERS, Sample, Tracked
from llama_dyt.training.trackers.trackers import Trackers

CANARY = "canary-of-a-password-7d1"


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (requirements-trackers.txt)")


def record(step, **more):
    return {"step": step, "loss": 1.0 / step, "lr": 1e-3, "tokens_per_second": 10.0, **more}


def start(folder, name, states, start_step, steps):
    """A run that is told of `steps` and its end; returns its states."""
    flags = {"tracker": name, "tracker_offline": True, "tracker_dir": str(folder / "kept"), "run_name": "seventh"}
    run = RunConfig.build("pretrain", tensorboard_dir=None, dataset=f"https://me:{CANARY}@host/x.jsonl", **flags)
    tracked = Tracked(run, folder / "run", start_step, 9, "test", "a title", 100, states=states)
    trackers = Trackers.of_run(tracked, first=True)
    trackers.open()
    for step in steps:
        trackers.log(record(step, alpha={"model.norm": 0.5}))
    trackers.log_validation({"step": steps[-1], "validation_loss": {"wiki": 2.5}, "validation_seconds": 0.1})
    trackers.log_samples(steps[-1], [Sample("one and", " two", " two")], 0.1)
    trackers.log_event(steps[-1], "saved", "checkpoint")
    draw([record(1), record(2)], folder / "drawn.png", "test", 100)
    trackers.finish()
    trackers.close()
    console.bar_stands(False)
    return trackers.states()


def run_and_resume(folder, name):
    """Steps 1 to 4, a crash, and from the checkpoint of step 2 again to 6; the state that both have."""
    first = start(folder, name, {}, 0, [1, 2, 3, 4])
    second = start(folder, name, first, 2, [3, 4, 5, 6])
    assert first == second and first[name]
    leaked = [path for path in folder.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert leaked == []
    return first[name]


def records_of(log):
    """The records of a .wandb file: LevelDB's log behind 7 bytes: checksum, length and kind of each."""
    place, held = 7, b""
    while place + 7 <= len(log):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", log[place + 4 : place + 7])
        held += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield held
            held = b""


@needs("wandb")
@pytest.mark.slow
def test_wandb_offline(tmp_path, capsys):
    from wandb.proto import wandb_internal_pb2 as messages

    state = run_and_resume(tmp_path, "wandb")
    history, runs = [], []
    for path in sorted(tmp_path.glob(f"kept/wandb/offline-run-*-{state['run_id']}/*.wandb")):
        for data in records_of(path.read_bytes()):
            message = messages.Record()
            message.ParseFromString(data)
            if message.WhichOneof("record_type") == "run":
                runs.append(message.run)
            if message.WhichOneof("record_type") == "history":
                items = {item.key or "/".join(item.nested_key): item.value_json for item in message.history.item}
                history.append(items)
    steps = [int(items["_step"]) for items in history if "train/loss" in items]
    assert steps == [1, 2, 3, 4, 5, 6], "each once, over a crash"
    last = next(items for items in history if items["_step"] == "6" and "train/loss" in items)
    assert float(last["train/loss"]) == 1.0 / 6 and "samples" in str(history) and "picture/loss" in str(history)
    assert {(run.run_id, run.display_name, run.project) for run in runs} == {(state["run_id"], "seventh", "llama_dyt")}
    assert "lr" in {item.key for item in runs[0].config.update}
    assert "wandb" not in capsys.readouterr().out


@needs("mlflow", "sqlalchemy", "alembic")
@pytest.mark.slow
def test_mlflow_in_a_file(tmp_path):
    from mlflow import MlflowClient

    run_id = run_and_resume(tmp_path, "mlflow")["run_id"]
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'kept/mlflow.db'}")
    run = client.get_run(run_id)
    losses = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, "train/loss")]
    assert losses == [(step, 1.0 / step) for step in range(1, 7)]
    assert run.data.metrics["validation_loss/wiki"] == 2.5 and run.data.metrics["alpha/model.norm"] == 0.5
    assert run.data.params["lr"] == "0.0003" and run.info.run_name == "seventh" and run.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(run_id)} == {"samples", "pictures"}


@needs("aim")
@pytest.mark.slow
def test_aim_in_a_repository(tmp_path):
    from aim import Run

    run = Run(run_hash=run_and_resume(tmp_path, "aim")["run_hash"], repo=str(tmp_path / "kept"))
    steps, columns = {metric.name: metric.data.items_list() for metric in run.metrics()}["train/loss"]
    assert steps == [1, 2, 3, 4, 5, 6] and columns[0] == pytest.approx([1 / step for step in steps])
    assert run["flags"]["lr"] == 3e-4 and run.name == "seventh" and run.experiment == "llama_dyt"
    run.close()


def test_a_package_that_is_not_installed_is_told_before_the_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    run = RunConfig.build("pretrain")
    told = [str(TRACKERS.get(name).why_not(run)) for name in ("wandb", "mlflow", "aim")]
    assert (
        told[0] == "--tracker wandb: the package wandb is not installed; pip install wandb (requirements-trackers.txt)"
    )
    assert all("is not installed" in one for one in told)
