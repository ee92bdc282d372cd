"""Signals: a flag while training, an immediate stop before it, the old handlers afterwards."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from ganlab.errors import Stopped
from ganlab.system.signals import SIGNALS, Interrupted, StopFlag, interrupting

CODES = {
    signal.SIGINT: 130,
    signal.SIGTERM: 143,
    signal.SIGHUP: 129,
    signal.SIGUSR1: 138,
    signal.SIGUSR2: 140,
}


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_signal_stops_at_once_before_training_and_at_each_poll_in_it(signum: int) -> None:
    with StopFlag() as stop:
        with pytest.raises(Stopped, match="before training began") as caught:
            send(signum)
        assert caught.value.code == CODES[signal.Signals(signum)]
    with StopFlag() as stop:
        stop.training_started()
        stop.poll()
        send(signum)
        send(signal.SIGUSR1)  # the first one counts
        assert stop.signum == signum
        for _ in range(2):
            with pytest.raises(Stopped) as caught:
                stop.poll()
        assert caught.value.code == CODES[signal.Signals(signum)]
        assert caught.value.signum == signum
        assert signal.Signals(signum).name in str(caught.value)


def test_a_stop_that_somebody_swallowed_before_training_comes_again() -> None:
    with StopFlag() as stop:
        with pytest.raises(Stopped):  # as a broad except would
            send(signal.SIGTERM)
        with pytest.raises(Stopped):
            stop.training_started()


def test_many_ranks_stop_where_they_agree_and_not_at_a_signal_that_comes_meanwhile() -> None:
    with StopFlag() as stop:
        stop.training_started(lambda mine: mine)

        def nobody_yet(mine: int | None) -> int | None:
            send(signal.SIGTERM)
            return mine

        stop.poll(nobody_yet)
        with pytest.raises(Stopped) as caught:
            stop.poll(lambda mine: mine)
        assert caught.value.code == 143
    with StopFlag() as stop:
        stop.training_started(lambda mine: None)
        with pytest.raises(Stopped) as caught:
            stop.poll(lambda mine: signal.SIGUSR1)  # another rank's
        assert caught.value.code == 138


def test_a_second_interrupt_does_not_wait() -> None:
    with StopFlag() as stop:
        stop.training_started()
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_the_old_handlers_come_back_after_an_error_too() -> None:
    before = [signal.getsignal(s) for s in SIGNALS]

    def work() -> None:
        with StopFlag():
            assert all(signal.getsignal(s) not in before for s in SIGNALS)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert [signal.getsignal(s) for s in SIGNALS] == before
    with StopFlag() as outer, StopFlag():
        pass
    assert outer.signum is None
    assert [signal.getsignal(s) for s in SIGNALS] == before


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_command_with_nothing_to_save_ends_at_once_past_every_broad_except(signum: int) -> None:
    before = signal.getsignal(signum)

    def careless() -> None:
        try:
            send(signum)
        except Exception:
            pytest.fail("swallowed")

    with pytest.raises(Interrupted) as caught, interrupting():
        careless()
    assert caught.value.signum == signum
    assert isinstance(caught.value, KeyboardInterrupt)
    assert signal.getsignal(signum) is before


def test_under_nohup_a_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupting(), StopFlag() as stop:
            send(signal.SIGHUP)
            stop.training_started()
            assert stop.signum is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_off_the_main_thread_it_does_nothing() -> None:
    before, seen = [signal.getsignal(s) for s in SIGNALS], []

    def work() -> None:
        with StopFlag() as stop:
            seen.extend(signal.getsignal(s) for s in SIGNALS)
            stop.training_started()
            stop.poll()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == before
