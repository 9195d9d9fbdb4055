"""Selection by table: a fake clusterer says which image is in which cluster."""

import json

import numpy as np
import pytest

from kdfm_ray.trust import algorithms, dec
from kdfm_ray.trust.rows import ArrayRows
from kdfm_ray.trust.select import EmptyTrustedError, select_trusted

NOTHING = np.empty(0, np.int64)


@pytest.fixture
def say(monkeypatch):
    """Make ``kmeans`` answer with the given clusters of the kept images."""

    def install(clusters, start=None, num_clusters=None, details=None):
        def fit(x, task):
            def clustering(numbers, **more):
                assert len(numbers) == len(x)
                count = num_clusters or task.num_clusters
                return algorithms.Clustering(np.array(numbers), count, lambda x: x, **more)

            origin = clustering(start) if start is not None else None
            return clustering(clusters, start=origin, details=details or {})

        monkeypatch.setitem(algorithms.FITS, "kmeans", fit)

    return install


def select(predicted, confidence, *, k=3, labeled=(), truth=None, embeddings=None, **more):
    """``labeled``: pairs of position and true class."""
    n = len(predicted)
    if embeddings is None:
        embeddings = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    settings = {
        "tau": 0.8,
        "clusterer": "kmeans",
        "num_clusters": None,
        "labeled_index": np.array([i for i, _ in labeled], np.int64),
        "labeled_class": np.array([c for _, c in labeled], np.int64),
        "labeled_weight": 5.0,
        "truth": None if truth is None else np.array(truth),
        "sample_size": 10**6,
        "seed": 0,
    }
    predicted, confidence = np.array(predicted, np.int64), np.array(confidence, np.float32)
    rows = ArrayRows(embeddings)
    return select_trusted(rows, predicted, confidence, num_classes=k, **(settings | more))


def test_trusted_where_confident_and_the_clusters_class_is_the_predicted_one(say):
    #                 kept: 0  1  2  3  4  5  6        (7 is not confident)
    say([2, 2, 0, 0, 0, 1, 1])
    predicted = [0, 0, 1, 1, 0, 2, 2, 2]
    selection = select(
        predicted,
        [0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.7],
        truth=[0, 0, 1, 2, 2, 2, 2, 2],
    )
    assert selection.trusted_index.tolist() == [0, 1, 2, 3, 5, 6]
    assert selection.trusted_label.tolist() == [0, 0, 1, 1, 2, 2]
    assert selection.cluster.tolist() == [2, 2, 0, 0, 0, 1, 1, -1]
    assert selection.cluster_to_class.tolist() == [1, 2, 0]
    filters = selection.record["filters"]
    assert [filters[name]["size"] for name in ("all", "confidence", "agreement")] == [8, 7, 6]
    assert filters["all"]["precision"] == 6 / 8
    assert filters["confidence"]["precision"] == 5 / 7
    assert filters["agreement"]["precision"] == 5 / 6
    assert filters["agreement"]["coverage"] == 6 / 8
    assert filters["agreement"]["per_class"]["size"] == [2, 2, 2]
    assert selection.record["cluster_sizes"] == [3, 2, 2]
    assert selection.record["agreement"] == {"start": None, "end": 6 / 7}
    assert selection.record["warnings"] == []
    assert 0 < selection.record["nmi"] < 1
    json.dumps(selection.record, allow_nan=False)


def test_a_tie_at_tau_is_kept_in_float32(say):
    say([0, 1, 2])
    below = np.nextafter(np.float32(0.8), np.float32(0))
    selection = select([0, 1, 2, 0], [0.8, 0.8, 0.9, below], tau=0.8)
    assert selection.trusted_index.tolist() == [0, 1, 2]


def test_noise_is_never_trusted(say):
    say([0, -1, 1, 2, -1])
    selection = select([0, 0, 1, 2, 2], [0.9] * 5)
    assert selection.trusted_index.tolist() == [0, 2, 3]
    assert selection.record["noise"] == 2


