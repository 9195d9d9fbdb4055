"""Ctrl-C while networks train: once to save and stop, twice to stop at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)  # the second is how jobs and machines are ended


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
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if heard.is_set():
            raise KeyboardInterrupt
        heard.set()
        on_first()

    before = {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
