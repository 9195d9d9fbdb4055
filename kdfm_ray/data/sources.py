"""Where images lie: folders, globs, tables of paths and URIs; each gives a list of files.

Listing reads no pixels. A *place* is a local path, ``file://PATH``, or a URI of any file system
that fsspec knows.
"""

from __future__ import annotations

import glob
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from kdfm_ray.data.images import has_image_head, suffixes
from kdfm_ray.remote import StoreError, open_files
from kdfm_ray.types import UserError

TABLES = (".csv", ".parquet")
IMAGES = "the images at"  # in messages of object stores
HIDDEN = "hidden"  # instead of an ending
_REQUESTS = 32  # to an object store at a time
# What different file systems say of a file that changes with its content.
_TAGS = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "updated", "created")


@dataclass(frozen=True)
class ImageFile:
    """An image file as it was listed.

    Attributes:
        place: whole local path, or a URI.
        name: its path within what was given, with forward slashes, or as a table spells it.
        facts: size and time of change, or what an object store says of the content.
        identity: equal for two names of one file.
    """

    place: str
    name: str
    facts: str = ""
    identity: object = None

    @property
    def path(self) -> Path:
        """Where it lies, for a local file."""
        assert not is_uri(self.place), self.place
        return Path(self.place)


@dataclass
class Tree:
    """Images found in a place, sorted by name, and relative names of what else lies there."""

    files: list[ImageFile] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    hidden: int = 0


def is_uri(place: str) -> bool:
    """Whether a place is not on a local file system."""
    return "://" in place and not place.startswith("file://")


def normal(place: str | Path) -> str:
    """The place as the rest of this module takes it: a URI as it is, else a local path."""
    text = str(place)
    return text if is_uri(text) else os.path.expanduser(text.removeprefix("file://"))


def is_table(place: str) -> bool:
    """Whether a place is a CSV or Parquet file, by its name."""
    return ending(place) in TABLES


def is_glob(place: str) -> bool:
    """Whether a place is a pattern, and not the name of something that has such characters."""
    return glob.has_magic(place) and (is_uri(place) or not os.path.lexists(place))


def join(place: str, name: str) -> str:
    """``name`` within ``place``; a whole path or a URI stays what it is."""
    if "://" in name:
        return normal(name)
    return f"{place.rstrip('/')}/{name}" if is_uri(place) else os.path.join(place, name)


def ending(name: str) -> str:
    """Of a file's name, lower case, with the dot."""
    return os.path.splitext(name)[1].lower()


