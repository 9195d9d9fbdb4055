"""Work beside the driver, and Ctrl-C; no Ray."""

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from kdfm_ray.sweeps import beside
from kdfm_ray.sweeps.beside import run_beside


@pytest.fixture(autouse=True)
def hook(monkeypatch):
    """Ray's own switch, whether Ray was imported or not."""
    found = SimpleNamespace(enable_auto_connect=True)
    monkeypatch.setitem(sys.modules, "ray._private.auto_init_hook", found)
    return found


@pytest.fixture(autouse=True)
def heard():
    """As in a terminal: what runs in the background of a shell is made to ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(times, every=0.5):
    """Ctrl-C from outside, a few times."""

    def send():
        for _ in range(times):
            time.sleep(every)
            os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=send, daemon=True).start()


class Work:
    """Waits for its end; ``seconds`` more once it was asked to."""

    def __init__(self, seconds=0.0):
        self.over, self.seconds, self.left, self.told = threading.Event(), seconds, False, 0

    def __call__(self):
        self.over.wait(20)
        time.sleep(self.seconds)
        self.left = True

    def stop(self):
        self.told += 1
        self.over.set()


def run(work, look=lambda: None, heard=None):
    return run_beside(
        work, look=look, stop=work.stop, on_first=lambda: heard.append(1) if heard else None
    )


def test_work_that_ends_by_itself_and_what_it_raises():
    assert run_beside(lambda: None, look=print, stop=print, on_first=print) == (False, None)
    error = ValueError("no")

    def broken():
        raise error

    assert run_beside(broken, look=print, stop=print, on_first=print) == (False, error)


def test_the_first_ctrl_c_stops_the_work_and_waits_for_it(hook):
    work = Work(seconds=0.5)
    press(1)
    assert run(work) == (True, None)
    assert work.left
    assert work.told == 1
    assert hook.enable_auto_connect


def test_the_second_ctrl_c_waits_for_nothing_and_no_other_ray_is_started(hook):
    work, started = Work(seconds=15), time.monotonic()
    press(2)
    with pytest.raises(KeyboardInterrupt):
        run(work)
    assert time.monotonic() - started < 5
    assert not work.left
    assert not hook.enable_auto_connect


@pytest.mark.parametrize("patience", [5.0, 0.2])
def test_an_error_of_the_driver_stops_the_work_first(hook, monkeypatch, patience):
    monkeypatch.setattr(beside, "STOP_SECONDS", patience)
    work = Work(seconds=0.6)

    def look():
        raise OSError("full")

    with pytest.raises(OSError, match="full"):
        run(work, look)
    assert work.told == 1
    assert work.left == hook.enable_auto_connect == (patience == 5.0)
