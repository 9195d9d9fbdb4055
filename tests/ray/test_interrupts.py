"""What ends a run from outside: Ctrl-C once, twice or swallowed, and a Ray that died."""

import os
import signal
import threading
import time

import pytest

from kdfm_ray.jobs import watch
from kdfm_ray.jobs.interrupts import hear_interrupts, noting_interrupts


@pytest.fixture(autouse=True)
def as_at_a_terminal():
    """A shell has what it runs in the background ignore Ctrl-C."""
    before = {
        number: signal.signal(number, handler)
        for number, handler in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGTERM, signal.SIG_DFL),
        )
    }
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def test_a_swallowed_interrupt_is_noted():
    before = signal.getsignal(signal.SIGINT)
    with noting_interrupts() as heard:
        with pytest.raises(KeyboardInterrupt):  # whoever does that in a library
            interrupt()
        assert heard.is_set()
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_sets_the_second_raises(number):
    calls = []
    with hear_interrupts(lambda: calls.append(1)) as heard:
        os.kill(os.getpid(), number)
        assert heard.is_set()
        assert calls == [1]
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert calls == [1]


def test_in_other_threads_nothing_is_changed():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work():
        with noting_interrupts(), hear_interrupts(print):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noting_interrupts() as noted, hear_interrupts(print) as heard:
            interrupt()
            assert not noted.is_set()
            assert not heard.is_set()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_ray_that_died_is_told_where_the_run_is(monkeypatch):
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(watch, "_node_processes", lambda: ["a process"])
    monkeypatch.setattr(watch, "_lives", lambda _: True)
    with watch.watching_ray():
        time.sleep(0.1)
    monkeypatch.setattr(watch, "_lives", lambda _: False)

    def work():
        with watch.watching_ray():
            for _ in range(1000):
                time.sleep(0.01)

    with pytest.raises(watch.RayGone, match="the same command goes on"):
        work()
