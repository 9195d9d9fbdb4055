"""One reader per kind of named data set: files below a root folder in, arrays out.

What is missing is downloaded to the root folder by torchvision, in its own layout.
Legend: N images, S pixels a side, C channels (1 or 3).
"""

from __future__ import annotations

import contextlib
import gzip
import http.client
import re
import socket
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8

from kdfm_ray.data.images import decode_files, resize
from kdfm_ray.data.paths import leaves
from kdfm_ray.data.streams import permutation
from kdfm_ray.types import Emit, ImageSet

T = TypeVar("T")
Parts = tuple[tuple[str, ...], ImageSet, ImageSet]  # class names, train, test

TIMEOUT = 60  # seconds without a byte after which a download is given up
_DIGITS = tuple("0123456789")
_IDX_CLASSES = {
    "MNIST": _DIGITS,
    "FashionMNIST": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
}
_STL10_CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)
_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
# Both sets use these names; the first test labels tell whose files they are.
_FIRST_LABELS = {
    "MNIST": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9],
    "FashionMNIST": [9, 2, 1, 1, 6, 1, 4, 6, 5, 7],
}


class Unavailable(Exception):
    """A data set is not there and cannot be had, or is damaged: the reason, as half a sentence."""


def digits(root: Path, size: int, emit: Emit | None) -> Parts:
    """8x8 digits that come with scikit-learn; a fixed fifth of each class is the test set."""
    from sklearn.datasets import load_digits

    found = load_digits()
    pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
    images, labels = resize(pixels, size, emit), found.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for k in range(len(_DIGITS)):
        members = np.flatnonzero(labels == k)
        chosen = permutation(len(members), 0, k, "digits/test")[: round(len(members) / 5)]
        is_test[members[chosen]] = True
    train = ImageSet(images[~is_test], labels[~is_test])
    return _DIGITS, train, ImageSet(images[is_test], labels[is_test])


def idx(root: Path, size: int, emit: Emit | None, *, kind: str) -> Parts:
    """``MNIST`` or ``FashionMNIST``: torchvision's raw folder or four flat files, packed or not."""
    raw = root / kind / "raw"
    paths = _idx_paths(raw) or _idx_paths(root / "raw") or _idx_paths(root)
    if paths is None:
        fetch(root, lambda sets: getattr(sets, kind)(root, download=True), made=raw)
        paths = _idx_paths(raw)
        assert paths is not None, raw
    train_x, train_y, test_x, test_y = (_read_idx(path) for path in paths)
    for images, labels, path in ((train_x, train_y, paths[0]), (test_x, test_y, paths[2])):
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) > 9:
            raise Unavailable(f"{path} and its labels file do not belong together")
    for other, first in _FIRST_LABELS.items():
        if other != kind and test_y[:10].tolist() == first:
            raise Unavailable(f"the files in {paths[3].parent} are those of {other}, not of {kind}")
    return (
        _IDX_CLASSES[kind],
        _image_set(train_x[..., None], train_y, size, emit),
        _image_set(test_x[..., None], test_y, size, emit),
    )


def cifar(root: Path, size: int, emit: Emit | None, *, kind: str) -> Parts:
    """``CIFAR10`` or ``CIFAR100`` (fine classes)."""

    def read(train: bool) -> Any:
        return fetch(root, lambda sets: getattr(sets, kind)(root, train, download=True))

    train, test = read(True), read(False)
    return (
        tuple(train.classes),
        _image_set(train.data, train.targets, size, emit),
        _image_set(test.data, test.targets, size, emit),
    )


def svhn(root: Path, size: int, emit: Emit | None) -> Parts:
    """Cropped house numbers; of the training images the 73,257 of ``train``, without ``extra``."""

    def read(split: str) -> ImageSet:
        found = fetch(root, lambda sets: sets.SVHN(root, split=split, download=True))
        return _image_set(found.data.transpose(0, 2, 3, 1), found.labels, size, emit)

    return _DIGITS, read("train"), read("test")


