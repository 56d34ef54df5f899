"""Runs whose trackers ask servers that never answer, take no connection, are not there or die: none ends or waits.

By trackers of our own that set no limit on how long they ask; by wandb, mlflow and aim where they are installed
(requirements-trackers.txt), and by mlflow's server, stopped in the middle of a run, where all of mlflow is.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from llama_dyt.training.trackers.jsonl import read_metrics
from tests.cli.entries import Command, free_port
from tests.servers import Faulty, listening


@contextmanager
def silent():
    """An address whose connections are taken by the kernel, and that nobody answers."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def full():
    """An address that takes no connection: whoever asks for one waits for the kernel to give up, minutes later."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(8):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(listener.getsockname())
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def dying(after: int):
    """A server that answers until it is told of a step; gives its address and the steps that it was told of."""
    told, ends = [], threading.Event()

    class Handler(Faulty):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["step"])
            if told[-1] >= after:
                ends.wait()
                return
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with listening(Handler) as url:
        try:
            yield url.removeprefix("http://"), told
        finally:
            ends.set()


def losses_of(folder: Path) -> list[float]:
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


def test_servers_that_do_not_answer_neither_end_a_run_nor_hold_it_up(corpus, pretrained, tmp_path, monkeypatch):
    with silent() as mute, full() as taken, dying(after=3) as (dead, told):
        servers = {"far_silent": mute, "far_full": taken, "far_refused": f"127.0.0.1:{free_port()}", "far_dying": dead}
        monkeypatch.setenv("FAR_SERVERS", ",".join(f"{name}=http://{address}" for name, address in servers.items()))
        shutil.copy(Path(__file__).with_name("far_trackers.py"), tmp_path)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        flags = corpus.pretrain_flags(tracker=",".join(servers), tracker_wait=1, save_dir="run", save_interval=6)
        outcome = Command("pretrain", ["--import", "far_trackers", *flags], tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert losses_of(tmp_path / "run") == losses_of(pretrained.save_dir)
    for name in ("far_silent", "far_full", "far_dying"):
        assert outcome.stderr.count(f"tracker {name} is not done 1 s after the run's end") == 1, outcome.stderr
    assert outcome.stderr.count("tracker far_refused failed in open") == 1 and "Traceback" not in outcome.stderr
    assert told == [0, 1, 2, 3]


def needs(*packages: str):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed (requirements-trackers.txt)")


@pytest.mark.slow
@pytest.mark.parametrize("server", [silent, full])
@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        pytest.param("wandb", "http", marks=needs("wandb")),
        pytest.param("mlflow", "http", marks=needs("mlflow")),
        pytest.param("aim", "aim", marks=needs("aim")),
    ],
)
def test_what_users_have_with_a_server_that_does_not_answer(
    corpus, pretrained, tmp_path, monkeypatch, name, scheme, server
):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with server() as address:
        flags = corpus.pretrain_flags(tracker=name, tracker_wait=2, save_dir="run", save_interval=6)
        outcome = Command("pretrain", [*flags, "--tracker_server", f"{scheme}://{address}"], tmp_path).run()
    assert outcome.status == 0, outcome.stderr
    assert losses_of(tmp_path / "run") == losses_of(pretrained.save_dir)
    assert outcome.stderr.count(f"warning: tracker {name}") == 1 and "Traceback" not in outcome.stderr, outcome.stderr


@contextmanager
def mlflow_server(folder: Path):
    """MLflow's own, in processes of its own; gives its address and the group of its processes."""
    port = free_port()
    place = f"sqlite:///{folder / 'mlflow.db'}"
    words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    words += ["--backend-store-uri", place, "--artifacts-destination", str(folder / "artifacts")]
    with (
        open(folder / "mlflow.log", "wb") as log,
        subprocess.Popen(words, cwd=folder, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            deadline = time.monotonic() + 240
            while True:
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).read()
                    break
                assert process.poll() is None and time.monotonic() < deadline, (folder / "mlflow.log").read_text()
                time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
@needs("mlflow", "flask", "huey")  # the whole of mlflow, of which mlflow-skinny is the client
def test_mlflows_own_server_stopped_in_the_middle_of_a_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with mlflow_server(tmp_path) as (address, group):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        common = {"tracker": "mlflow", "dataset": corpus.train, "max_steps": 4}
        whole = Command("pretrain", corpus.pretrain_flags(**common, save_dir="whole", tracker_wait=120), tmp_path).run()
        assert whole.status == 0 and "warning: tracker" not in whole.stderr, whole.stderr
        assert f"in {address}" in whole.stdout + whole.stderr
        common = {**common, "max_steps": 150, "num_epochs": 50}
        flags = corpus.pretrain_flags(**common, save_dir="stopped", tracker_wait=2)
        (process,) = Command("pretrain", flags, tmp_path).start()
        told = tmp_path / "stopped/.tracker_mlflow.json"
        while not (told.exists() and json.loads(told.read_text() or "{}").get("told", [0])[0] >= 3):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(group, signal.SIGSTOP)
        _, said = process.communicate(timeout=400)
    assert process.returncode == 0, said
    assert len(losses_of(tmp_path / "stopped")) == 150
    assert said.count("warning: tracker mlflow") == 1 and "Traceback" not in said
