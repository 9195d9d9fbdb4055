"""Where the folder of a run or a sweep lies: here, or behind a URI with a copy of it here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from kdfm_ray.remote import open_files
from kdfm_ray.store import default_root
from kdfm_ray.types import Emit, RunFailed, UserError

PUSH_SECONDS = 20.0  # between copies of what has changed
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray for the driver of a submitted job


def submitted_job() -> str | None:
    """The id of the job that this process is the driver of, where it was submitted to a cluster."""
    try:
        metadata = json.loads(os.environ.get(JOB, "")).get("metadata", {})
    except ValueError:
        return None
    found: str | None = metadata.get("job_submission_id")
    return found


def default_place(kind: str, name: str, store: str | None) -> str:
    """``runs/NAME``; in a submitted job beside the artifacts, as its own folder is thrown away.

    Args:
        kind: ``runs`` or ``sweeps``.
        name: of the folder.
        store: as in the config.
    """
    if submitted_job():
        return f"{(store or default_root()).rstrip('/')}/{kind}/{name}"
    return f"runs/{name}"


def is_uri(place: str) -> bool:
    """Whether it is no folder of this machine."""
    return "://" in place


@contextlib.contextmanager
def folder_at(place: str, emit: Emit) -> Iterator[Path]:
    """A folder of this machine for the block; behind a URI, it is fetched before and kept there.

    Args:
        place: folder or URI.
        emit: is told where files cannot be written for now.

    Raises:
        UserError: the URI cannot be read.
        RunFailed: the block ended well, and what it left could not be written there. Where it did
            not, its own exception counts, and ``emit`` is told.
    """
    if not is_uri(place):
        yield Path(place).expanduser().resolve()
        return
    mirror = Mirror(place)
    mirror.fetch()
    stop = threading.Event()

    def push_now_and_then() -> None:
        told = False
        while not stop.wait(PUSH_SECONDS):
            trouble = mirror.push()
            if trouble and not told:
                emit({"note": f"warning: {trouble}; trying again"})
            told = bool(trouble)

    thread = threading.Thread(target=push_now_and_then, name="kdfm-push", daemon=True)
    thread.start()
    ended_well = False
    try:
        yield mirror.local
        ended_well = True
    finally:
        stop.set()
        thread.join()
        trouble = mirror.push()
        if trouble and not ended_well:
            emit({"note": f"warning: {trouble}; the files are in {mirror.local}"})
    if trouble:
        raise RunFailed(
            f"{trouble}. All is done, and the files are in {mirror.local}: copy them to {place}, "
            "or mend that and run the same command, which computes nothing anew"
        )


def read_folder(place: str | Path) -> Path:
    """A folder to read from: itself, or a copy of what lies behind the URI now.

    Raises:
        UserError: the URI cannot be read.
    """
    if not is_uri(str(place)):
        return Path(place)
    mirror = Mirror(str(place), copies="reading")
    mirror.fetch()
    return mirror.local


class Mirror:
    """A folder behind a URI and its copy on this machine."""

    def __init__(self, url: str, copies: str = "folders") -> None:
        """Nothing is copied yet.

        Args:
            url: of the folder.
            copies: where copies are kept in the cache; whoever only reads keeps apart from a run
                that writes on the same machine.

        Raises:
            UserError: no such kind of URI.
        """
        self.url = url.rstrip("/")
        try:
            self._files, self._root = open_files(self.url)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"{url} cannot be opened: {error}. Give a folder, or a URI of a file system that "
                "fsspec knows (s3:// needs the package s3fs, gs:// gcsfs)"
            ) from error
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self.local = Path("~/.cache/kdfm_ray").expanduser() / copies / name
        self._pushed: dict[str, tuple[int, int]] = {}  # file -> size, time

    def fetch(self) -> None:
        """Make the copy what lies behind the URI now.

        Raises:
            UserError: it cannot be read.
        """
        self.local.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=self.local.parent))
        try:
            for path in self._files.find(self._root):
                name = path[len(self._root) :].lstrip("/")
                (fresh / name).parent.mkdir(parents=True, exist_ok=True)
                self._files.get_file(path, str(fresh / name))
            shutil.rmtree(self.local, ignore_errors=True)
            fresh.rename(self.local)
        except FileNotFoundError:
            shutil.rmtree(self.local, ignore_errors=True)
        except Exception as error:
            raise UserError(f"{self.url} cannot be read: {error}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        self._pushed = self._seen()

    def push(self) -> str | None:
        """Copy what has changed; returns what is wrong, if something is.

        What is removed here is removed there.
        """
        seen = self._seen()
        try:
            for name, state in seen.items():
                if self._pushed.get(name) != state:
                    target = f"{self._root}/{name}"
                    self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
                    with contextlib.suppress(FileNotFoundError):  # replaced meanwhile: next time
                        self._files.put_file(str(self.local / name), target)
                        self._pushed[name] = state
            for name in set(self._pushed) - set(seen):
                with contextlib.suppress(FileNotFoundError):
                    self._files.rm_file(f"{self._root}/{name}")
                del self._pushed[name]
        except Exception as error:
            return f"{self.url} cannot be written now ({error})"
        return None

    def _seen(self) -> dict[str, tuple[int, int]]:
        found = {}
        for path in self.local.rglob("*"):
            name = path.relative_to(self.local).as_posix()
            if path.is_file() and not path.name.startswith("."):  # locks, files being written
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    found[name] = (facts.st_size, facts.st_mtime_ns)
        return found
