"""Ctrl-C while networks train: once to save and stop, twice to stop at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # the second is how jobs and machines are ended


@contextlib.contextmanager
def noting_interrupts() -> Iterator[threading.Event]:
    """Raise ``KeyboardInterrupt`` at Ctrl-C as usual, and set an event.

    A library that it passes through may swallow the exception; whoever looks at the event after it
    can still end.
    """
    heard = threading.Event()
    if not _may_handle() or _is_ignored(signal.SIGINT):
        yield heard
        return

    def handle(number: int, frame: FrameType | None) -> None:
        heard.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def hear_interrupts(on_first: Callable[[], None]) -> Iterator[threading.Event]:
    """Set an event at the first Ctrl-C (or SIGTERM) in the block; raise as usual at the second.

    Outside the main thread, where Python allows no handlers, signals do what they did before.

    Args:
        on_first: called in the main thread at the first one.

    Yields:
        The event, for whoever trains to look at.
    """
    heard = threading.Event()
    if not _may_handle():
        yield heard
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if heard.is_set():
            raise KeyboardInterrupt
        heard.set()
        on_first()

    before = {n: signal.signal(n, handle) for n in SIGNALS if not _is_ignored(n)}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _may_handle() -> bool:
    """Python allows handlers in the main thread only."""
    return threading.current_thread() is threading.main_thread()


def _is_ignored(number: signal.Signals) -> bool:
    """As by ``nohup``: whoever started this process does not want it to hear the signal."""
    return signal.getsignal(number) is signal.SIG_IGN
