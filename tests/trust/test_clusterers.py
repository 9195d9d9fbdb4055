import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from kdfm_ray.trust import algorithms, dec
from kdfm_ray.trust import rows as module
from kdfm_ray.trust.clusterers import NAMES, Clusterer, Scaler, fit_and_assign, make_clusterer
from kdfm_ray.trust.rows import ArrayRows

DEC = {"update_interval": 20, "max_iter": 100, "kmeans_restarts": 2}


@pytest.fixture(autouse=True)
def short_pretraining(monkeypatch):
    monkeypatch.setattr(dec, "MIN_PRETRAIN_STEPS", 100)


def task(k, seed=0):
    return algorithms.Task(k, seed, gpu=False, device="cpu", emit=None)


def run(name, x, k, *, sample_size=10**6, seed=0, **options):
    if name in ("dec", "idec"):
        options = DEC | options
    tool = make_clusterer(name, task(k, seed), **options)
    return fit_and_assign(ArrayRows(x), np.arange(len(x)), tool, sample_size=sample_size, seed=seed)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("none", "spread")])
def test_every_clusterer_finds_blobs_and_places_the_rest(blobs, name):
    x, label = blobs([150, 150, 150], distance=20, d=4)
    whole, part = run(name, x, 3), run(name, x, 3, sample_size=150)
    for clustering, size in ((whole, 450), (part, 150)):
        assignments = clustering.assignments
        assert assignments.shape == (450,)
        assert clustering.details["fitted_on"] == size
        real = assignments >= 0
        # a density clusterer may leave the fringe of a blob out, and find parts of it
        assert real.mean() > (0.6 if name in ("dbscan", "hdbscan") else 0.999)
        for cluster in range(clustering.num_clusters):
            assert len(set(label[assignments == cluster])) == 1
        if name not in ("dbscan", "hdbscan"):
            assert adjusted_rand_score(label, assignments) == 1
    again = run(name, x, 3, sample_size=150)
    np.testing.assert_array_equal(part.assignments, again.assignments)
    np.testing.assert_array_equal(part.assign_more(x[:9])[:1], part.assign_more(x[:1]))


def test_the_rest_is_placed_in_batches_and_only_the_sample_is_fitted(blobs, monkeypatch):
    monkeypatch.setattr(module, "PART", 25)
    x, _ = blobs([50, 50])
    seen = {"fitted": 0, "batches": []}

    def fit(points):
        seen["fitted"] = len(points)

        def assign_more(more):
            seen["batches"].append(len(more))
            return np.ones(len(more), np.int64)

        return algorithms.Clustering(np.zeros(len(points), np.int64), 2, assign_more)

    kept = np.arange(0, 100, 2)
    tool = Clusterer("fake", fit, 20)
    result = fit_and_assign(ArrayRows(x), kept, tool, sample_size=30, seed=0)
    assert seen["fitted"] == 20
    assert len(seen["batches"]) == 4  # one for each piece, without what is not kept or was fitted
    assert sum(seen["batches"]) == 30
    assert np.bincount(result.assignments).tolist() == [20, 30]  # the fit's own and the placed


def test_the_start_is_completed_too(blobs):
    x, _ = blobs([60, 60], distance=20)
    result = run("dec", x, 2, sample_size=50)
    assert result.start is not None
    assert result.start.assignments.shape == (120,)
    assert run("kmeans", x, 2).start is None


def test_seed_chooses_the_sample(blobs):
    x, _ = blobs([100, 100], distance=1)
    first, other = (run("kmeans", x, 4, sample_size=30, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.assignments, other.assignments)


def test_scaler(blobs):
    x, _ = blobs([30, 30], spread=5.0)
    scaled = Scaler.fit(x)(x)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled.mean(0), 0, atol=1e-5)
    assert np.square(scaled).mean() == pytest.approx(1, abs=1e-5)
    ratio = x.std(0) / scaled.std(0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)  # proportions are kept
    assert (Scaler.fit(np.ones((4, 2)))(np.ones((4, 2))) == 0).all()


def test_read_only_arrays_are_fine(blobs):
    x, _ = blobs([40, 40], distance=20)
    x.flags.writeable = False  # as an array in Ray's object store is
    assert run("dec", x, 2).assignments.shape == (80,)


@pytest.mark.parametrize("name", ["dbscan", "hdbscan"])
def test_far_points_are_noise_also_outside_the_sample(blobs, name):
    x, _ = blobs([200, 200], distance=20, d=3)
    far = 100 * np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32)
    result = run(name, np.concatenate([x, far]), 2)
    assert (result.assignments[-3:] == -1).all()
    if name == "dbscan":
        assert (run(name, x, 2).assign_more(far) == -1).all()


def test_dbscan_makes_the_asked_share_core(blobs):
    x, _ = blobs([200, 200], d=3)
    for quantile in (0.3, 0.7):
        result = run("dbscan", x, 2, dbscan_eps_quantile=quantile)
        assert result.details["core_share"] == pytest.approx(quantile, abs=0.01)


def test_dbscan_without_core_points_is_all_noise():
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    result = run("dbscan", x, 2, dbscan_eps=1e-6)
    assert (result.assignments == -1).all()
    assert result.num_clusters == 0
    assert (result.assign_more(x) == -1).all()


def test_hdbscan_with_fewer_points_than_its_smallest_cluster():
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    assert (run("hdbscan", x, 2).assignments == -1).all()


def test_majority_ties_go_to_noise_first():
    x = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    place = algorithms._majority(x, np.array([-1, 1, -1, 1]))
    assert place(np.array([[1.4]], np.float32)).tolist() == [-1]
    place = algorithms._majority(x, np.array([2, 1, 2, 2]))
    assert place(np.array([[1.0]], np.float32)).tolist() == [2]


def test_a_librarys_warning_becomes_a_note(blobs):
    x, _ = blobs([40, 40], distance=40)
    notes = run("spectral", x, 2, spectral_neighbors=5).details["notes"]
    assert any("not fully connected" in note for note in notes)


def test_caps_of_quadratic_clusterers():
    caps = {name: make_clusterer(name, task(2)).max_points for name in NAMES if name != "none"}
    assert {name for name, cap in caps.items() if cap} == {
        *("spectral", "dbscan", "hdbscan", "spread")
    }


def test_divergence_is_noted(blobs):
    x, _ = blobs([40, 40])
    result = run("dec", x, 2, pretrain_epochs=0, learning_rate=1e30)
    assert result.details["stopped_by"] == "diverged"
    assert "lower learning_rate" in result.details["notes"][0]


def test_none_is_no_clusterer():
    assert make_clusterer("none", task(2)) is None


def test_unknown_name_lists_all():
    with pytest.raises(
        ValueError, match=r"'kmean'.*dec, idec, kmeans, gmm, .*hdbscan, spread, none"
    ):
        make_clusterer("kmean", task(2))


def test_options_of_other_clusterers_are_let_through_but_unknown_ones_are_not():
    assert make_clusterer("kmeans", task(2), gamma=0.1, dbscan_eps=1.0) is not None
    assert make_clusterer("dec", task(2), gamma=0.1).fit.keywords.keys() == {"task"}
    assert make_clusterer("idec", task(2), gamma=0.2).fit.keywords["gamma"] == 0.2
    with pytest.raises(ValueError, match=r"option latentdim; there are: .*latent_dim"):
        make_clusterer("dec", task(2), latentdim=3)


def test_no_clusters_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        make_clusterer("gmm", task(0))
