"""Named data sets: one table, and one function that loads any of them.

Legend: N images, S pixels a side, C channels (1 or 3).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from kdfm_ray.data import readers
from kdfm_ray.types import Dataset, Emit, UserError


@dataclass(frozen=True)
class Entry:
    """What the catalog knows of a data set.

    Attributes:
        num_classes: K.
        flip: whether a horizontal flip keeps the class.
        image_size: pixels a side that ``load`` gives unless told otherwise.
        channels: C.
        description: one line for people.
        download: its size, for people.
        layout: what lies below the root folder, for the message when it is missing.
        read: (root, S, emit) -> parts; downloads to root what is missing there.
        tip: one more way to come by the files.
    """

    num_classes: int
    flip: bool
    image_size: int
    channels: int
    description: str
    download: str
    layout: str
    read: Callable[[Path, int, Emit | None], readers.Parts]
    tip: str = ""


def check_name(name: str) -> None:
    """Refuse a name that the catalog does not know.

    Raises:
        UserError: with all names, and the one that was probably meant.
    """
    if name not in CATALOG:
        close = difflib.get_close_matches(name.lower().replace("-", "_"), CATALOG, n=1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UserError(
            f"there is no data set named {name!r}.{hint} Known: {', '.join(CATALOG)}. For images "
            "of your own give a labeled folder instead of a name."
        )


def load(name: str, root: Path, image_size: int | None = None, emit: Emit | None = None) -> Dataset:
    """Load a named data set from ``root`` where it lies there, else download it to ``root``.

    Args:
        name: a key of ``CATALOG``.
        root: folder that holds data sets in torchvision's layouts. For Fashion-MNIST and MNIST also
            the folder with the four ``*-ubyte`` or ``*-ubyte.gz`` files. ``digits`` needs none.
        image_size: S; ``None``: the set's own. Other sizes are resized, bilinear and antialiased.
        emit: told of the progress of decoding and resizing.

    Returns:
        Images uint8 ``[N, S, S, C]``; labels int64, -1 for STL-10's unlabeled images.

    Raises:
        UserError: no such name, or the files are not there and cannot be had, or are damaged.
    """
    check_name(name)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be at least 1 pixel, got {image_size}")
    entry = CATALOG[name]
    root = Path(root).expanduser()
    try:
        classes, train, test = entry.read(root, image_size or entry.image_size, emit)
    except readers.Unavailable as error:
        raise UserError(
            f"{name} cannot be loaded: {error}. Expected in {root}: {entry.layout}. Either set the "
            f"root folder (data.root) to where they lie; or load {name} once on a machine with "
            f"internet access ({entry.download}) and copy its root folder here.{entry.tip}"
        ) from error
    return Dataset(name=name, classes=classes, train=train, test=test, flip=entry.flip)


_IDX_LAYOUT = (
    "{}/raw/ with the files train-images-idx3-ubyte, train-labels-idx1-ubyte, "
    "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, or these files directly, each as it is or "
    "with .gz"
)

CATALOG: dict[str, Entry] = {
    "digits": Entry(
        num_classes=10,
        flip=False,
        image_size=32,
        channels=1,
        description="1,797 digits of 8x8 pixels, enlarged to 32x32; a fixed fifth is the test set",
        download="none, comes with scikit-learn",
        layout="nothing",
        read=readers.digits,
    ),
    "fashion_mnist": Entry(
        num_classes=10,
        flip=True,
        image_size=28,
        channels=1,
        description="clothes, 60,000 + 10,000 test, 28x28 grey",
        download="30 MB",
        layout=_IDX_LAYOUT.format("FashionMNIST"),
        read=partial(readers.idx, kind="FashionMNIST"),
        tip=" On Debian and Ubuntu the package dataset-fashion-mnist brings the files; the root "
        "folder is then /usr/share/datasets/fashion-mnist.",
    ),
    "mnist": Entry(
        num_classes=10,
        flip=False,
        image_size=28,
        channels=1,
        description="handwritten digits, 60,000 + 10,000 test, 28x28 grey",
        download="12 MB",
        layout=_IDX_LAYOUT.format("MNIST"),
        read=partial(readers.idx, kind="MNIST"),
    ),
    "cifar10": Entry(
        num_classes=10,
        flip=True,
        image_size=32,
        channels=3,
        description="things and animals, 50,000 + 10,000 test, 32x32",
        download="170 MB",
        layout="the folder cifar-10-batches-py, or cifar-10-python.tar.gz",
        read=partial(readers.cifar, kind="CIFAR10"),
    ),
    "cifar100": Entry(
        num_classes=100,
        flip=True,
        image_size=32,
        channels=3,
        description="as cifar10 with 100 fine classes, 50,000 + 10,000 test, 32x32",
        download="169 MB",
        layout="the folder cifar-100-python, or cifar-100-python.tar.gz",
        read=partial(readers.cifar, kind="CIFAR100"),
    ),
    "svhn": Entry(
        num_classes=10,
        flip=False,
        image_size=32,
        channels=3,
        description="house numbers, 73,257 + 26,032 test, 32x32; without the set's extra images",
        download="250 MB",
        layout="train_32x32.mat and test_32x32.mat",
        read=readers.svhn,
    ),
    "food101": Entry(
        num_classes=101,
        flip=True,
        image_size=64,  # ours: the paper does not say, the photos are up to 512 pixels wide
        channels=3,
        description="dishes, 75,750 + 25,250 test, photos; cut square and made 64x64",
        download="5 GB",
        layout="the folder food-101 with images/ and meta/, or food-101.tar.gz",
        read=readers.food101,
    ),
    "stl10": Entry(
        num_classes=10,
        flip=True,
        image_size=96,
        channels=3,
        description="things and animals, 5,000 + 100,000 unlabeled + 8,000 test, 96x96",
        download="2.6 GB",
        layout="the folder stl10_binary, or stl10_binary.tar.gz",
        read=readers.stl10,
    ),
}
