import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from kdfm_ray.trust import kmeans


def test_finds_unequal_blobs_that_single_random_starts_miss(blobs):
    x, label = blobs([2000, 500, 200, 100, 50, 20], distance=30)
    centroids, assignments = kmeans.fit_kmeans(x, 6, seed=0)
    assert centroids.shape == (6, 8)
    assert adjusted_rand_score(label, assignments) == 1
    for cluster, centroid in enumerate(centroids):
        np.testing.assert_allclose(centroid, x[assignments == cluster].mean(0), atol=1e-4)


def test_the_best_restart_wins(blobs):
    x, _ = blobs([60] * 8, distance=4)

    def objective(restarts):  # more restarts begin with the same ones
        centroids, assignments = kmeans.fit_kmeans(x, 8, seed=5, restarts=restarts, max_iter=5)
        return np.square(x - centroids[assignments]).sum()

    objectives = [objective(restarts) for restarts in range(1, 9)]
    assert all(np.diff(objectives) <= 1e-2)
    assert objectives[-1] < objectives[0]


def test_same_seed_same_result_and_global_random_state_untouched(blobs):
    x, _ = blobs([50, 50, 50], distance=2)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    first = kmeans.fit_kmeans(x, 5, seed=7, restarts=2)
    second = kmeans.fit_kmeans(x, 5, seed=7, restarts=2)
    other = kmeans.fit_kmeans(x, 5, seed=8, restarts=1)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_assign_is_the_nearest_centroid_in_every_batch(monkeypatch):
    monkeypatch.setattr(kmeans, "ASSIGN_BATCH", 7)
    random = np.random.default_rng(0)
    x, centroids = random.normal(size=(50, 3)), random.normal(size=(4, 3))
    distance = np.square(x[:, None] - centroids).sum(2)
    assigned = kmeans.assign(x, centroids)
    assert assigned.dtype == np.int64
    np.testing.assert_array_equal(assigned, distance.argmin(1))


def test_quiet_on_few_and_on_equal_points(capfd):
    x = np.arange(12, dtype=np.float32).reshape(6, 2)
    _, assignments = kmeans.fit_kmeans(x, 6, seed=0)
    assert sorted(assignments) == list(range(6))
    kmeans.fit_kmeans(np.ones((6, 2), np.float32), 3, seed=0)
    assert capfd.readouterr() == ("", "")


def test_gpu_without_one_falls_back_to_the_cpu(blobs):
    import faiss

    if faiss.get_num_gpus():
        pytest.skip("this machine has a GPU that FAISS sees")
    x, _ = blobs([20, 20])
    on_cpu, on_gpu = (kmeans.fit_kmeans(x, 2, seed=0, gpu=gpu) for gpu in (False, True))
    np.testing.assert_array_equal(on_cpu[1], on_gpu[1])


@pytest.mark.parametrize(("n", "k"), [(3, 4), (5, 0)])
def test_refuses_impossible_numbers(n, k):
    with pytest.raises(ValueError, match=r"num_clusters|cannot make 4 clusters"):
        kmeans.fit_kmeans(np.zeros((n, 2), np.float32), k, seed=0)


def test_refuses_values_that_are_not_finite():
    x = np.zeros((5, 2), np.float32)
    x[2, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        kmeans.fit_kmeans(x, 2, seed=0)
