"""Labels spread over a neighbor graph, alone and as a clusterer."""

import numpy as np
import pytest

from kdfm_ray.trust.algorithms import Task
from kdfm_ray.trust.clusterers import fit_and_assign, make_clusterer
from kdfm_ray.trust.rows import ArrayRows
from kdfm_ray.trust.select import select_trusted
from kdfm_ray.trust.spread import spread_labels

SETTINGS = {"neighbors": 5, "alpha": 0.9}


def moons(n=300, seed=0):
    """Two half circles that interlock, which no centroid tells apart; seen from above."""
    random = np.random.default_rng(seed)
    label = np.repeat([0, 1], n // 2)
    angle = random.uniform(0, np.pi, n)
    turned = np.where(label == 0, 1, -1)
    x = np.stack([turned * np.cos(angle) + label, turned * np.sin(angle) + label / 2], axis=1)
    flat = np.concatenate([0.2 * (x + random.normal(0, 0.02, x.shape)), np.ones((n, 1))], axis=1)
    return flat.astype(np.float32), label


def one_of_each(label):
    known = np.full(len(label), -1)
    for number in set(label.tolist()):
        known[np.flatnonzero(label == number)[len(label) // 4]] = number
    return known


def test_it_equals_the_closed_form():
    x, label = moons(60)
    known = one_of_each(label)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -np.inf)
    weight = np.zeros((60, 60))
    for i in range(60):
        nearest = np.argsort(-cosine[i])[:5]
        weight[i, nearest] = cosine[i, nearest] ** 3
    weight += weight.T
    root = 1 / np.sqrt(weight.sum(1))
    source = np.stack([known == 0, known == 1], axis=1).astype(float)
    expected = np.linalg.solve(np.eye(60) - 0.9 * root[:, None] * weight * root, source)
    arrived = spread_labels(x, known, 2, **SETTINGS)
    np.testing.assert_allclose(arrived, expected, atol=2e-3 * expected.max())


def test_one_label_of_each_class_finds_moons_that_k_means_does_not():
    x, label = moons()
    arrived = spread_labels(x, one_of_each(label), 2, neighbors=8, alpha=0.99)
    assert (arrived.argmax(1) == label).mean() > 0.99


def test_a_class_with_more_labels_is_not_the_stronger_for_it(blobs):
    x, label = blobs([60, 60], distance=2.0, d=6)
    few, many = one_of_each(label), one_of_each(label)
    many[np.flatnonzero(label == 0)[:40]] = 0
    shares = [
        (spread_labels(x, known, 2, **SETTINGS).argmax(1) == 0)[label == 1].mean()
        for known in (few, many)
    ]
    assert shares[1] < shares[0] + 0.2


def test_nothing_arrives_where_no_edge_leads_and_no_label_is_refused():
    x = np.eye(4, dtype=np.float32)[[0, 0, 0, 1, 1, 1]]  # no cosine between the two groups
    arrived = spread_labels(x, np.array([0, -1, -1, -1, -1, -1]), 2, neighbors=2, alpha=0.9)
    assert (arrived[:3, 0] > 0).all()
    assert not arrived[3:].any()
    with pytest.raises(ValueError, match="no image is labeled"):
        spread_labels(x, np.full(6, -1), 2, neighbors=2, alpha=0.9)


def test_the_sample_has_all_labeled_points_and_the_rest_follow_their_neighbors(blobs):
    x, label = blobs([150, 150], distance=6)
    known = one_of_each(label)
    tool = make_clusterer("spread", Task(2, 0, gpu=False, device="cpu", emit=None))
    found = fit_and_assign(
        ArrayRows(x), np.arange(len(x)), tool, sample_size=150, seed=0, known=known
    )
    assert (found.assignments == label).mean() > 0.97
    assert 150 <= found.details["fitted_on"] <= 152


@pytest.fixture(scope="module")
def pair(blobs):
    return blobs([150, 150], distance=6)


def select(pair, predicted, **more):
    x, label = pair
    settings = {
        "num_classes": 2,
        "tau": 0.5,
        "clusterer": "spread",
        "num_clusters": None,
        "labeled_index": np.flatnonzero(one_of_each(label) >= 0),
        "labeled_class": np.array([0, 1]),
        "labeled_weight": 5.0,
        "truth": label,
        "sample_size": 10**6,
        "seed": 0,
    }
    confidence = np.full(len(x), 0.9, np.float32)
    return select_trusted(ArrayRows(x), predicted, confidence, **(settings | more))


def test_wrong_predictions_are_not_trusted_even_where_most_are_wrong(pair):
    """The class of a cluster is the one of its labels: no vote of the predictions turns it."""
    _, label = pair
    predicted = label.copy()
    predicted[::3] = 1 - predicted[::3]
    chosen = select(pair, predicted)
    assert chosen.record["filters"]["agreement"]["precision"] > 0.99
    swapped = 1 - label
    swapped[:5] = label[:5]
    chosen = select(pair, swapped)
    assert set(chosen.trusted_index.tolist()) <= set(range(5))


def test_another_number_of_clusters_is_refused(pair):
    _, label = pair
    with pytest.raises(ValueError, match="one cluster of each of the 2 classes"):
        select(pair, label, num_clusters=3)
