"""Balanced pseudo labels: proportions are met, order within a class is kept, nothing else moves."""

import numpy as np
import pytest

from kdfm_ray.trust.balance import class_weights, relabel, weighted


def leaning(n=3000, k=5, seed=0):
    """Probabilities of a network that says the last classes too often."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, k)) + 0.8 * np.arange(k)
    probs = np.exp(logits)
    return (probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("target", [np.full(5, 0.2), np.array([0.4, 0.3, 0.15, 0.1, 0.05])])
def test_classes_come_in_the_wanted_proportions(target):
    probs = leaning()
    assert np.abs(probs.mean(axis=0) - target).max() > 0.1
    found = weighted(probs, class_weights(probs, target))
    np.testing.assert_allclose(found.mean(axis=0), target, rtol=2e-3)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_proportions_that_are_met_change_nothing():
    probs = leaning()
    target = probs.mean(axis=0, dtype=np.float64)
    predicted, confidence = relabel(probs, class_weights(probs, target / target.sum()))
    assert (predicted == probs.argmax(axis=1)).mean() > 0.999
    np.testing.assert_allclose(confidence, probs.max(axis=1), atol=2e-3)


def test_two_classes_by_hand():
    """Odds are multiplied by one factor: of 0.9, 0.8 and 0.7 the mean becomes one half."""
    probs = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]], np.float32)
    weight = class_weights(probs, np.array([0.5, 0.5]))
    odds = probs[:, 0] / probs[:, 1] * weight[0] / weight[1]
    share = odds / (1 + odds)
    assert share.mean() == pytest.approx(0.5, abs=1e-3)
    assert share[1] == pytest.approx(0.5, abs=0.03)  # the middle one becomes undecided
    predicted, confidence = relabel(probs, weight)
    assert predicted[[0, 2]].tolist() == [0, 1]
    assert confidence.dtype == np.float32
    assert confidence[0] == pytest.approx(share[0], abs=1e-4)


def test_a_class_that_was_never_predicted_and_one_of_no_share():
    probs = np.zeros((100, 3), np.float32)
    probs[:, 0] = 1
    weight = class_weights(probs, np.array([0.5, 0.5, 0.0]))
    assert np.isfinite(weight).all()
    found = weighted(probs, weight).mean(axis=0)
    assert found[1] == pytest.approx(0.5, abs=0.01)
    assert found[2] < 0.01
