"""Figures of predictions, against counting by hand."""

import json

import numpy as np
import pytest

from kdfm_ray.training.scores import (
    BINS,
    MOST_CLASSES,
    compare,
    reliability,
    score,
    score_calibrated,
)

PROBS = np.array(
    [[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.55, 0.45, 0.0], [0.0, 0.3, 0.7]], dtype=np.float32
)
TRUTH = np.array([0, 1, 1, 2])


def test_scores_are_those_of_counting():
    found = json.loads(json.dumps(score(PROBS, TRUTH)))
    assert found["count"] == 4
    assert found["accuracy"] == 0.75
    assert found["confusion"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert found["images"] == [1, 2, 1]
    assert found["recall"] == [1.0, 0.5, 1.0]
    assert found["precision"] == [0.5, 1.0, 1.0]
    assert found["confused"] == [[1, 0, 1]]
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.7, 0.45, 0.7]).mean(), rel=1e-5)


def test_a_class_without_images_has_no_recall():
    found = score(PROBS[:1], TRUTH[:1])
    assert found["recall"] == [1.0, None, None]
    assert found["precision"] == [1.0, None, None]
    assert found["confused"] == []


def test_many_classes_leave_no_matrix_but_their_mistakes():
    classes = MOST_CLASSES + 1
    probs = np.eye(classes, dtype=np.float32)
    truth = np.arange(classes)
    truth[3] = 7
    found = score(probs, truth)
    assert found["confusion"] is None
    assert found["confused"] == [[7, 3, 1]]
    assert np.isfinite(found["loss"])


def test_reliability_of_an_honest_and_of_a_boasting_network():
    confidence = np.array([0.75] * 4 + [1.0] * 4, dtype=np.float32)
    right = np.array([True, True, True, False] + [True] * 4)
    honest = reliability(confidence, right)
    assert honest["ece"] == pytest.approx(0)
    assert honest["count"] == [0] * 7 + [4, 0, 4]
    assert honest["accuracy"][7] == 0.75
    assert honest["accuracy"][0] is None
    assert len(honest["confidence"]) == BINS
    assert reliability(confidence, ~right)["ece"] == pytest.approx(0.75)


def test_a_pair_of_networks():
    ours = np.array([True] * 60 + [False] * 40)
    theirs = np.array([True] * 40 + [False] * 40 + [True] * 20)
    found = compare(ours, theirs)
    assert (found["better"], found["worse"], found["difference"]) == (20, 20, 0)
    assert found["low"] < 0 < found["high"]
    assert found["low"] == pytest.approx(-found["high"])
    clear = compare(np.ones(1000, bool), np.arange(1000) >= 60)
    assert 0 < clear["low"] < 0.06 < clear["high"]
    assert clear["high"] - clear["low"] < found["high"] - found["low"]
    few = compare(np.ones(3, bool), np.ones(3, bool))
    assert few["low"] < 0 < few["high"], "three images tell nothing"


def test_calibrated_confidence_is_of_the_validation_images_alone():
    """Sure of 0.99, right in 0.7: a temperature from one half mends the other half."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 2_000)
    named = np.where(rng.random(2_000) < 0.7, truth, (truth + 1) % 4)
    probs = np.full((2_000, 4), 0.01 / 3, np.float32)
    probs[np.arange(2_000), named] = 0.99
    val, test = slice(0, 1_000), slice(1_000, None)
    found = score_calibrated(probs[val], truth[val], probs[test], truth[test])
    before = score(probs[test], truth[test])["reliability"]
    assert found["images"] == 1_000
    assert found["temperature"] > 2
    assert before["ece"] > 0.25
    assert found["reliability"]["ece"] < 0.04
    shares = zip(found["reliability"]["count"], found["reliability"]["accuracy"], strict=True)
    right = sum(count * share for count, share in shares if count)
    assert right == pytest.approx((named == truth)[test].sum()), "the same classes"
    other = score_calibrated(probs[val], truth[val], probs[test], (truth[test] + 1) % 4)
    assert other["temperature"] == found["temperature"], "the truth of the test chooses nothing"
