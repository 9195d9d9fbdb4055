"""Leases: of several runs with one store, one computes a stage while the others wait for it.

A lease is a small file ``ROOT/leases/STAGE-KEY.json`` that its holder writes anew every few
seconds. Whoever waits takes it over when the holder's process is gone, or, where that cannot be
seen from here, when the file has not changed for ``DEAD_SECONDS`` of the waiter's own clock.

Leases save work; nothing depends on them being exact. Artifacts appear whole and the first one
stays, so two runs that both believe to hold a lease (a machine that slept, an object store without
exclusive creation) compute the same thing twice, and that is all.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from kdfm_ray.remote import create, open_files
from kdfm_ray.store import Store

BEAT_SECONDS = 5.0  # between signs of life
DEAD_SECONDS = 30.0  # without one: the holder is gone
POLL_SECONDS = 1.0  # between a waiter's looks


@contextlib.contextmanager
def lease(
    store: Store,
    stage: str,
    key: str,
    *,
    done: Callable[[], bool],
    waiting: Callable[[str], None],
) -> Iterator[bool]:
    """Hold the lease of a stage in the block, after waiting for whoever holds it now.

    Args:
        store: of the stage's artifact.
        stage, key: what is to be computed.
        done: whether it has been by now; then nobody has to wait any longer.
        waiting: told once, who is waited for.

    Yields:
        Whether the lease is held; ``False``: it is done.
    """
    mine = _Lease(store, f"{stage}-{key}")
    told, seen, since = False, None, time.monotonic()
    while not mine.take():
        holder = mine.read()
        if holder != seen:
            seen, since = holder, time.monotonic()
        if _is_dead(holder or {}, time.monotonic() - since):
            mine.remove(holder or {})
            continue
        if done():
            yield False
            return
        if holder is not None and not told:
            waiting(f"process {holder.get('pid')} on {holder.get('host')}")
            told = True
        time.sleep(POLL_SECONDS)
    with mine.beating():
        yield not done()


class _Lease:
    """One lease file, and this process's name in it."""

    def __init__(self, store: Store, name: str) -> None:
        self._token = uuid.uuid4().hex
        self._remote = store.remote
        self._fs, folder = open_files(f"{store.root}/leases")
        self._fs.makedirs(folder, exist_ok=True)
        self._path = f"{folder}/{name}.json"
        self._beats = 0

    def take(self) -> bool:
        """Create the file with this process's name; whether there was none."""
        if not self._remote:
            temporary = Path(f"{self._path}.{self._token}")
            temporary.write_text(self._text())
            try:
                os.link(temporary, self._path)  # fails where one exists
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            return True
        if not create(self._fs, self._path, self._text().encode()):
            return self._is_mine()  # a write whose answer was lost is repeated by the library
        time.sleep(POLL_SECONDS)  # of two that were here at once, the last one's name stays
        return self._is_mine()

    def read(self) -> dict[str, Any] | None:
        """What the file says; ``None`` where it is gone or cannot be read."""
        self._fs.invalidate_cache()
        try:
            found = json.loads(self._fs.cat_file(self._path))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def remove(self, holder: dict[str, Any]) -> None:
        """Take away the file of a holder that is gone, and of nobody else."""
        if self._remote:
            with contextlib.suppress(OSError):
                self._fs.rm_file(self._path)
            return
        aside = Path(f"{self._path}.gone-{self._token}")
        try:
            Path(self._path).rename(aside)
        except FileNotFoundError:
            return
        with contextlib.suppress(OSError, ValueError):
            if json.loads(aside.read_text()).get("token") != holder.get("token"):
                os.link(aside, self._path)  # somebody else was faster: give it back
        aside.unlink()

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        """Show signs of life during the block, and give the lease up after it."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(BEAT_SECONDS):
                with contextlib.suppress(OSError):
                    if self._is_mine():
                        self._write()

        thread = threading.Thread(target=beat, name="kdfm-lease", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            with contextlib.suppress(OSError):
                if self._is_mine():
                    self._fs.rm_file(self._path)

    def _write(self) -> None:
        self._beats += 1
        if self._remote:
            self._fs.pipe_file(self._path, self._text().encode())
            return
        temporary = Path(f"{self._path}.{self._token}")
        temporary.write_text(self._text())
        temporary.replace(self._path)

    def _is_mine(self) -> bool:
        found = self.read()
        return found is not None and found.get("token") == self._token

    def _text(self) -> str:
        return json.dumps(
            {
                "token": self._token,
                "host": socket.gethostname(),
                "processes": _process_space(),
                "pid": os.getpid(),
                "born": psutil.Process().create_time(),
                "beats": self._beats,
            }
        )


def _is_dead(holder: dict[str, Any], unchanged_seconds: float) -> bool:
    if unchanged_seconds > DEAD_SECONDS:
        return True
    here = (socket.gethostname(), _process_space())
    if (holder.get("host"), holder.get("processes")) != here:
        return False
    try:
        process = psutil.Process(int(holder["pid"]))
        # The same number may be another process by now.
        return abs(process.create_time() - float(holder["born"])) > 1 or not process.is_running()
    except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return True


def _process_space() -> str:
    """Tells containers of one host apart, whose process numbers mean different things."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
