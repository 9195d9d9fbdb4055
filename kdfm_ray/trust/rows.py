"""Embeddings of any number of images, read piece by piece.

Legend: n images, m of them, p that are asked for, d embedding size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int64

PART = 65_536  # rows of a piece of an array


@runtime_checkable
class Rows(Protocol):
    """Embeddings by position, which need not fit in memory together."""

    def __len__(self) -> int:
        """How many there are."""

    def take(self, index: Int64[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """Those at some positions, which ascend; all of these fit in memory."""

    def parts(self) -> Iterator[tuple[Int64[np.ndarray, " m"], Float[np.ndarray, "m d"]]]:
        """All of them in pieces, in any order: positions, and the embeddings there."""


def gather(
    pieces: Iterable[tuple[Int64[np.ndarray, " m"], Float[np.ndarray, "m d"]]],
    index: Int64[np.ndarray, " p"],
    n: int,
) -> Float32[np.ndarray, "p d"]:
    """The rows at some positions of ``n``, out of pieces that come in any order."""
    found: Float32[np.ndarray, "p d"] | None = None
    place = np.full(n, -1)
    place[index] = np.arange(len(index))
    for positions, rows in pieces:
        if found is None:
            found = np.empty((len(index), rows.shape[1]), np.float32)
        where = place[positions]
        found[where[where >= 0]] = rows[where >= 0]
    assert found is not None, "no pieces"
    return found


@dataclass(frozen=True)
class ArrayRows:
    """Rows of an array ``[n, d]`` in memory."""

    array: Float[np.ndarray, "n d"]

    def __len__(self) -> int:
        """See ``Rows``."""
        return len(self.array)

    def take(self, index: Int64[np.ndarray, " m"]) -> Float[np.ndarray, "m d"]:
        """See ``Rows``."""
        return self.array[index]

    def parts(self) -> Iterator[tuple[Int64[np.ndarray, " m"], Float[np.ndarray, "m d"]]]:
        """See ``Rows``."""
        for low in range(0, len(self.array), PART):
            high = min(low + PART, len(self.array))
            yield np.arange(low, high), self.array[low:high]