def stl10(root: Path, size: int, emit: Emit | None) -> Parts:
    """STL-10; its unlabeled images follow the labeled ones, with label -1."""

    def read(split: str) -> ImageSet:
        found = fetch(root, lambda sets: sets.STL10(root, split=split, download=True))
        return _image_set(found.data.transpose(0, 2, 3, 1), found.labels, size, emit)

    labeled, unlabeled, test = read("train"), read("unlabeled"), read("test")
    train = ImageSet(
        np.concatenate([labeled.images, unlabeled.images]),
        np.concatenate([labeled.labels, unlabeled.labels]),
    )
    return _STL10_CLASSES, train, test


def food101(root: Path, size: int, emit: Emit | None) -> Parts:
    """Photos of many sizes: shorter side to S, then the center square, while decoding."""

    def read(split: str) -> tuple[tuple[str, ...], ImageSet]:
        found = fetch(
            root, lambda sets: sets.Food101(root, split=split, download=True, loader=Path)
        )
        paths, labels = zip(*(found[i] for i in range(len(found))), strict=True)
        if outside := [path for path in paths if leaves(root, path)]:
            raise Unavailable(
                f"its list of {split} images names {outside[0]}, which is outside {root}: remove "
                f"{root / 'food-101'} and run again"
            )
        if missing := [path for path in paths if not path.is_file()]:
            raise Unavailable(
                f"{len(missing)} of its {len(paths)} {split} images are missing, such as "
                f"{missing[0]}; unpacking was probably interrupted. Remove {root / 'food-101'} and "
                "run again"
            )
        images = decode_files(paths, size, emit)
        return tuple(found.classes), ImageSet(images, np.array(labels, dtype=np.int64))

    classes, train = read("train")
    test_classes, test = read("test")
    if test_classes != classes:
        raise Unavailable("its train.json and test.json do not have the same classes")
    return classes, train, test


def fetch(root: Path, make: Callable[[ModuleType], T], made: Path | None = None) -> T:
    """Let torchvision read a data set, or download it first; its failures told in plain words.

    Args:
        root: the root folder.
        make: given ``torchvision.datasets``, makes the data set with ``download=True``.
        made: deepest folder that torchvision makes before it asks the network (default: root);
            those that stay empty are removed again.

    Raises:
        Unavailable: whatever went wrong.
    """
    import torchvision.datasets as sets

    made = made or root
    new = [folder for folder in (made, *made.parents) if not folder.exists()]
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)  # torchvision sets none, and would wait forever
    try:
        return make(sets)
    except (
        *(OSError, RuntimeError, ValueError, EOFError, KeyError),
        *(http.client.HTTPException, tarfile.TarError, zlib.error),
    ) as error:
        for folder in new:
            with contextlib.suppress(OSError):
                folder.rmdir()
        reason = re.sub(r"\s+", " ", re.sub(r"https?://\S+", "its source", str(error))).strip(" .")
        raise Unavailable(
            f"it is not whole in {root}, and downloading failed ({reason or type(error).__name__})"
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)


def _image_set(
    images: UInt8[np.ndarray, "n h w c"], labels: Any, size: int, emit: Emit | None
) -> ImageSet:
    return ImageSet(resize(images, size, emit), np.asarray(labels, dtype=np.int64))


def _idx_paths(folder: Path) -> tuple[Path, ...] | None:
    """The four files in a folder, unpacked where there are both; ``None`` unless all are there."""
    found = []
    for name in _IDX_FILES:
        both = (folder / name, folder / f"{name}.gz")
        found += [path for path in both if path.is_file()][:1]
    return tuple(found) if len(found) == len(_IDX_FILES) else None


def _read_idx(path: Path) -> UInt8[np.ndarray, ...]:
    """Bytes in MNIST's IDX format: 0, 0, 8 (for uint8), rank, sizes (big-endian uint32), data."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise Unavailable(f"{path} is damaged ({error})") from error
    rank = content[3] if content[:3] == b"\0\0\x08" and len(content) > 4 else 0
    start = 4 + 4 * rank
    sizes = [int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4)]
    if rank == 0 or len(content) != start + int(np.prod(sizes)):
        raise Unavailable(f"{path} is damaged ({len(content)} bytes, not as its head says)")
    # A bytearray, so that the array may be written to.
    return np.frombuffer(bytearray(content[start:]), dtype=np.uint8).reshape(sizes)
