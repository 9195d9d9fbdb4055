"""Which images a person should label next: those the network is least sure of, no two alike.

Legend: n images, d embedding size.
"""

from __future__ import annotations

import numpy as np

from kdfm_ray.trust.kmeans import fit_kmeans

POOL = 10  # uncertain images for each that is wanted


class Pool:
    """The least certain images so far, with their embeddings; its size does not grow with n."""

    def __init__(self, wanted: int) -> None:
        """Keep what ``choose`` needs to find ``wanted`` images."""
        self._wanted = wanted
        self._index = np.empty(0, np.int64)
        self._margin = np.empty(0, np.float32)
        self._embeddings: np.ndarray | None = None

    @property
    def index(self) -> np.ndarray:
        """Numbers of the images kept, int64."""
        return self._index

    def add(self, index: np.ndarray, margin: np.ndarray, embeddings: np.ndarray) -> None:
        """Consider images: numbers int64 ``[n]``, margins ``[n]``, embeddings ``[n, d]``."""
        if self._embeddings is not None:
            embeddings = np.concatenate([self._embeddings, embeddings])
        index = np.concatenate([self._index, index])
        margin = np.concatenate([self._margin, margin])
        kept = np.sort(np.argsort(margin, kind="stable")[: POOL * self._wanted])
        self._index, self._margin = index[kept], margin[kept]
        self._embeddings = embeddings[kept]

    def choose(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the chosen images, least certain first, and the cluster of each.

        The pool is cut into as many clusters of embeddings as images are wanted, and of each the
        least certain image is taken (as in cluster-margin sampling, Citovsky et al. 2021, arXiv
        2107.14263, with one image a cluster).
        """
        if self._embeddings is None:
            return self._index, np.empty(0, np.int64)
        count = min(self._wanted, len(self._index))
        by_margin = np.argsort(self._margin, kind="stable")
        if count == len(self._index):
            return self._index[by_margin], np.arange(count)
        # Directions count, as for the classifier the length of an embedding is confidence.
        length = np.linalg.norm(self._embeddings, axis=1, keepdims=True)
        points = self._embeddings / np.maximum(length, 1e-12)
        _, cluster = fit_kmeans(points, count, seed=seed, restarts=1)
        order = by_margin[np.unique(cluster[by_margin], return_index=True)[1]]
        if len(order) < count:  # copies of one image leave clusters empty
            left = by_margin[~np.isin(by_margin, order)]
            order = np.concatenate([order, left[: count - len(order)]])
        order = order[np.argsort(self._margin[order], kind="stable")]
        return self._index[order], cluster[order]
