"""Artifacts by content key: written whole or not at all, never changed, read by every later run.

An artifact is a folder of files. It lies under ``ROOT/STAGE/KEY/ATTEMPT/`` and counts from the
moment that ``ROOT/STAGE/KEY/manifest.json`` names the attempt: the manifest appears in one step and
is written last, so a crash leaves an attempt that nobody reads. The first manifest stays; a second
run that computed the same stage reads the first one's files.

``ROOT`` is a local (or shared) folder, or a URI of any fsspec file system. Files of a URI are
copied to a node's own cache when they are first read: once, however many processes read them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kdfm_ray.config import SECRET_IN_URI, holds_secret
from kdfm_ray.remote import StoreError, create, open_files
from kdfm_ray.types import UserError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A complete artifact.

    Attributes:
        stage, key: where it belongs.
        locate: gives a local folder with its files; of a store behind a URI they are fetched then.
        read_record: gives the text of ``record.json`` alone.
        names: of its files, as paths within it.
        open: opens one of them to read bytes, without fetching the others.
    """

    stage: str
    key: str
    locate: Callable[[], Path]
    read_record: Callable[[], str]
    names: tuple[str, ...]
    open: Callable[[str], BinaryIO]

    @property
    def path(self) -> Path:
        """A local folder with the files; not to be written to."""
        return self.locate()

    def record(self) -> dict[str, Any]:
        """What the stage wrote about itself."""
        return json.loads(self.read_record())


@dataclass(frozen=True)
class Draft:
    """An artifact being written.

    Attributes:
        path: local folder to write files into.
        url: where the files will lie; a job whose workers write themselves writes here.
    """

    path: Path
    url: str

    def write_record(self, record: dict[str, Any]) -> None:
        """Write ``record.json``, which every artifact has."""
        (self.path / "record.json").write_text(json.dumps(record, indent=1))


def default_root() -> str:
    """``$KDFM_STORE``, or the user's cache folder."""
    return os.environ.get("KDFM_STORE") or str(Path("~/.cache/kdfm_ray").expanduser())


