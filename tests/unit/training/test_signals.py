"""What signals ask of a run."""

import os
import signal
import time

import pytest

from llama_dyt.core.processes import ASKING_TO_END
from llama_dyt.training import signals
from llama_dyt.training.signals import StopRequest
from tests import forks


def asked_in_training(**given) -> StopRequest:
    stop = StopRequest(**given)
    stop.has_steps = True
    return stop


def test_sigterm_asks_once_and_again_without_harm_and_the_handlers_before_come_back():
    before = [signal.getsignal(number) for number in ASKING_TO_END]
    stop = asked_in_training()
    with stop.listening():
        assert not stop.asked
        with stop.listening():
            for _ in range(3):
                signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGHUP)
        assert stop.asked
    assert [signal.getsignal(number) for number in ASKING_TO_END] == before


@pytest.mark.parametrize("number", ASKING_TO_END)
def test_every_way_of_asking_is_heeded(number):
    before = signal.signal(number, signal.SIG_DFL)
    try:
        stop = asked_in_training()
        with stop.listening():
            signal.raise_signal(number)
        assert stop.asked
    finally:
        signal.signal(number, before)


@pytest.fixture
def terminal():
    """Ctrl-C means something, as it does not to tests that a shell has put in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_ctrl_c_ends_at_once_if_it_is_a_persons(monkeypatch, terminal):
    monkeypatch.setattr(signals, "_SECOND_CTRL_C_SECONDS", 0.2)
    stop = asked_in_training()
    with stop.listening():
        for _ in range(3):  # of one key press, through several launchers
            signal.raise_signal(signal.SIGINT)
        assert stop.asked
        time.sleep(0.3)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_nohup_has_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop = asked_in_training()
        with stop.listening():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)


IN_A_PROCESS = """
import os, signal, sys, time
from llama_dyt.core import ranks
from llama_dyt.training.signals import StopRequest, end_at_once
end_at_once()
stop = StopRequest(grace=0.2, last_saved=lambda: "run/step_1")
ranks.undo_at_end(lambda: print("undone", ranks.ending_status(), flush=True))
{}
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("before", "after", "number", "status", "said"),
    [
        ("", "", signal.SIGTERM, 143, "ended by SIGTERM"),
        ("", "", signal.SIGINT, 130, "ended by SIGINT"),
        ("stop.listen()", "", signal.SIGUSR1, 138, "ended by SIGUSR1 before the first step: there was nothing to save"),
        ("stop.listen(); stop.has_steps = True", "", signal.SIGTERM, 75, "the last complete one is run/step_1"),
        ("stop.listen(); stop.has_steps = True", "stop.conclude(); time.sleep(1); os._exit(7)", signal.SIGTERM, 7, ""),
    ],
)
def test_what_a_signal_ends_by_where_a_run_stands(before, after, number, status, said):
    ended = forks.run(["-c", IN_A_PROCESS.format(f"{before}\nos.kill(os.getpid(), {int(number)})\n{after}")])
    assert (ended.returncode, ended.stdout) == (status, f"undone {status}\n" if said else "")
    assert said in ended.stderr and len(ended.stderr.splitlines()) == bool(said)


def test_a_fork_that_is_signalled_asks_nothing_of_its_parent():
    stop = asked_in_training()
    with stop.listening():
        child = os.fork()
        if child == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert not stop.asked
