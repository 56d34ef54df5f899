"""What signals ask of a run."""

import signal
import time

import pytest

from llama_dyt.core.processes import ASKING_TO_END
from llama_dyt.training import signals
from llama_dyt.training.signals import StopRequest


def test_sigterm_asks_once_and_again_without_harm_and_the_handlers_before_come_back():
    before = [signal.getsignal(number) for number in ASKING_TO_END]
    stop = StopRequest()
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
        stop = StopRequest()
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
    stop = StopRequest()
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
        stop = StopRequest()
        with stop.listening():
            signal.raise_signal(signal.SIGHUP)
            assert not stop.asked
    finally:
        signal.signal(signal.SIGHUP, before)
