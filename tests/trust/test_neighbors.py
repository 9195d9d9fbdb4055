"""Nearest neighbors: exact where that is quick, nearly exact beyond."""

import numpy as np
import pytest

from kdfm_ray.trust import neighbors
from kdfm_ray.trust.neighbors import make_neighbors
from kdfm_ray.trust.spread import directions, spread_beliefs


@pytest.fixture
def points():
    """Embeddings as networks have them: ten clouds on a sphere."""
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 1, (10, 24))
    x = centers[rng.integers(0, 10, 4000)] + rng.normal(0, 0.6, (4000, 24))
    return directions(x)


def by_hand(x, count):
    squared = ((x[:200, None, :] - x[None]) ** 2).sum(axis=2)
    return np.argsort(squared, axis=1, kind="stable")[:, :count]


def test_few_points_are_searched_exactly(points):
    found, squared = make_neighbors(points, 200).search(points[:200], 10)
    np.testing.assert_array_equal(found[:, 0], np.arange(200))
    assert (np.sort(found) == np.sort(by_hand(points, 10))).mean() > 0.999, "but for ties"
    assert (np.diff(squared, axis=1) >= 0).all()


def test_many_points_are_searched_in_lists_and_nearly_all_neighbors_found(points, monkeypatch):
    monkeypatch.setattr(neighbors, "EXACT", 0.0)
    found, _ = make_neighbors(points, 200).search(points[:200], 10)
    wanted = by_hand(points, 10)
    hits = [len(np.intersect1d(a, b)) / 10 for a, b in zip(found, wanted, strict=True)]
    assert 0.9 < np.mean(hits) < 1, "near, and not the exact search"
    np.testing.assert_array_equal(found[:, 0], np.arange(200))


def test_lists_with_too_few_points_repeat_the_nearest(points, monkeypatch):
    monkeypatch.setattr(neighbors, "EXACT", 0.0)
    monkeypatch.setattr(neighbors, "PROBES", 1)
    found, squared = make_neighbors(points, 200).search(points[:200], 100)
    assert (found >= 0).all()
    assert np.isfinite(squared).all()
    assert (found[:, -1] == found[:, 0]).mean() > 0.5, "a list holds about 16"


def test_labels_spread_alike_over_either_graph(points, monkeypatch):
    beliefs = np.random.default_rng(1).dirichlet(np.full(10, 0.3), 4000).astype(np.float32)
    exact = spread_beliefs(points, beliefs, neighbors=15, alpha=0.95)
    monkeypatch.setattr(neighbors, "EXACT", 0.0)
    near = spread_beliefs(points, beliefs, neighbors=15, alpha=0.95)
    assert (near.argmax(axis=1) == exact.argmax(axis=1)).mean() > 0.97
