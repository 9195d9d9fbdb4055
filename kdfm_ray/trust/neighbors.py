"""Nearest neighbors by FAISS: exactly, or, where that would take too long, nearly.

Legend: n points, m others that look for them, d size, c neighbors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from kdfm_ray.trust import kmeans

EXACT = 4e12  # operations of a search among all points: under a minute on two cores
LISTS_PER_ROOT, PROBES = 4, 16  # FAISS's own advice: 4 sqrt(n) lists; of which so many are searched
TRAINING_POINTS = 40  # of each list


@dataclass(frozen=True)
class Neighbors:
    """Points among which nearest ones are looked for; ``make_neighbors`` makes it."""

    index: Any

    def search(
        self, x: Float[np.ndarray, "m d"], count: int
    ) -> tuple[Int64[np.ndarray, "m c"], Float32[np.ndarray, "m c"]]:
        """Positions of the ``count`` nearest points, nearest first, and the squared distances.

        Where the lists that were searched hold fewer, the nearest stands again in their place.
        """
        found, distance = kmeans.search(self.index, x, count)
        missing = found < 0
        found = np.where(missing, found[:, :1], found)
        return found, np.where(missing, distance[:, :1], distance)


def make_neighbors(points: Float[np.ndarray, "n d"], queries: int) -> Neighbors:
    """An index of points for about so many searches: exact unless these need over ``EXACT``
    operations; then the points are in lists by their nearest of ``4 sqrt(n)`` centroids, and the
    sixteen nearest lists are searched."""
    import faiss

    points = np.ascontiguousarray(points, dtype=np.float32)
    n, d = points.shape
    index: Any
    if 2.0 * queries * n * d <= EXACT:
        index = faiss.IndexFlatL2(d)
    else:
        lists = max(1, int(LISTS_PER_ROOT * n**0.5))
        index = faiss.index_factory(d, f"IVF{lists},Flat")
        index.cp.max_points_per_centroid = TRAINING_POINTS
        index.nprobe = min(PROBES, lists)
        index.train(points)
    index.add(points)
    return Neighbors(index)
