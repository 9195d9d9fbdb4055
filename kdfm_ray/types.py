"""The few types that stages hand to each other.

Legend: N images, H x W pixels, C channels (1 or 3), K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

UNKNOWN = -1  # a label that is not known

# Of a network in a run; ``longer`` is FixMatch with as many updates as outer and inner together.
Role = Literal["baseline", "outer", "longer", "inner"]

Event = dict[str, Any]
Emit = Callable[[Event], None]  # how a stage tells the live view where it is


class UserError(Exception):
    """A mistake that the person at the keyboard can mend; its text is all that they need to see.

    Attributes:
        facts: what is known of the images all the same, as in a data set's record; for the report.
    """

    facts: dict[str, Any] | None = None


class RunFailed(Exception):
    """The run cannot go on, and no setting is to blame; its text begins with the cause."""


class Stopped(KeyboardInterrupt):
    """The run ended because it was asked to; its text says where it can be gone on from."""


@dataclass(frozen=True)
class ImageSet:
    """Images in memory (or memory-mapped) with their labels.

    Attributes:
        images: uint8 ``[N, H, W, C]``, possibly a read-only memory map.
        labels: int64 ``[N]`` class numbers; ``-1`` where the class is not known.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        assert self.images.ndim == 4, self.images.shape
        assert self.images.dtype == np.uint8, self.images.dtype
        assert self.labels.shape == self.images.shape[:1], self.labels.shape

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """A data set before it is split: all that may be trained on, and a test set if there is one.

    Attributes:
        name: the catalog's name, or ``folders``.
        classes: class names; position = class number.
        train: labeled and unlabeled images together.
        test: read once, at the end; ``None`` where there is none.
        flip: whether a horizontal flip keeps the class (not for digits).
    """

    name: str
    classes: tuple[str, ...]
    train: ImageSet
    test: ImageSet | None
    flip: bool
