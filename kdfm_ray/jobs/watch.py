"""Notice that this machine's Ray has died, and say so before Ray ends the driver without a word.

Ray's core ends a driver some seconds after its node process is gone, from C++: no exception, no
text, status 1.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

import psutil

from kdfm_ray.types import RunFailed

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 4.0  # for the main thread to end by itself; Ray gives it some ten


class RayGone(RunFailed):
    """Ray's own processes on this machine are gone."""

    def __init__(self) -> None:
        super().__init__(
            "Ray's processes on this machine ended (killed, or short of memory). What is finished "
            "or saved stays in the store, and the same command goes on from it"
        )


@contextlib.contextmanager
def watching_ray() -> Iterator[None]:
    """Raise ``RayGone`` in this thread when Ray's node process dies during the block.

    Where the thread is stuck in Ray, the text is printed and the process ended with status 1.
    """
    node = _node_processes()
    thread, over = threading.get_ident(), threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_SECONDS):
            if all(_lives(process) for process in node):
                continue
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread), ctypes.py_object(RayGone)
            )
            if not over.wait(PATIENCE_SECONDS):
                cursor = "\x1b[?25h" if sys.stderr.isatty() else ""  # a live view hides it
                print(f"{cursor}\nkdfm: {RayGone()}", file=sys.stderr)
                sys.stderr.flush()
                os._exit(1)
            return

    watcher = threading.Thread(target=watch, name="kdfm-watch", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()


def _node_processes() -> list[psutil.Process]:
    """The raylet that this driver talks to, and the control store if it was started here."""
    import ray

    node = ray._private.worker._global_node
    socket_name = getattr(node, "raylet_socket_name", None)
    if socket_name is None:
        return []
    mine = {process.pid for process in psutil.Process().children(recursive=True)}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if not command:
                continue
            # Whole: that of another node on this machine may be the same with a number after it.
            is_raylet = f"--raylet_socket_name={socket_name}" in command
            is_store = command[0].endswith("gcs_server") and process.pid in mine
            if is_raylet or is_store:
                found.append(process)
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
