"""Images to be labeled, wherever they lie: a folder, a file, a pattern, a table, or a URI.

Listing reads no pixels. Legend: S pixels a side, C channels (1 or 3).
"""

from __future__ import annotations

import contextlib
import csv
import glob
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import UInt8

from kdfm_ray.data.folder import list_images
from kdfm_ray.data.images import decode, suffixes
from kdfm_ray.remote import open_files
from kdfm_ray.types import UserError

TABLES = (".csv", ".parquet")
_GIVE = (
    "give a folder, an image, a pattern such as 'new/*.jpg', a .csv or .parquet file with a column "
    "path, or a URI of one of these"
)


@dataclass(frozen=True)
class Images:
    """Image files, sorted by name, each once.

    Attributes:
        names: as a person wrote them: relative to where they stand, or absolute, or a URI.
        places: the same as absolute paths or URIs, for any process.
    """

    names: tuple[str, ...]
    places: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)


def find_images(what: str | Path | Sequence[str | Path]) -> Images:
    """List the images behind what a person wrote, or take a list of files as it is.

    Of a folder (any depth) the files with an image's ending count, of a pattern all that it
    matches. Paths in a table are relative to the folder that the table lies in.

    Raises:
        UserError: there is nothing there, or nothing that could be an image.
    """
    if isinstance(what, str | Path):
        text = str(what)
        names = _of_uri(text) if "://" in text else _of_path(Path(text).expanduser(), text)
    else:
        names = [
            str(Path(name).expanduser()) if "://" not in str(name) else str(name) for name in what
        ]
        if not names:
            raise UserError(f"no images in an empty list: {_GIVE}")
    names = sorted(set(names))
    places = (name if "://" in name else os.path.abspath(name) for name in names)
    return Images(tuple(names), tuple(places))


def read_image(place: str, size: int, channels: int) -> UInt8[np.ndarray, "s s c"]:
    """The image at a path or URI as in training (see ``decode``); grey is the mean of the colors.

    Raises:
        Exception: it cannot be read; Pillow and file systems have a dozen kinds.
    """
    if "://" in place:
        files, path = open_files(place)
        with tempfile.NamedTemporaryFile(suffix=PurePosixPath(path).suffix) as copy:
            copy.write(files.cat_file(path))
            copy.flush()
            pixels = decode(Path(copy.name), size)
    else:
        if os.path.getsize(place) == 0:
            raise ValueError("the file is empty")
        pixels = decode(Path(place), size)
    if channels == 1:
        return pixels.mean(axis=2, keepdims=True).round().astype(np.uint8)
    return pixels


def why(error: Exception) -> str:
    """What is wrong with a file, in a line that follows its name."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if type(error).__name__ == "UnidentifiedImageError":  # its text repeats the path
        return "not an image, or of a kind that Pillow does not know"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _of_path(path: Path, text: str) -> list[str]:
    if path.is_dir():
        return [str(file.path) for file in list_images(path)]
    if path.is_file():
        if path.suffix.lower() in TABLES:
            with _plain_errors(text):
                return _of_table(path.read_bytes(), path.suffix, text, str(path.parent))
        if path.suffix.lower() not in suffixes():
            raise UserError(f"{text} is neither an image nor a table by its ending: {_GIVE}")
        return [str(path)]
    if not glob.has_magic(text):
        raise UserError(f"{text} does not exist: {_GIVE}")
    found = [name for name in glob.glob(str(path), recursive=True) if not os.path.isdir(name)]
    if not found:
        raise UserError(f"no file matches {text}: {_GIVE}")
    return found


def _of_uri(url: str) -> list[str]:
    with _plain_errors(url):
        files, path = open_files(url)
        ending = PurePosixPath(path).suffix.lower()
        if glob.has_magic(path):
            found = files.glob(path)
        elif ending in TABLES:
            folder = url.rpartition("/")[0]
            return _of_table(files.cat_file(path), ending, url, folder)
        elif ending in suffixes() and files.isfile(path):
            found = [path]
        else:
            found = [
                name
                for name in files.find(path)
                if PurePosixPath(name).suffix.lower() in suffixes()
                and not any(part.startswith(".") for part in PurePosixPath(name).parts[1:])
            ]
        if not found:
            raise UserError(f"no images at {url}: {_GIVE}")
        return [files.unstrip_protocol(name) for name in found]


def _of_table(data: bytes, ending: str, name: str, folder: str) -> list[str]:
    """The column ``path``, rows without one left out."""
    if ending.lower() == ".csv":
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig", "surrogateescape")))
        columns = list(rows.fieldnames or [])
        values = [row.get("path") for row in rows]
    else:
        try:
            table = pq.read_table(pa.BufferReader(data))
        except pa.ArrowInvalid as error:
            raise UserError(f"{name} is no Parquet file: {error}") from error
        columns = table.column_names
        values = table["path"].to_pylist() if "path" in columns else []
    if "path" not in columns:
        raise UserError(f"{name} has no column path; its columns: {', '.join(columns) or 'none'}")
    paths = [str(value).strip() for value in values if value is not None and str(value).strip()]
    if not paths:
        raise UserError(f"{name} names no images: its column path is empty")
    return [path if "://" in path else _join(folder, path) for path in paths]


def _join(folder: str, path: str) -> str:
    if "://" in folder:
        return path if path.startswith("/") else f"{folder}/{path}"
    return os.path.normpath(os.path.join(folder, os.path.expanduser(path)))


@contextlib.contextmanager
def _plain_errors(name: str) -> Iterator[None]:
    """Errors of file systems become a ``UserError`` each."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{name} does not exist: {_GIVE}") from error
    except (OSError, ImportError, ValueError, csv.Error) as error:
        raise UserError(f"{name} cannot be read: {error}") from error
