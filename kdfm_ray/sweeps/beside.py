"""Work in a thread beside the driver, which hears Ctrl-C: once to stop, twice to stop at once."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable

from kdfm_ray.jobs.interrupts import hear_interrupts

LOOK_SECONDS = 0.2  # between looks at what is due
STOP_SECONDS = 60.0  # for trials to save their state after an error of the driver


def run_beside(
    work: Callable[[], None],
    *,
    look: Callable[[], None],
    stop: Callable[[], None],
    on_first: Callable[[], None],
) -> tuple[bool, BaseException | None]:
    """Run ``work`` in a thread: Tune, as Ray Train, would replace what Ctrl-C does.

    Args:
        work: returns soon after ``stop`` was called.
        look: called in this thread every ``LOOK_SECONDS``.
        stop: called in this thread after the first Ctrl-C, and where ``look`` raises.
        on_first: called at the first Ctrl-C, in the handler.

    Returns:
        Whether Ctrl-C was heard, and what ``work`` raised.

    Raises:
        KeyboardInterrupt: at the second Ctrl-C, at once, whatever ``work`` does.
    """
    errors: list[BaseException] = []
    done = threading.Event()

    def body() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    stopping = False
    thread = threading.Thread(target=body, name="kdfm-tune", daemon=True)
    with hear_interrupts(on_first) as interrupt:
        thread.start()
        try:
            # Not thread.join: a Ctrl-C in it leaves threads of Python 3.11 looking as if they ran.
            while not done.wait(LOOK_SECONDS):
                look()
                if interrupt.is_set() and not stopping:
                    stopping = True
                    stop()
        except KeyboardInterrupt:
            _start_no_other_ray()
            raise
        except BaseException:  # of ours: end Tune before Ray
            with contextlib.suppress(Exception):
                stop()
            if not done.wait(STOP_SECONDS):
                _start_no_other_ray()
            raise
    return interrupt.is_set(), errors[0] if errors else None


def _start_no_other_ray() -> None:
    """Have calls of Ray fail in this process once Ray is shut down.

    The thread may still be in Tune, and a call of Ray starts a new one where there is none.
    ``RAY_ENABLE_AUTO_CONNECT=0`` would do the same from the import of Ray on, to the caller's own
    use of Ray in this process, too.
    """
    hook = sys.modules.get("ray._private.auto_init_hook")
    if hook is not None:
        hook.enable_auto_connect = False  # type: ignore[attr-defined]