def test_labeled_images_are_anchors_but_never_trusted_nor_counted(say):
    # image 3 is labeled and not confident, image 4 labeled and confident: both are clustered
    say([0, 1, 2, 0, 1])
    selection = select(
        [0, 1, 2, 1, 1], [0.9, 0.9, 0.9, 0.1, 0.9], labeled=[(3, 0), (4, 1)], truth=[0, 1, 0, 0, 1]
    )
    assert selection.cluster.tolist() == [0, 1, 2, 0, 1]
    assert selection.trusted_index.tolist() == [0, 1, 2]
    filters = selection.record["filters"]
    assert [filters[name]["size"] for name in filters] == [3, 3, 3]
    assert filters["agreement"]["coverage"] == 1
    assert filters["all"]["precision"] == pytest.approx(2 / 3)


def test_the_labeled_weight_flips_a_match(say):
    # by pseudo labels cluster 0 is class 0 (2 : 1); its labeled image says class 1
    for weight, match, trusted in ((0.5, [0, 1], [0, 1, 4]), (3.0, [1, 0], [2, 5])):
        say([0, 0, 0, 0, 1, 1, 1])
        selection = select(
            [0, 0, 1, 0, 1, 0, 0], [0.9] * 7, k=2, labeled=[(3, 1), (6, 0)], labeled_weight=weight
        )
        assert selection.cluster_to_class.tolist() == match
        assert selection.trusted_index.tolist() == trusted


def test_more_clusters_than_classes_are_matched_by_majority(say):
    say([0, 0, 0, 1, 2, 3], num_clusters=5)
    selection = select([0, 0, 1, 1, 0, 2], [0.9] * 6, num_clusters=5)
    assert selection.cluster_to_class.tolist() == [0, 1, 0, 2, -1]
    assert selection.trusted_index.tolist() == [0, 1, 3, 4, 5]
    assert any("no image is in cluster 4 of 5" in text for text in selection.record["warnings"])


def test_a_class_without_trusted_images_is_a_warning(say):
    say([0, 0, 1, 1, 0])
    selection = select([0, 0, 1, 1, 2], [0.9] * 5)
    assert selection.trusted_index.tolist() == [0, 1, 2, 3]
    assert any("no trusted image of class 2" in text for text in selection.record["warnings"])


def test_without_truth_there_is_no_precision(say):
    say([0, 1, 2])
    filters = select([0, 1, 2], [0.9] * 3).record["filters"]
    assert {figures["precision"] for figures in filters.values()} == {None}
    assert filters["agreement"]["size"] == 3


def test_none_is_confidence_alone():
    selection = select(
        [0, 1, 1, 2], [0.9, 0.85, 0.5, 0.95], clusterer="none", labeled=[(3, 2)], truth=[0, 0, 1, 2]
    )
    assert selection.trusted_index.tolist() == [0, 1]
    assert selection.cluster.tolist() == [-1] * 4
    assert selection.cluster_to_class.tolist() == []
    assert selection.record["filters"]["agreement"] == selection.record["filters"]["confidence"]
    assert selection.record["nmi"] is None
    json.dumps(selection.record, allow_nan=False)


# ---- nothing to trust


def test_nothing_confident_says_which_thresholds_to_try():
    confidence = np.linspace(0.34, 0.74, 101)
    with pytest.raises(EmptyTrustedError, match="no image passed") as error:
        select(np.arange(101) % 3, confidence)
    text = str(error.value)
    assert "maximum of 0.7400" in text
    for threshold, least in ((0.7, 10), (0.54, 50)):
        assert f"{threshold:g}" in text
        assert (confidence.astype(np.float32) >= np.float32(threshold)).sum() >= least


def test_a_proposed_threshold_keeps_what_it_promises():
    confidence = np.full(20, 0.79999)
    with pytest.raises(EmptyTrustedError, match=r"Try tau_select = 0\.7999 ") as error:
        select(np.arange(20) % 3, confidence, tau=0.9)
    assert isinstance(error.value, ValueError)
    kept = select(np.arange(20) % 3, confidence, tau=0.7999, clusterer="none")
    assert len(kept.trusted_index) == 20


def test_everything_overridden_by_labeled_images(say):
    # every cluster takes the class of its labeled image, which nobody else in it was given
    say([0, 0, 1, 1, 0, 1])
    with pytest.raises(EmptyTrustedError, match="class of the cluster is not the predicted"):
        select([0, 0, 1, 1, 0, 0], [0.9] * 6, k=2, labeled=[(4, 1), (5, 0)])


def test_noise_alone(say):
    say([-1] * 4)
    with pytest.raises(EmptyTrustedError, match="4 are noise to clusterer 'kmeans'"):
        select([0, 1, 2, 0], [0.9] * 4)


