"""Labels of the neighbor graph, in proportion: better than the network's, whatever the sample."""

from dataclasses import dataclass

import numpy as np
import pytest

from kdfm_ray.trust.relabel import relabel_all
from kdfm_ray.trust.spread import ROUNDS, _graph, spread_beliefs
from kdfm_ray.types import UNKNOWN

K = 4


@dataclass
class Labeled:
    """Embeddings and probabilities in pieces of 100, in any order of positions."""

    x: np.ndarray
    probs: np.ndarray

    def __len__(self):
        return len(self.x)

    def take(self, index):
        return self.x[index]

    def _pieces(self, values):
        for low in (100, 0, *range(200, len(self.x), 100)):
            index = np.arange(low, min(low + 100, len(self.x)))
            yield index, values[index]

    def parts(self):
        return self._pieces(self.x)

    def probabilities(self):
        return self._pieces(self.probs)


@pytest.fixture(scope="module")
def world():
    """Four clouds, and a network that is wrong about a quarter of the images, mostly towards 3."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(K), 150)
    x = (np.eye(K, 8)[truth] * 4 + rng.normal(0, 0.7, (len(truth), 8))).astype(np.float32)
    said = np.where(rng.random(len(truth)) < 0.25, 3, truth)
    probs = np.full((len(truth), K), 0.1 / (K - 1), np.float32)
    probs[np.arange(len(truth)), said] = 0.9
    order = rng.permutation(len(truth))
    known = np.full(len(truth), UNKNOWN)
    known[np.unique(truth[order], return_index=True)[1]] = np.arange(K)
    return Labeled(x[order], probs[order]), truth[order], known


def label(rows, known, **changes):
    settings = {
        "source": "graph",
        "shares": np.full(K, 1 / K),
        "strength": 1.0,
        "known": known,
        "neighbors": 10,
        "alpha": 0.95,
        "sample_size": 10_000,
        "seed": 0,
    }
    return relabel_all(rows, **(settings | changes))


def test_neighbors_put_wrong_labels_right(world):
    rows, truth, known = world
    before = (rows.probs.argmax(axis=1) == truth).mean()
    found = label(rows, known)
    after = (found.predicted == truth).mean()
    assert before < 0.83
    assert after > 0.97
    sure = np.argsort(-found.confidence)[:300]
    assert (found.predicted[sure] == truth[sure]).all()


def test_labels_of_the_network_in_proportion(world):
    rows, _, known = world
    found = label(rows, known, source="network")
    assert np.bincount(rows.probs.argmax(axis=1))[3] > 200
    assert found.weights is not None
    assert found.weights.argmin() == 3
    assert found.fitted_on == len(rows)


def test_half_the_strength_stays_between_the_network_and_the_proportions(world):
    rows, _, known = world
    full = label(rows, known, source="network")
    half = label(rows, known, source="network", strength=0.5)
    np.testing.assert_allclose(half.weights, np.sqrt(full.weights))
    as_told = rows.probs[:, 3].mean()
    scaled = rows.probs * half.weights
    assert 1 / K + 0.01 < (scaled / scaled.sum(axis=1, keepdims=True))[:, 3].mean() < as_told - 0.01


def test_without_proportions_or_graph_labels_are_the_networks(world):
    rows, _, known = world
    found = label(rows, known, source="network", shares=None)
    assert found.weights is None
    np.testing.assert_array_equal(found.predicted, rows.probs.argmax(axis=1))
    np.testing.assert_allclose(found.confidence, 0.9, atol=1e-6)


@pytest.mark.parametrize("source", ["graph", "network"])
def test_images_beside_the_sample_are_labeled_like_those_in_it(world, source):
    rows, truth, known = world
    whole = label(rows, known, source=source)
    part = label(rows, known, source=source, sample_size=300)
    assert 300 <= part.fitted_on <= 300 + K
    assert (part.predicted == whole.predicted).mean() > 0.95
    assert np.isfinite(part.confidence).all()
    if source == "graph":
        assert (part.predicted == truth).mean() > 0.95


def test_true_labels_count_in_the_graph(world):
    """A network that knows nothing: what is right comes from the labeled images alone."""
    rows, truth, known = world
    blank = Labeled(rows.x, np.full((len(rows), K), 1 / K, np.float32))
    found = label(blank, known)
    assert (found.predicted == truth).mean() > 0.9
    assert (found.predicted[known != UNKNOWN] == known[known != UNKNOWN]).all()


def test_spreading_is_the_iteration_of_the_paper(world):
    rows, _, _ = world
    graph = _graph(rows.x, 10).toarray()
    wanted = rows.probs.astype(np.float64)
    for _ in range(ROUNDS):
        wanted = 0.8 * graph @ wanted + 0.2 * rows.probs
    wanted /= wanted.sum(axis=1, keepdims=True)
    found = spread_beliefs(rows.x, rows.probs, neighbors=10, alpha=0.8)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)
    still = spread_beliefs(rows.x, rows.probs, neighbors=10, alpha=0.0)
    np.testing.assert_allclose(still, rows.probs, rtol=1e-5)
