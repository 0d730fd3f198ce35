"""Requests to stop: the first is noted, a second Ctrl-C ends a step but never a save, handlers are put back."""

import os
import signal
import threading

import pytest

from training import stop_requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_a_request_and_nothing_breaks_off(number, capsys):
    with stop_requests() as stop:
        assert stop.signal == 0
        os.kill(os.getpid(), number)
        assert stop.signal == number
    assert "ending this step, then saving" in capsys.readouterr().err


def test_a_second_ctrl_c_ends_a_step_that_takes_too_long():
    with stop_requests() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    ("first", "second", "saving"),
    [
        (signal.SIGINT, signal.SIGINT, True),
        (signal.SIGTERM, signal.SIGTERM, False),
        (signal.SIGTERM, signal.SIGTERM, True),
        (signal.SIGTERM, signal.SIGINT, False),
        (signal.SIGINT, signal.SIGTERM, False),
    ],
)
def test_other_second_signals_change_nothing(first, second, saving):
    with stop_requests() as stop:
        os.kill(os.getpid(), first)
        stop.saving = saving
        os.kill(os.getpid(), second)
        assert stop.signal == first


def test_the_handlers_from_before_come_back():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    with pytest.raises(ZeroDivisionError), stop_requests():
        assert signal.getsignal(signal.SIGTERM) != before[signal.SIGTERM]
        raise ZeroDivisionError
    assert {number: signal.getsignal(number) for number in before} == before


def test_in_a_thread_signals_are_left_to_the_main_one():
    seen = []

    def work() -> None:
        with stop_requests() as stop:
            seen.append(stop.signal)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [0]