class Store:
    """Artifacts under one root; cheap to make, so that each worker makes its own from the root."""

    def __init__(self, root: str) -> None:
        """Open ``root``: a folder (made when missing) or a URI such as ``s3://bucket/prefix``."""
        self.remote = "://" in root
        if holds_secret(root):
            raise UserError(f"the store: {SECRET_IN_URI}")
        self.root = root.rstrip("/") if self.remote else str(Path(root).expanduser().resolve())
        if not self.remote:
            _make_folder(Path(self.root))
            return
        try:
            self._fs, self._prefix = open_files(self.root)
        except (ImportError, ValueError) as error:
            raise UserError(
                f"store {root!r} cannot be opened: {error}. Give a folder, or a URI of a file "
                "system that fsspec knows (s3:// needs the package s3fs, gs:// gcsfs)"
            ) from error

    def check(self) -> None:
        """Write, read, list and remove a small file of a store behind a URI, to fail early.

        Raises:
            UserError: one of these does not work from here.
        """
        if not self.remote:
            return
        folder = f"{self._prefix}/.check-{uuid.uuid4().hex}"
        path, text = f"{folder}/file", b"kdfm"
        try:
            self._fs.makedirs(folder, exist_ok=True)
            self._fs.pipe_file(path, text)
            seen = self._fs.cat_file(path) == text and len(self._fs.ls(folder, detail=False)) == 1
            self._fs.rm(folder, recursive=True)
        except StoreError as error:
            raise UserError(str(error)) from error
        except OSError as error:
            raise UserError(
                f"the store {self.root} cannot be used ({error.strerror or type(error).__name__}): "
                "check that it can be read, written, listed and deleted from"
            ) from error
        if not seen:
            raise UserError(
                f"the store {self.root} does not show what was just written: give another"
            )

    @contextlib.contextmanager
    def mark(self, name: str) -> Iterator[None]:
        """Have a small file in the root during the block, for other nodes to look at."""
        path = f"{self._prefix}/{name}" if self.remote else f"{self.root}/{name}"
        try:
            if self.remote:
                self._fs.makedirs(self._prefix, exist_ok=True)
                self._fs.pipe_file(path, name.encode())
            else:
                Path(path).write_text(name)
            yield
        finally:
            with contextlib.suppress(OSError):
                self._fs.rm_file(path) if self.remote else Path(path).unlink()

    def sees(self, name: str) -> bool:
        """Whether the file of ``mark`` is seen from here, as it was written.

        Raises:
            OSError: it is not known.
        """
        try:
            if self.remote:
                return bool(self._fs.cat_file(f"{self._prefix}/{name}") == name.encode())
            return Path(self.root, name).read_text() == name
        except FileNotFoundError:
            return False

    def find(self, stage: str, key: str) -> Artifact | None:
        """The complete artifact of a stage, or ``None``."""
        manifest = self._read_manifest(stage, key)
        if manifest is None:
            return None
        if manifest["format"] > FORMAT:
            raise UserError(
                f"{self.root}/{stage}/{key} was written by a newer kdfm_ray (format "
                f"{manifest['format']}, this one reads {FORMAT}): upgrade, or use another store"
            )
        names = tuple(manifest["files"])
        if self.remote:
            folder = f"{self._prefix}/{stage}/{key}/{manifest['attempt']}"
            return Artifact(
                stage,
                key,
                locate=lambda: self._mirror(stage, key, manifest),
                read_record=lambda: self._fs.cat_file(f"{folder}/record.json").decode(),
                names=names,
                open=lambda name: self._fs.open(f"{folder}/{name}", "rb"),
            )
        path = Path(self.root, stage, key, manifest["attempt"])
        _check_files(path, manifest, of=str(path))
        return Artifact(
            stage,
            key,
            locate=lambda: path,
            read_record=(path / "record.json").read_text,
            names=names,
            open=lambda name: (path / name).open("rb"),
        )

    def get(self, stage: str, key: str) -> Artifact:
        """The complete artifact of a stage that has been done.

        Raises:
            UserError: it is not seen from here.
        """
        found = self.find(stage, key)
        if found is None:
            raise UserError(
                f"{self.root}/{stage}/{key} is not seen by the node {socket.gethostname()}: the "
                "store is not shared by all nodes, or its files were removed meanwhile; give a "
                "shared folder or a URI with --store"
            )
        return found

    @contextlib.contextmanager
    def writing(self, stage: str, key: str) -> Iterator[Draft]:
        """Write an artifact; it is complete when the block ends without an exception.

        Yields:
            A draft; the block puts its files there and calls ``write_record``.
        """
        attempt = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        url = f"{self.root}/{stage}/{key}/{attempt}"
        path = Path(tempfile.mkdtemp(prefix="kdfm-")) if self.remote else Path(url)
        path.mkdir(parents=True, exist_ok=True)
        try:
            yield Draft(path, url)
            assert (path / "record.json").is_file(), "an artifact needs a record"
            self._commit(stage, key, attempt, path)
        except BaseException:
            self._discard(stage, key, attempt)
            raise
        finally:
            if self.remote:
                shutil.rmtree(path, ignore_errors=True)

    def _commit(self, stage: str, key: str, attempt: str, path: Path) -> None:
        files = {
            file.relative_to(path).as_posix(): {
                "size": file.stat().st_size,
                "sha256": file_hash(file),
            }
            for file in sorted(path.rglob("*"))
            if file.is_file()
        }
        if self.remote:
            folder = f"{self._prefix}/{stage}/{key}/{attempt}"
            for name in files:
                self._fs.makedirs(f"{folder}/{name}".rpartition("/")[0], exist_ok=True)
                self._fs.put_file(str(path / name), f"{folder}/{name}")
            written = {name[len(folder) + 1 :] for name in self._fs.find(folder)}
            for name in written - set(files):  # put there by the job's own workers
                files[name] = {"size": self._fs.size(f"{folder}/{name}"), "sha256": None}
        manifest = {"format": FORMAT, "stage": stage, "key": key, "attempt": attempt}
        manifest["created"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        text = json.dumps(manifest | {"files": files}, indent=1)
        if self.remote:
            self._commit_remote(f"{self._prefix}/{stage}/{key}/{MANIFEST}", text)
        else:
            self._commit_local(Path(self.root, stage, key), attempt, text)

    def _commit_remote(self, path: str, text: str) -> None:
        # A race is harmless where a file system cannot exclude it: both attempts are whole.
        create(self._fs, path, text.encode())  # and where there is one, the first one stays

    def _commit_local(self, folder: Path, attempt: str, text: str) -> None:
        for path in [*(folder / attempt).rglob("*"), folder / attempt]:
            to_disk(path)
        temporary = folder / f".{attempt}.json"
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, folder / MANIFEST)  # fails where one exists: the first one stays
            to_disk(folder)
        except FileExistsError:
            shutil.rmtree(folder / attempt)
        finally:
            temporary.unlink()

    def _discard(self, stage: str, key: str, attempt: str) -> None:
        if self.remote:
            with contextlib.suppress(OSError):
                self._fs.rm(f"{self._prefix}/{stage}/{key}/{attempt}", recursive=True)
            return
        folder = Path(self.root, stage, key)
        shutil.rmtree(folder / attempt, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # only where nothing else is in it

    def _read_manifest(self, stage: str, key: str) -> dict[str, Any] | None:
        try:
            if self.remote:
                text = self._fs.cat_file(f"{self._prefix}/{stage}/{key}/{MANIFEST}").decode()
            else:
                text = Path(self.root, stage, key, MANIFEST).read_text()
        except FileNotFoundError:
            return None
        return json.loads(text)

    def _mirror(self, stage: str, key: str, manifest: dict[str, Any]) -> Path:
        """Copy the files to this node's cache: once, whoever else asks for them meanwhile."""
        cache = Path("~/.cache/kdfm_ray/mirror").expanduser()
        here = hashlib.sha256(self.root.encode()).hexdigest()[:16]
        target = cache / here / stage / key / manifest["attempt"]
        if not _is_whole(target, manifest):
            with _alone(target):
                if not _is_whole(target, manifest):  # else another was faster
                    shutil.rmtree(target, ignore_errors=True)  # somebody has tidied up in there
                    self._fetch(target, f"{stage}/{key}/{manifest['attempt']}", manifest)
        return target

    def _fetch(self, target: Path, attempt: str, manifest: dict[str, Any]) -> None:
        """Copy an attempt's files to the folder ``target``, which appears when all are there."""
        temporary = Path(tempfile.mkdtemp(dir=target.parent))
        try:
            for name in manifest["files"]:
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):  # is reported below
                    self._fs.get_file(f"{self._prefix}/{attempt}/{name}", str(temporary / name))
            _check_files(temporary, manifest, of=f"{self.root}/{attempt}", hashes=True)
            with contextlib.suppress(OSError):  # a file system without locks: another was first
                temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _is_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    return folder.is_dir() and _damage(folder, manifest) is None


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, which need not be there, against all threads and processes.

    A process that ends in whatever way gives it back.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        with contextlib.suppress(OSError):  # a file system without locks: work done twice is all
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"store folder {path} cannot be made ({error.strerror}): give a folder you can write "
            "to with --store or KDFM_STORE"
        ) from error
    if not os.access(path, os.W_OK):
        raise UserError(f"store folder {path} is not writable: give another with --store")


def _check_files(path: Path, manifest: dict[str, Any], *, of: str, hashes: bool = False) -> None:
    """Raise where files in ``path`` are not those of the attempt at ``of`` in the store."""
    found = _damage(path, manifest, hashes=hashes)
    if found is not None:
        name, sizes = found
        raise UserError(
            f"artifact file {of}/{name} is damaged or missing ({sizes}): delete the folder "
            f"{of.rpartition('/')[0]} to have the stage done again"
        )


def _damage(
    path: Path, manifest: dict[str, Any], *, hashes: bool = False
) -> tuple[str, str] | None:
    """The first file that is not what was written, and its sizes in words."""
    for name, facts in manifest["files"].items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != facts["size"] or (
            hashes and facts["sha256"] is not None and file_hash(file) != facts["sha256"]
        ):
            return name, f"{size} bytes, {facts['size']} expected"
    return None


def to_disk(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk now."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_facts(file: Path) -> dict[str, Any]:
    """Its size in bytes and the SHA-256 of its content, as a manifest keeps them."""
    return {"size": file.stat().st_size, "sha256": file_hash(file)}


def file_hash(file: Path) -> str:
    """SHA-256 of its content, as hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