def shown(name: str) -> str:
    """A file's name as text that any file and terminal takes, whatever bytes it is made of."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def check_place(place: str, *, table: bool = True, pattern: bool = False) -> str | None:
    """What is wrong with a place that a person gave, as half a sentence; nothing is read.

    Args:
        place: as given.
        table: whether it may be a table.
        pattern: whether it may be a glob.
    """
    place = normal(place)
    if is_uri(place):
        return None  # found out by where it is read
    if pattern and is_glob(place):
        return None
    if table and is_table(place) and os.path.isfile(place):
        return None
    if not os.path.isdir(place):
        also = " or CSV / Parquet file" if table else ""
        return f"no such folder{also}; give an existing folder{also}"
    return None


def content(place: str) -> Path | bytes:
    """What ``images.decode`` takes: a local path, or the bytes behind a URI.

    Raises:
        FileNotFoundError, PermissionError: that file is not there, or may not be read.
        StoreError: the file system does not answer.
    """
    if not is_uri(place):
        return Path(place)
    files, path = open_files(place, IMAGES)
    found: bytes = files.cat_file(path)
    return found


def subfolders(place: str) -> list[str]:
    """Sorted names of the folders directly in a place; hidden ones are passed over."""
    if not is_uri(place):
        return sorted(entry.name for entry in entries(place) if is_folder(entry))
    files, path = open_files(place, IMAGES)
    found = _asked(place, lambda: files.ls(path, detail=True))
    names = (_base(item["name"]) for item in found if item["type"] == "directory")
    return sorted(name for name in names if not is_hidden(name))


def loose(place: str) -> list[str]:
    """Sorted names of images that lie directly in a place."""
    if not is_uri(place):
        found = [entry.name for entry in entries(place) if not is_folder(entry)]
    else:
        files, path = open_files(place, IMAGES)
        listed = _asked(place, lambda: files.ls(path, detail=True))
        found = [_base(item["name"]) for item in listed if item["type"] != "directory"]
    return sorted(name for name in found if ending(name) in suffixes() and not is_hidden(name))


def list_tree(place: str) -> Tree:
    """Images at any depth of a folder; links are followed, each folder is entered once.

    A file is an image by its ending; without an ending, by its first bytes. A broken link with an
    image's name is listed: decoding says what is wrong with it.

    Raises:
        UserError: a folder cannot be read.
    """
    return _list_remote(place) if is_uri(place) else _list_local(place)


def list_glob(pattern: str) -> Tree:
    """Files that a pattern matches (``**`` for any depth), and images in the folders it matches."""
    if is_uri(pattern):
        files, path = open_files(pattern, IMAGES)
        found = _asked(pattern, lambda: files.glob(path, detail=True))
        items = [item for item in found.values() if item["type"] == "file"]
        return _remote_tree(files, items, lambda name: name)
    base = _fixed_part(pattern)
    matched = sorted({os.path.normpath(name) for name in glob.glob(pattern, recursive=True)})
    folders = {name for name in matched if os.path.isdir(name)}
    tree, found = Tree(), {}
    for name in matched:
        inner = Tree()
        if name not in folders:
            _add(inner, name, "")
        elif os.path.dirname(name) not in folders:  # else it was seen from there
            inner = _list_local(name)
        tree.hidden += inner.hidden
        for file in inner.files:
            found[file.place] = ImageFile(
                file.place, os.path.relpath(file.place, base), file.facts, file.identity
            )
        tree.others += [os.path.join(name, other) if other else name for other in inner.others]
    tree.files = sorted(found.values(), key=lambda file: file.name)
    tree.others = sorted(set(tree.others))
    return tree


def _fixed_part(pattern: str) -> str:
    """The folder that a pattern is in, however deep it reaches."""
    while glob.has_magic(pattern):
        pattern = os.path.dirname(pattern)
    return pattern or os.curdir


def read_table(place: str, columns: Sequence[str], what: str) -> list[list[str]]:
    """Text columns of a CSV (with a head line) or Parquet file.

    Raises:
        UserError: it cannot be read, lacks a column, is empty, or has an empty value.
    """
    try:
        table = _open_table(place)
    except StoreError as error:
        raise UserError(f"the {what} table {place} cannot be read: {error}") from error
    except (OSError, pa.ArrowInvalid) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"{error}"
        raise UserError(f"the {what} table {place} cannot be read: {reason}") from error
    if missing := [name for name in columns if name not in table.column_names]:
        raise UserError(
            f"the {what} table {place} has no column {' and no column '.join(missing)}; needed: "
            f"{', '.join(columns)}; found: {', '.join(table.column_names[:10]) or 'none'}. Name "
            "the columns in its first line."
        )
    if not len(table):
        raise UserError(f"the {what} table {place} has no rows: list images there.")
    found = []
    for name in columns:
        values = [None if value is None else str(value) for value in table[name].to_pylist()]
        if empty := [number for number, value in enumerate(values, 1) if not value]:
            raise UserError(
                f"the {what} table {place} has no {name} in {len(empty)} of {len(values)} rows, "
                f"the first is row {empty[0]}: fill it in, or leave the row out."
            )
        found.append([value for value in values if value is not None])
    return found


def list_paths(table: str, paths: Sequence[str]) -> list[ImageFile]:
    """Files that a table names, in its order; relative paths begin where the table lies."""
    folder = table.rpartition("/")[0] if is_uri(table) else os.path.dirname(os.path.abspath(table))

    def find(name: str) -> ImageFile:
        place = join(folder, name)
        return _remote_file(place, name) if is_uri(place) else _local_file(place, name)

    with ThreadPoolExecutor(max_workers=_REQUESTS) as pool:  # object stores are asked one by one
        return list(pool.map(find, paths, chunksize=64))


def entries(folder: str | Path) -> list[os.DirEntry[str]]:
    """What lies in a local folder, sorted by name, without hidden names."""
    return [entry for entry in _scan(folder) if not is_hidden(entry.name)]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def is_hidden(name: str) -> bool:
    """Hidden names, and what archivers leave behind."""
    return name.startswith(".") or name == "__MACOSX"


def _scan(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"the folder {folder} cannot be read: {error.strerror}.") from error


def _list_local(place: str) -> Tree:
    tree, seen = Tree(), set()
    waiting = [(place, "")]
    while waiting:
        folder, prefix = waiting.pop()
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:  # by a link, perhaps back to where we come from
            continue
        seen.add((here.st_dev, here.st_ino))
        inner = []
        for entry in _scan(folder):
            if is_hidden(entry.name):
                tree.hidden += 1
            elif is_folder(entry):
                inner.append((entry.path, f"{prefix}{entry.name}/"))
            else:
                _add(tree, entry.path, prefix + entry.name)
        waiting += reversed(inner)
    tree.files.sort(key=lambda file: file.name)
    tree.others.sort()
    return tree


def _add(tree: Tree, place: str, name: str) -> None:
    """Put a local file where it belongs."""
    end = ending(place)
    is_image = end in suffixes() and (os.path.isfile(place) or os.path.islink(place))
    if is_image or (not end and _has_head(place)):
        tree.files.append(_local_file(place, name))
    else:
        tree.others.append(name)


def _has_head(place: str) -> bool:
    if not os.path.isfile(place):
        return False
    try:
        with open(place, "rb") as file:
            return has_image_head(file.read(16))
    except OSError:
        return False


def _local_file(place: str, name: str) -> ImageFile:
    try:
        found = os.stat(place)
    except OSError:  # a broken link
        return ImageFile(place, name, "missing", place)
    facts = f"{found.st_size} {found.st_mtime_ns}"
    if not os.access(place, os.R_OK):  # and so that it is read again when it may be
        facts += " locked"
    return ImageFile(place, name, facts, (found.st_dev, found.st_ino))


def _list_remote(place: str) -> Tree:
    files, path = open_files(place, IMAGES)
    found = _asked(place, lambda: files.find(path, detail=True))
    items = [item for item in found.values() if item["type"] == "file"]
    root = path.rstrip("/") + "/"
    return _remote_tree(files, items, lambda name: name.removeprefix(root))


def _remote_tree(files: Any, items: Iterable[Any], relative: Callable[[str], str]) -> Tree:
    tree = Tree()
    for item in sorted(items, key=lambda item: item["name"]):
        full = item["name"]
        name = relative(full)
        if any(is_hidden(piece) for piece in name.split("/")):
            tree.hidden += 1
        elif ending(name) in suffixes() or (
            not ending(name) and has_image_head(files.cat_file(full, start=0, end=16))
        ):
            place = files.unstrip_protocol(full)
            tree.files.append(ImageFile(place, name, _facts(item), place))
        else:
            tree.others.append(name)
    return tree


def _remote_file(place: str, name: str) -> ImageFile:
    files, path = open_files(place, IMAGES)
    try:
        return ImageFile(place, name, _facts(files.info(path)), place)
    except StoreError as error:
        raise UserError(f"{place} cannot be looked up: {error}") from error
    except OSError:
        return ImageFile(place, name, "missing", place)


def _facts(item: Any) -> str:
    tag = next((item[name] for name in _TAGS if item.get(name) is not None), "")
    return f"{item.get('size')} {tag}"


def _asked(place: str, question: Callable[[], Any]) -> Any:
    """The answer of an object store, or its failure in plain words."""
    try:
        return question()
    except FileNotFoundError:
        raise UserError(f"there is nothing at {place}: check the URI.") from None
    except OSError as error:
        raise UserError(f"{place} cannot be listed: {error}") from error


def _base(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2]


def _open_table(place: str) -> pa.Table:
    source: Any = place
    if is_uri(place):
        found = content(place)
        assert isinstance(found, bytes)
        source = io.BytesIO(found)
    if ending(place) == ".parquet":
        return pq.read_table(source)
    # Text as it stands: a class called 01 is not the number 1.
    text = dict.fromkeys(("path", "label"), pa.string())
    options = pyarrow.csv.ConvertOptions(column_types=text, strings_can_be_null=False)
    return pyarrow.csv.read_csv(source, convert_options=options)
