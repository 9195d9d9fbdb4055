"""The folder of a sweep: whose it is, who writes to it, and what is in it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdfm_ray.config import hashed_whole
from kdfm_ray.report.run_folder import write_whole
from kdfm_ray.sweeps.ledger import KEPT, TRIALS
from kdfm_ray.sweeps.space import Sweep
from kdfm_ray.types import UserError

SWEEP, NOW, LOCK = "sweep.json", "now.json", ".lock"


def check_folder(path: Path, sweep: Sweep) -> None:
    """The folder is new, or holds this very sweep.

    Raises:
        UserError: it does not.
    """
    saved = path / SWEEP
    if not saved.is_file():
        others = [file.name for file in path.iterdir()] if path.is_dir() else []
        # Of a try that ended before it was planned.
        ours = (LOCK, TRIALS, KEPT)
        if path.is_file() or [name for name in others if name not in ours]:
            raise UserError(f"{path} holds other files and no sweep: give a new folder with --out")
        return
    before, now = json.loads(saved.read_text())["sweep"], sweep.same_as()
    before["base"] = hashed_whole(before["base"])  # folders may be older or newer than a field
    now = json.loads(json.dumps(now))
    changed = _differences(before, now)
    if changed:
        raise UserError(
            f"{path} holds another sweep ({'; '.join(changed)}): give another folder with --out; "
            "networks that both have in common are not trained again"
        )


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in {**before, **now}:
            inner = f"{name}.{key}" if name else key
            found += _differences(before.get(key), now.get(key), inner)
        return found
    return [] if before == now else [f"{name} was {before!r}, is {now!r}"]


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Only one process runs a sweep in a folder.

    Raises:
        UserError: another one does.
    """
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process runs the sweep in {path}: wait for it (`kdfm sweep --status "
                f"{path}`), or give another folder with --out"
            ) from error
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def is_running(folder: Path) -> bool:
    """Whether a process holds the folder's lock."""
    lock = folder / LOCK
    if not lock.is_file():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def write_json(path: Path, value: Any) -> None:
    """Write a file whole."""
    write_whole(path, json.dumps(value, indent=1) + "\n")
