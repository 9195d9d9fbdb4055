import numpy as np
import pytest

from kdfm_ray.trust.figures import Images, cluster_warnings


def images(predicted, truth, unlabeled=None, num_classes=3):
    n = len(predicted)
    return Images(
        predicted=np.array(predicted),
        confidence=np.full(n, 0.9, np.float32),
        unlabeled=np.ones(n, bool) if unlabeled is None else np.array(unlabeled, bool),
        truth=np.array(truth),
        num_classes=num_classes,
    )


def test_sizes_coverage_and_precision_by_hand():
    some = images([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 0])
    figures = some.figures(np.array([True, True, True, True, True, False]))
    assert figures == {
        "size": 5,
        "coverage": 5 / 6,
        "precision": 3 / 5,
        "per_class": {"size": [3, 2, 0], "precision": [2 / 3, 1 / 2, None]},
    }


def test_labeled_images_count_nowhere():
    some = images([0, 0, 1, 1], [0, 1, 1, 0], unlabeled=[True, False, True, False])
    figures = some.figures(np.ones(4, bool))
    assert (figures["size"], figures["coverage"], figures["precision"]) == (2, 1, 1)
    assert some.missing_classes(np.ones(4, bool)) == some.missing_classes(
        np.array([True, False, True, False])
    )


def test_precision_is_over_known_truths_and_none_without_any():
    some = images([0, 0, 1], [0, -1, -1])
    figures = some.figures(np.ones(3, bool))
    assert figures["size"] == 3
    assert figures["precision"] == 1
    assert figures["per_class"]["precision"] == [1, None, None]
    assert images([0, 1], [-1, -1]).figures(np.ones(2, bool))["precision"] is None
    assert some.figures(np.zeros(3, bool))["precision"] is None


def test_a_class_without_a_trusted_image_is_named():
    some = images([0, 1, 1, 2], [0, 1, 1, 2])
    assert some.missing_classes(np.ones(4, bool)) == []
    (sentence,) = some.missing_classes(np.array([False, True, True, False]))
    assert "class 0, 2" in sentence
    assert "lower tau_select" in sentence


@pytest.mark.parametrize(
    ("sizes", "labels", "words"),
    [
        pytest.param([50, 50, 50], [50, 50, 50], [], id="healthy"),
        pytest.param([140, 5, 5], [50, 50, 50], ["collapsed"], id="one takes nearly all"),
        pytest.param([150, 0, 0], [50, 50, 50], ["collapsed", "cluster 1, 2"], id="one takes all"),
        pytest.param([75, 75, 0], [50, 50, 50], ["cluster 2 of 3"], id="one is empty"),
        pytest.param([140, 5, 5], [140, 5, 5], [], id="unequal classes are no collapse"),
        pytest.param([], [50, 50], [], id="noise alone is another alarm"),
    ],
)
def test_cluster_warnings(sizes, labels, words):
    found = cluster_warnings(np.array(sizes, np.int64), np.array(labels, np.int64))
    assert len(found) == len(words)
    for sentence, word in zip(found, words, strict=True):
        assert word in sentence
        assert "try" in sentence
