"""States of trainings under way: written whole or not at all, the last two kept, each one checked.

A state is a folder of files, like an artifact: it lies under ``ROOT/states/ROLE/KEY/NAME/`` and
counts from the moment that ``manifest.json``, with the hash of every file, is in it; that is
written last and in one step. A crash leaves a folder that nobody reads. The key is the network's,
so a state belongs to one training only, whoever goes on with it and with however many workers.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdfm_ray.remote import open_files
from kdfm_ray.store import MANIFEST, Store, file_facts, to_disk
from kdfm_ray.types import UserError

FORMAT = 1
KEPT = 2  # the last state, and the one before in case that it is damaged


@dataclass(frozen=True)
class Saved:
    """A state that was found whole.

    Attributes:
        step: finished updates.
        path: local folder with its files.
        damaged: newer states that were passed over, each with what is wrong with it.
    """

    step: int
    path: Path
    damaged: tuple[str, ...] = ()


class Checkpoints:
    """The states of one training."""

    def __init__(self, store: Store, role: str, key: str) -> None:
        """Look at ``ROOT/states/ROLE/KEY``, which need not exist."""
        self.root = f"{store.root}/states/{role}/{key}"
        self._remote = store.remote
        self._fs, self._folder = open_files(self.root)

    def any(self) -> bool:
        """Whether there is a state, damaged or not."""
        return bool(self._names())

    @contextlib.contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Write the state after ``step`` updates; it counts when the block ends without exception.

        Older states than the last two are removed then, and newer ones, which were damaged.

        Yields:
            An empty local folder to write files into.

        Raises:
            OSError: as from any writing; states that were there before stay as they are.
        """
        name = f"{step:010d}-{uuid.uuid4().hex[:8]}"
        path = Path(tempfile.mkdtemp(prefix="kdfm-")) if self._remote else Path(self.root, name)
        path.mkdir(parents=True, exist_ok=True)
        done = False
        try:
            yield path
            self._commit(path, name, step)
            done = True
        finally:
            if self._remote or not done:
                shutil.rmtree(path, ignore_errors=True)
            if self._remote and not done:
                self._remove(name)
        names = self._names()
        passed_over = [name for name in names if _step_of(name) > step]  # damaged, so we went on
        kept = [name for name in names if name not in passed_over][-KEPT:]
        for name in names:
            if name not in kept:
                self._remove(name)

    @contextlib.contextmanager
    def latest(self, step: int | None = None) -> Iterator[Saved | None]:
        """The newest state that is whole, or that after ``step`` updates; ``None`` without any.

        Files of a store behind a URI are fetched, and are gone after the block.

        Raises:
            UserError: there are states, and all of them are damaged, or written by a newer version.
        """
        with tempfile.TemporaryDirectory(prefix="kdfm-") as temporary:
            damaged: list[str] = []
            for name in reversed(self._names()):
                number = _step_of(name)
                if step is not None and number != step:
                    continue
                path = self._fetch(name, Path(temporary, name))
                problem = _problem(path)
                if problem is None:
                    yield Saved(number, path, tuple(damaged))
                    return
                damaged.append(f"{self.root}/{name}: {problem}")
            if damaged:
                lines = "; ".join(damaged)
                raise UserError(
                    f"the saved states of this training are damaged ({lines}): delete the folder "
                    f"{self.root} to train this network from its start"
                )
            yield None

    def clear(self) -> None:
        """Remove all states: the training is done."""
        for name in self._names():
            self._remove(name)
        with contextlib.suppress(OSError):
            self._fs.rm(self._folder, recursive=True)

    def _names(self) -> list[str]:
        """Folders with a manifest, oldest first."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._folder, detail=False)
        except FileNotFoundError:
            return []
        names = (str(entry).rstrip("/").rpartition("/")[2] for entry in found)
        return sorted(name for name in names if self._fs.exists(self._path(name, MANIFEST)))

    def _commit(self, path: Path, name: str, step: int) -> None:
        files = {}
        for file in sorted(path.iterdir()):
            to_disk(file)
            files[file.name] = file_facts(file)
        text = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1)
        if self._remote:
            self._fs.makedirs(self._path(name), exist_ok=True)
            for file_name in files:
                self._fs.put_file(str(path / file_name), self._path(name, file_name))
            self._fs.pipe_file(self._path(name, MANIFEST), text.encode())
            return
        temporary = path / f".{MANIFEST}"
        temporary.write_text(text)
        to_disk(temporary)
        temporary.replace(path / MANIFEST)
        to_disk(path)

    def _fetch(self, name: str, target: Path) -> Path:
        if not self._remote:
            return Path(self.root, name)
        target.mkdir()
        for entry in self._fs.ls(self._path(name), detail=False):
            self._fs.get_file(entry, str(target / str(entry).rpartition("/")[2]))
        return target

    def _remove(self, name: str) -> None:
        """Without its manifest first: what is left of an interrupted removal is never read."""
        with contextlib.suppress(OSError):
            if self._fs.exists(self._path(name, MANIFEST)):
                self._fs.rm_file(self._path(name, MANIFEST))
            self._fs.rm(self._path(name), recursive=True)

    def _path(self, *parts: str) -> str:
        return "/".join((self._folder, *parts))


def _step_of(name: str) -> int:
    return int(name.partition("-")[0])


def _problem(path: Path) -> str | None:
    """What is wrong with the state in this folder."""
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        newer = manifest["format"] > FORMAT
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest cannot be read"
    if newer:
        raise UserError(
            f"the saved state {path} was written by a newer kdfm_ray (format "
            f"{manifest['format']}, this one reads {FORMAT}): upgrade, or delete that folder to go "
            "on from an older state"
        )
    for name, facts in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file_facts(file) != facts:
            return f"{name} is not what was written"
    return None
