import numpy as np
import pytest

from kdfm_ray.trust.agreement import (
    adjusted_rand_index,
    class_of,
    contingency,
    match_clusters,
    matched_agreement,
    normalized_mutual_information,
)


def table(rows):
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        pytest.param([[9, 1], [2, 8]], [0, 1], id="as many clusters as classes"),
        pytest.param([[1, 9], [8, 2]], [1, 0], id="crossed"),
        # by majority both would be class 0; one-to-one, 6 + 4 beats 10 + 0
        pytest.param([[10, 0], [6, 0]], [0, 1], id="one to one even where a majority differs"),
        pytest.param([[10, 9], [10, 0]], [1, 0], id="the total decides, not the greatest cell"),
        pytest.param([[0, 5, 1], [0, 4, 3]], [1, 2], id="fewer clusters than classes"),
        pytest.param([[3, 1], [0, 4], [5, 2]], [0, 1, 0], id="more clusters: by majority"),
        pytest.param([[3, 3], [0, 4], [2, 2]], [0, 1, 0], id="a tied majority: lowest class"),
        pytest.param([[3, 1], [0, 0], [0, 2]], [0, -1, 1], id="an empty cluster by majority"),
        pytest.param([[3, 1], [0, 0]], [0, -1], id="an empty cluster, one to one"),
    ],
)
def test_match_clusters(rows, expected):
    assert match_clusters(table(rows)).tolist() == expected


def test_tied_hungarian_is_one_to_one_and_repeatable():
    tied = table([[5, 5], [5, 5]])
    match = match_clusters(tied)
    assert sorted(match) == [0, 1]
    np.testing.assert_array_equal(match, match_clusters(tied))


def test_no_clusters_at_all():
    assert match_clusters(np.zeros((0, 3))).tolist() == []
    assert matched_agreement(np.zeros((0, 3)), np.empty(0, np.int64)) == 0


def test_contingency_counts_weights_and_leaves_noise_out():
    cluster = np.array([0, 0, 1, -1, 1])
    label = np.array([1, 1, 0, 0, 1])
    weight = np.array([1.0, 5.0, 1.0, 9.0, 1.0])
    assert contingency(cluster, label, weight, (3, 2)).tolist() == [[0, 6], [1, 1], [0, 0]]


def test_the_weight_of_labeled_images_flips_a_match():
    cluster, label = np.array([0, 0, 0, 1, 1, 1, 0, 1]), np.array([0, 0, 1, 1, 1, 0, 1, 0])
    for weight, expected in ((1.0, [0, 1]), (5.0, [1, 0])):
        weights = np.array([1.0] * 6 + [weight] * 2)
        assert match_clusters(contingency(cluster, label, weights, (2, 2))).tolist() == expected


def test_matched_agreement():
    assert matched_agreement(table([[9, 1], [2, 8]]), np.array([0, 1])) == pytest.approx(17 / 20)
    assert matched_agreement(table([[9, 1], [2, 8]]), np.array([0, -1])) == pytest.approx(9 / 20)


def test_class_of_noise_and_unmatched_is_minus_one():
    cluster = np.array([0, 1, 2, -1, 0])
    assert class_of(cluster, np.array([4, -1, 3])).tolist() == [4, -1, 3, -1, 4]
    assert class_of(np.array([-1]), np.empty(0, np.int64)).tolist() == [-1]


def test_nmi_and_ari():
    label = np.array([0, 0, 1, 1])
    renamed, crossed = np.array([5, 5, 2, 2]), np.array([0, 1, 0, 1])
    assert normalized_mutual_information(renamed, label) == pytest.approx(1)
    assert adjusted_rand_index(renamed, label) == pytest.approx(1)
    assert normalized_mutual_information(crossed, label) == pytest.approx(0, abs=1e-12)
    assert adjusted_rand_index(crossed, label) == pytest.approx(-0.5)
    nothing = np.empty(0, np.int64)
    assert normalized_mutual_information(nothing, nothing) is None
    assert adjusted_rand_index(nothing, nothing) is None
