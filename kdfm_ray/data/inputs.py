"""Images to be labeled, wherever they lie: a folder, a file, a pattern, a table, a URI, or a list.

Listing reads no pixels. Legend: S pixels a side, C channels (1 or 3).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from kdfm_ray.data import sources
from kdfm_ray.data.folder import list_images
from kdfm_ray.data.images import MISSING, Unreadable, decode, suffixes
from kdfm_ray.types import UserError

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

    Paths in a table are relative to the folder that the table lies in.

    Raises:
        UserError: there is nothing there, or nothing that could be an image.
    """
    if isinstance(what, str | Path):
        names = _names(sources.normal(what))
    else:
        names = [sources.normal(name) for name in what]
        if not names:
            raise UserError(f"no images in an empty list: {_GIVE}")
    names = sorted(set(names))
    places = (name if sources.is_uri(name) else os.path.abspath(name) for name in names)
    return Images(tuple(names), tuple(places))


def _names(place: str) -> list[str]:
    single = sources.ending(place) in suffixes()
    if sources.is_uri(place):
        return [place] if single and not sources.is_glob(place) else _listed(place)
    if os.path.isfile(place) and not sources.is_table(place):
        if not single:
            raise UserError(f"{place} is neither an image nor a table by its ending: {_GIVE}")
        return [place]
    if not os.path.exists(place) and not sources.is_glob(place):
        raise UserError(f"{place} does not exist: {_GIVE}")
    return _listed(place)


def _listed(place: str) -> list[str]:
    try:
        return [file.place for file in list_images(place)]
    except FileNotFoundError as error:
        raise UserError(f"{place} does not exist: {_GIVE}") from error
    except (OSError, ImportError, ValueError) as error:  # of a file system behind a URI
        raise UserError(f"{place} cannot be read: {_why(error)}") from error


def read_image(place: str, size: int, channels: int) -> UInt8[np.ndarray, "s s c"]:
    """The image at a path or URI as in training (see ``decode``); grey is the mean of the colors.

    Raises:
        Unreadable: it cannot be read; its text is the reason.
    """
    try:
        content = sources.content(place)
    except (OSError, ValueError, ImportError) as error:
        raise Unreadable(_why(error)) from error
    pixels = decode(content, size)
    if channels == 1:
        return pixels.mean(axis=2, keepdims=True).round().astype(np.uint8)
    return pixels


def _why(error: Exception) -> str:
    """What is wrong with a file behind a URI, in a line that follows its name."""
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split()) or type(error).__name__