def test_fewer_images_than_clusters():
    with pytest.raises(EmptyTrustedError, match=r"only 2 images.* to make 3 clusters"):
        select([0, 1, 2, 0], [0.9, 0.9, 0.1, 0.1])


def test_all_labeled():
    with pytest.raises(EmptyTrustedError, match="every image is labeled"):
        select([0, 1, 2], [0.9] * 3, labeled=[(0, 0), (1, 1), (2, 2)])


@pytest.mark.parametrize(
    ("what", "size"), [("embeddings", 9), ("embeddings", 3), ("probabilities", 9)]
)
def test_values_that_are_not_finite(what, size):
    embeddings, confidence = np.zeros((6, 2), np.float32), np.full(6, 0.9, np.float32)
    if what == "embeddings":
        embeddings[:, 1] = np.nan if size == 9 else np.arange(6)
        embeddings[np.random.default_rng(0).permutation(6)[0], 1] = np.nan
    else:
        confidence[1] = np.nan
    with pytest.raises(ValueError, match=f"the {what} are not all finite"):
        select_trusted(
            ArrayRows(embeddings),
            np.array([0, 1, 2, 0, 1, 2]),
            confidence,
            num_classes=3,
            tau=0.8,
            clusterer="kmeans",
            num_clusters=None,
            labeled_index=NOTHING,
            labeled_class=NOTHING,
            labeled_weight=1.0,
            truth=None,
            sample_size=size,
            seed=0,
        )


# ---- deep clustering made worse, collapsed, diverged


def test_worse_than_the_start_falls_back_loudly(say):
    start, end = [0, 0, 1, 1, 2, 2], [0, 1, 1, 1, 2, 2]
    say(end, start=start)
    selection = select([0, 0, 1, 1, 2, 2], [0.9] * 6)
    assert selection.cluster.tolist() == start
    assert len(selection.trusted_index) == 6
    assert selection.record["fallback"] is True
    assert selection.record["agreement"] == {"start": 1, "end": pytest.approx(5 / 6)}
    assert any("worse than their k-means start" in text for text in selection.record["warnings"])


def test_better_or_equal_is_kept_and_a_fall_can_be_allowed(say):
    worse, better = [0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]
    for end, start, allowed in ((better, worse, 0.0), (better, better, 0.0), (worse, better, 0.2)):
        say(end, start=start)
        selection = select([0, 0, 1, 1, 2, 2], [0.9] * 6, allowed_fall=allowed)
        assert selection.record["fallback"] is False
        assert selection.cluster.tolist() == end


def test_collapse_raises_the_alarm_though_the_start_replaces_it(say):
    say([0] * 9, start=[0, 0, 0, 1, 1, 1, 2, 2, 2])
    selection = select([0, 0, 0, 1, 1, 1, 2, 2, 2], [0.9] * 9)
    assert selection.record["fallback"] is True
    assert any("collapsed" in text for text in selection.record["warnings"])
    assert len(selection.trusted_index) == 9


def test_divergence_counts_as_a_fallback(say):
    say([0, 1, 2], details={"stopped_by": "diverged", "notes": ["it diverged: try less"]})
    record = select([0, 1, 2], [0.9] * 3).record
    assert record["fallback"] is True
    assert "it diverged: try less" in record["warnings"]


def test_real_dec_collapses_and_the_start_is_used(blobs, monkeypatch):
    monkeypatch.setattr(dec, "MIN_PRETRAIN_STEPS", 100)
    x, label = blobs([100] * 6, distance=3)
    options = {"learning_rate": 10.0, "pretrain_epochs": 0, "update_interval": 20, "max_iter": 60}
    selection = select(
        label, [0.9] * 600, k=6, embeddings=x, clusterer="dec", options=options | {"tol": 0.0}
    )
    assert selection.record["fallback"] is True
    assert selection.record["agreement"]["end"] < selection.record["agreement"]["start"]
    assert any("collapsed" in text for text in selection.record["warnings"])


# ---- the real clusterers


