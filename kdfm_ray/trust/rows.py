"""Embeddings of any number of images, read piece by piece.

Legend: n images, m of them, d embedding size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int64

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
