"""A tracker in a thread of its own takes no time of the run, whatever it does, and tells no step twice."""

import json
import threading
import time

import pytest

from llama_dyt.config.run import RunConfig
from llama_dyt.core import console
from llama_dyt.training.trackers import background
from llama_dyt.training.trackers.tracker import TRACKERS, Sample, Tracked, Tracker
from llama_dyt.training.trackers.trackers import Trackers


class Slow(Tracker):
    """Waits in `where` until the test lets it go."""

    name, in_background = "slow_one", True
    where, told, gate = "", [], None

    def __init__(self, tracked):
        self._come("made")
        super().__init__(tracked)

    def _come(self, where, what=None):
        if where == self.where:
            self.gate.wait()
        self.told.append((where, what))

    def open(self):
        self._come("open")

    def log(self, record):
        self._come("log", record["step"])

    def log_validation(self, record):
        self._come("log_validation", record["step"])

    def log_samples(self, step, samples, seconds):
        self._come("log_samples", step)

    def log_picture(self, name, path):
        self._come("log_picture", name)

    def state(self):
        return {"run_id": "of the first start"}

    def close(self):
        self._come("close")


@pytest.fixture
def slow(monkeypatch):
    """The tracker's class, registered for the test."""
    made = type("Slow", (Slow,), {"told": [], "gate": threading.Event()})
    monkeypatch.setitem(TRACKERS._entries, made.name, made)
    yield made
    made.gate.set()
    console.bar_stands(False)


def trackers_of(folder, states=None, start_step=0, wait=5):
    run = RunConfig.build("pretrain", tensorboard_dir=None, tracker="slow_one", tracker_wait=wait)
    tracked = Tracked(run, folder, start_step, 10, "test", "test", 100, states=states or {})
    trackers = Trackers.of_run(tracked, first=True)
    trackers.open()
    return trackers


def record(step):
    return {"step": step, "loss": 1.0, "lr": 1e-3, "tokens_per_second": 10.0}


def test_it_is_told_of_all_in_order_and_closed(slow, tmp_path):
    trackers = trackers_of(tmp_path)
    for step in (1, 2):
        trackers.log(record(step))
    trackers.log_validation({"step": 2, "validation_loss": {"wiki": 1.0}})
    trackers.log_samples(2, [Sample("a", "b")], 0.1)
    trackers.finish()
    trackers.close()
    picture = ("log_picture", "loss")
    assert [one for one in slow.told if one != picture] == [
        *[("made", None), ("open", None), ("log", 1), ("log", 2)],
        *[("log_validation", 2), ("log_samples", 2), ("close", None)],
    ]
    assert picture in slow.told


@pytest.mark.parametrize("where", ["made", "open", "log", "close"])
def test_one_that_hangs_delays_nothing_and_the_end_waits_only_so_long(slow, tmp_path, capsys, where):
    slow.where = where
    trackers = trackers_of(tmp_path, wait=1)
    begin = time.perf_counter()
    for step in range(1, 101):
        trackers.log(record(step))
    told = time.perf_counter() - begin
    trackers.close()
    waited = time.perf_counter() - begin - told
    assert told < 1.0 <= waited < 10.0, "a step waits for nobody, and the end for its second"
    assert capsys.readouterr().err.count("tracker slow_one is not done 1 s after the run's end") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 100


def test_a_failed_run_does_not_wait_that_long(slow, tmp_path):
    slow.where = "log"
    trackers = trackers_of(tmp_path, wait=600)
    trackers.log(record(1))
    trackers.hurry()
    begin = time.perf_counter()
    trackers.close()
    assert time.perf_counter() - begin < 20


def test_what_it_does_not_keep_up_with_is_bounded_and_told_once(slow, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(background, "QUEUE_LENGTH", 5)
    slow.where = "open"
    trackers = trackers_of(tmp_path)
    for step in range(1, 21):
        trackers.log(record(step))
    slow.gate.set()
    trackers.close()
    said = capsys.readouterr().err
    assert said.count("does not keep up") == 1 and "lacks 15 records" in said
    assert [what for where, what in slow.told if where == "log"] == [1, 2, 3, 4, 5]


def test_one_that_fails_is_told_of_once(slow, tmp_path, capsys):
    def fail(self, record):
        raise ConnectionError("the server is away")

    slow.log = fail
    trackers = trackers_of(tmp_path)
    for step in (1, 2):
        trackers.log(record(step))
    trackers.close()
    assert capsys.readouterr().err.count("tracker slow_one failed in log: ConnectionError: the server is away") == 1
    assert ("close", None) in slow.told


def test_steps_that_are_done_again_after_a_crash_are_not_told_again(slow, tmp_path):
    first = trackers_of(tmp_path)
    for step in (1, 2, 3, 4):
        first.log(record(step))
        if step == 2:
            states = json.loads(json.dumps(first.states()))  # as a checkpoint of step 2 keeps them
            deadline = time.monotonic() + 30
            while not states and time.monotonic() < deadline:
                time.sleep(0.01)
                states = first.states()
    first.log_validation({"step": 4, "validation_loss": {"wiki": 1.0}})
    first.close()
    slow.told.clear()
    again = trackers_of(tmp_path, states, start_step=2)
    for step in (3, 4):
        again.log(record(step))
    again.log_validation({"step": 4, "validation_loss": {"wiki": 1.0}})
    again.log_samples(4, [Sample("a", "b")], 0.1)  # which the crash came before
    again.log(record(5))
    again.close()
    assert slow.told == [("made", None), ("open", None), ("log_samples", 4), ("log", 5), ("close", None)]


def test_a_validation_that_is_made_up_for_comes_after_what_was_told_of_its_step(slow, tmp_path):
    first = trackers_of(tmp_path)
    first.log(record(1))
    first.log(record(2))  # and a signal cuts the validation of step 2 short
    first.close()
    states = json.loads(json.dumps(first.states()))
    assert states
    slow.told.clear()
    again = trackers_of(tmp_path, states, start_step=2)
    again.log_validation({"step": 2, "validation_loss": {"wiki": 1.0}})
    again.log(record(3))
    again.close()
    assert slow.told == [("made", None), ("open", None), ("log_validation", 2), ("log", 3), ("close", None)]


def test_a_course_of_its_own_is_told_from_its_beginning(slow, tmp_path):
    trackers_of(tmp_path).close()
    slow.told.clear()
    again = trackers_of(tmp_path, states={}, start_step=2)  # of an earlier checkpoint than the newest
    again.log(record(3))
    again.close()
    assert ("log", 3) in slow.told
