"""Blobs: points around centers, with the center's number as class."""

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture(scope="session")
def blobs() -> Callable[..., tuple[np.ndarray, np.ndarray]]:
    def make(sizes, *, spread=1.0, distance=12.0, d=8, seed=0):
        random = np.random.default_rng(seed)
        directions = np.linalg.qr(random.normal(size=(d, d)))[0]
        centers = distance / np.sqrt(2) * directions[: len(sizes)]  # every two `distance` apart
        label = np.repeat(np.arange(len(sizes)), sizes)
        points = centers[label] + spread * random.normal(size=(len(label), d))
        order = random.permutation(len(label))
        return points[order].astype(np.float32), label[order].astype(np.int64)

    return make