@pytest.mark.parametrize("clusterer", ["dec", "gmm", "dbscan"])
def test_wrong_labels_are_thrown_out(blobs, monkeypatch, clusterer):
    monkeypatch.setattr(dec, "MIN_PRETRAIN_STEPS", 100)
    x, truth = blobs([100, 100, 100], d=4)
    random = np.random.default_rng(0)
    predicted = truth.copy()
    wrong = random.choice(300, 50, replace=False)
    predicted[wrong] = (predicted[wrong] + 1) % 3
    labeled = [(int(np.flatnonzero(truth == c)[0]), c) for c in range(3)]
    options = {"update_interval": 20, "max_iter": 60, "gamma": 0.1}
    events = []
    both = [
        select(
            predicted,
            [0.9] * 300,
            embeddings=x,
            clusterer=clusterer,
            truth=truth,
            labeled=labeled,
            sample_size=200,
            options=options,
            emit=events.append,
        )
        for _ in range(2)
    ]
    record = both[0].record
    assert record["filters"]["all"]["precision"] == pytest.approx(5 / 6, abs=0.01)
    assert record["filters"]["agreement"]["precision"] == 1
    assert record["filters"]["agreement"]["size"] > 150
    assert record["details"]["fitted_on"] == 200
    assert bool(events) == (clusterer == "dec")
    np.testing.assert_array_equal(both[0].trusted_index, both[1].trusted_index)
    np.testing.assert_array_equal(both[0].cluster, both[1].cluster)
    json.dumps(record, allow_nan=False)


def test_unknown_clusterer_and_option():
    with pytest.raises(ValueError, match="unknown clusterer 'magic'"):
        select([0, 1, 2], [0.9] * 3, clusterer="magic")
    with pytest.raises(ValueError, match="unknown clusterer option speed"):
        select([0, 1, 2], [0.9] * 3, options={"speed": 11})


def test_a_quota_keeps_the_most_confident_of_each_class(say):
    say([2, 2, 2, 0, 0, 1, 1])
    found = select(
        [0, 0, 0, 1, 1, 2, 2],
        [0.90, 0.95, 0.95, 0.9, 0.99, 0.9, 0.9],
        truth=[1, 0, 0, 1, 1, 2, 2],
        max_per_class=1,
    )
    assert found.trusted_index.tolist() == [1, 4, 5], "of equally confident ones the first"
    assert found.record["filters"]["before_quota"]["size"] == 7
    assert found.record["filters"]["agreement"]["size"] == 3
    assert found.record["filters"]["agreement"]["precision"] == 1


def test_a_share_keeps_the_most_confident_of_all(say):
    say([0, 0, 0, 1, 1, 2, 2])
    predicted, confidence = [0, 0, 0, 1, 1, 2, 2], [0.90, 0.95, 0.95, 0.9, 0.99, 0.93, 0.9]
    found = select(predicted, confidence, share=0.43)  # three of seven
    assert found.trusted_index.tolist() == [1, 2, 4]
    assert found.record["filters"]["before_quota"]["size"] == 7
    say([0, 0, 0, 1, 1, 2, 2])
    both = select(predicted, confidence, share=0.43, max_per_class=1)
    assert both.trusted_index.tolist() == [1, 4, 5], "of each class first, then of all"
    say([0, 0, 0, 1, 1, 2, 2])
    assert select(predicted, confidence, share=0.01).trusted_index.tolist() == [4], "never none"


def test_no_class_is_left_out_where_some_of_each_are_asked_for(say):
    say([0, 0, 0, 1, 1, 2, 2])
    predicted, confidence = [0, 0, 0, 1, 1, 2, 2], [0.99, 0.98, 0.97, 0.94, 0.93, 0.91, 0.92]
    few = select(predicted, confidence, share=0.43, share_of_each=0.4)
    assert few.trusted_index.tolist() == [0, 1, 2, 3, 6], "three of all, and one of each class"
    say([0, 0, 0, 1, 1, 2, 2])
    without = select(predicted, confidence, share=0.43)
    assert without.trusted_index.tolist() == [0, 1, 2]
    assert "no trusted image of class 1, 2" in without.record["warnings"][0]
    assert few.record["warnings"] == []


def test_a_quota_that_no_class_reaches_changes_nothing(say):
    say([2, 2, 0, 0, 1, 1])
    predicted, confidence = [0, 0, 1, 1, 2, 2], [0.9] * 6
    without = select(predicted, confidence).trusted_index
    say([2, 2, 0, 0, 1, 1])
    assert select(predicted, confidence, max_per_class=2).trusted_index.tolist() == without.tolist()
