import itertools

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score

from kdfm_ray.trust import dec
from kdfm_ray.trust.clusterers import Scaler

QUICK = {"update_interval": 50, "max_iter": 600, "batch_size": 128, "kmeans_restarts": 3}


@pytest.fixture(autouse=True)
def short_pretraining(monkeypatch):
    monkeypatch.setattr(dec, "MIN_PRETRAIN_STEPS", 200)


def fit(x, k, **settings):
    return dec.fit_dec(Scaler.fit(x)(x), k, **({"seed": 0} | QUICK | settings))


# ---- the formulas


def numpy_soft_assign(z, centroids):
    q = np.empty((len(z), len(centroids)))
    for i, j in itertools.product(range(len(z)), range(len(centroids))):
        q[i, j] = 1 / (1 + ((z[i] - centroids[j]) ** 2).sum())
    return q / q.sum(1, keepdims=True)


def numpy_target(q):
    frequency = q.sum(0)
    p = np.empty_like(q)
    for i in range(len(q)):
        p[i] = q[i] ** 2 / frequency
        p[i] /= p[i].sum()
    return p


def test_formulas_equal_plain_numpy():
    random = np.random.default_rng(0)
    z, centroids = random.normal(size=(40, 5)) * 3, random.normal(size=(4, 5))
    q, p = numpy_soft_assign(z, centroids), numpy_target(numpy_soft_assign(z, centroids))
    kl = np.mean([sum(p[i, j] * np.log(p[i, j] / q[i, j]) for j in range(4)) for i in range(40)])

    torch_q = dec.soft_assign(torch.tensor(z), torch.tensor(centroids))
    torch_p = dec.target_distribution(torch_q)
    np.testing.assert_allclose(torch_q, q, rtol=1e-12)
    np.testing.assert_allclose(torch_p, p, rtol=1e-12)
    assert dec.kl_divergence(torch_p, torch_q).item() == pytest.approx(kl, rel=1e-12)


def test_formulas_by_hand():
    """z = 0 and 2, centroids 0 and 1: kernels 1, 1/2 and 1/5, 1/2; f = 20/21 and 22/21."""
    q = dec.soft_assign(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [1.0]]))
    np.testing.assert_allclose(q, [[2 / 3, 1 / 3], [2 / 7, 5 / 7]], rtol=1e-6)
    p = dec.target_distribution(q)
    np.testing.assert_allclose(p, [[22 / 27, 5 / 27], [22 / 147, 125 / 147]], rtol=1e-6)
    first = 22 / 27 * np.log(22 / 18) + 5 / 27 * np.log(5 / 9)
    second = 22 / 147 * np.log(22 / 42) + 125 / 147 * np.log(125 / 105)
    assert dec.kl_divergence(p, q).item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_kl_is_zero_for_equals_and_takes_zeros_of_p():
    p = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert dec.kl_divergence(p, p.clamp(min=1e-30)).item() == pytest.approx(0, abs=1e-6)
    q = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    assert dec.kl_divergence(p, q).item() == pytest.approx(np.log(4) / 2)


def test_the_target_favors_small_clusters():
    """Two equal points, but one cluster is soft-larger: p moves towards the smaller one."""
    q = torch.tensor([[0.5, 0.5], [0.9, 0.1]])
    assert dec.target_distribution(q)[0, 1] > 0.5


def test_a_pass_in_small_parts_equals_one_pass(monkeypatch):
    model = dec.DeepClusters(6, (8,), 3, 4, seed=0)
    generator = torch.Generator().manual_seed(0)
    model.centroids.data.normal_(generator=generator)
    x = torch.randn(50, 6, generator=generator)
    whole = model.soft_assign(x)
    monkeypatch.setattr(dec, "MAX_FLOATS", 7 * 3 * 4)
    torch.testing.assert_close(model.soft_assign(x), whole)


# ---- the training


@pytest.fixture(scope="module")
def overlapping(blobs):
    """Points, classes and DEC's result on them."""
    x, label = blobs([200, 200, 200, 200], distance=3.5)
    return x, label, fit(x, 4, tol=0.0)


def test_kl_falls(overlapping):
    history = overlapping[2].history
    assert history[0]["kl_before"] is None
    assert all(entry["kl_after"] < entry["kl_before"] for entry in history[1:])
    assert history[1]["kl_after"] < 0.5 * history[1]["kl_before"]
    # a new target starts higher than the last one ended; in the long run that falls as well
    assert history[-1]["kl"] < 0.9 * max(entry["kl"] for entry in history)


def test_every_update_makes_a_new_target_of_the_whole_set(overlapping):
    x, _, result = overlapping
    q = result.clusters.soft_assign(torch.tensor(Scaler.fit(x)(x)))
    kl = dec.kl_divergence(dec.target_distribution(q), q).item()
    assert result.history[-1]["kl"] == pytest.approx(kl, rel=1e-4)
    for last, entry in itertools.pairwise(result.history):
        assert entry["kl_before"] == last["kl"]  # trained on the target made then
        assert entry["kl"] != entry["kl_after"]


def test_weights_and_assignments_leave_the_start(overlapping):
    x, _, result = overlapping
    assert result.moved["encoder"] > 0.01
    assert result.moved["centroids"] > 0.01
    assert 0 < (result.assignments != result.start_assignments).mean() < 0.5
    assert sum(entry["changed"] for entry in result.history) > 0
    for name in ("encoder", "centroids", "decoder"):
        old, new = (
            torch.cat([p.flatten() for key, p in model.named_parameters() if key.startswith(name)])
            for model in (result.start, result.clusters)
        )
        assert torch.equal(old, new) == (name == "decoder")  # which plain DEC throws away
    scaled = Scaler.fit(x)(x)
    np.testing.assert_array_equal(result.clusters.assign(scaled), result.assignments)
    np.testing.assert_array_equal(result.start.assign(scaled), result.start_assignments)


def test_start_is_kmeans_in_the_latent_space(overlapping):
    x, _, result = overlapping
    z = result.start.encode(torch.tensor(Scaler.fit(x)(x))).numpy()
    distance = np.square(z[:, None] - result.start.centroids.detach().numpy()).sum(2)
    np.testing.assert_array_equal(result.start_assignments, distance.argmin(1))
    for cluster, centroid in enumerate(result.start.centroids.detach().numpy()):
        own = z[result.start_assignments == cluster]
        np.testing.assert_allclose(centroid, own.mean(0), atol=0.05)


def test_overlapping_blobs_are_mostly_found(overlapping):
    _, label, result = overlapping
    assert adjusted_rand_score(label, result.assignments) > 0.5


@pytest.mark.parametrize("gamma", [None, 0.1])
def test_separable_blobs_are_found(blobs, gamma):
    x, label = blobs([150, 150, 150])
    result = fit(x, 3, gamma=gamma)
    assert adjusted_rand_score(label, result.assignments) == 1
    assert result.stopped_by == "tol"
    assert result.latent.shape == (450, 10)


def test_unbalanced_blobs_far_apart_stay_whole(blobs):
    x, label = blobs([500, 60, 30])
    result = fit(x, 3)
    assert sorted(np.bincount(result.assignments, minlength=3)) == [30, 60, 500]
    assert adjusted_rand_score(label, result.assignments) == 1


def test_balance_is_forced_on_unbalanced_overlapping_blobs(blobs):
    """A known fault of DEC: its target prefers equal clusters, so the largest class is split."""
    x, label = blobs([700, 50, 50], distance=3)
    result = fit(x, 3, tol=0.0)
    largest = np.bincount(result.assignments).max()
    assert largest < 0.8 * np.bincount(label).max()


def test_stops_by_tol_after_two_targets_at_the_earliest(blobs):
    x, _ = blobs([150, 150, 150])
    result = fit(x, 3, tol=0.5)
    assert (result.stopped_by, result.iterations) == ("tol", 100)
    assert [entry["step"] for entry in result.history] == [0, 50, 100]


def test_stops_by_max_iter_even_within_an_interval(blobs):
    x, _ = blobs([50, 50])
    result = fit(x, 2, tol=0.0, max_iter=120)
    assert (result.stopped_by, result.iterations) == ("max_iter", 120)
    assert [entry["step"] for entry in result.history] == [0, 50, 100, 120]


def test_refuses_a_max_iter_below_two_targets(blobs):
    x, _ = blobs([20, 20])
    with pytest.raises(ValueError, match="raise max_iter to 100 or more"):
        fit(x, 2, max_iter=99)


def test_idec_keeps_reconstructing_and_gamma_weighs_the_clustering(blobs):
    x, _ = blobs([100, 100, 100], distance=3)
    points = torch.tensor(Scaler.fit(x)(x))

    def error(result):
        with torch.no_grad():
            return (
                (result.clusters.decoder(result.clusters.encode(points)) - points).square().mean()
            )

    plain, idec, alone = (fit(x, 3, tol=0.0, gamma=gamma) for gamma in (None, 0.1, 0.0))
    assert error(idec) < error(plain)
    assert alone.moved["centroids"] == 0  # without the clustering loss nothing pulls at them
    assert idec.moved["centroids"] > 0


def test_divergence_leaves_the_start(blobs):
    x, _ = blobs([50, 50])
    result = fit(x, 2, pretrain_epochs=0, learning_rate=1e30)
    assert result.stopped_by == "diverged"
    assert result.history[-1]["kl"] is None
    np.testing.assert_array_equal(result.assignments, result.start_assignments)


def test_seed_decides_all_and_no_global_state_changes(blobs):
    x, _ = blobs([60, 60, 60], distance=2)
    quick = {"max_iter": 100, "tol": 0.0}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    threads = torch.get_num_threads()
    first, second, other = (fit(x, 3, seed=seed, **quick) for seed in (1, 1, 2))
    assert torch.equal(torch_state, torch.get_rng_state())
    np.testing.assert_array_equal(numpy_state, np.random.get_state()[1])  # noqa: NPY002
    assert torch.get_num_threads() == threads
    np.testing.assert_array_equal(first.latent, second.latent)
    np.testing.assert_array_equal(first.assignments, second.assignments)
    assert not np.allclose(first.latent, other.latent)


def test_progress_is_reported_in_order(blobs):
    x, _ = blobs([50, 50])
    events = []
    fit(x, 2, tol=0.0, max_iter=100, emit=events.append)
    assert [event["phase"] for event in events] == ["pretrain", "cluster", "cluster"]
    assert [event["step"] for event in events] == [200, 250, 300]
    assert {event["total"] for event in events} == {300}
    assert "changed" in events[-1]


def test_layers_follow_hidden_dims():
    model = dec.DeepClusters(7, (6, 5), 3, 2, seed=0)
    shapes = [
        [tuple(layer.weight.shape) for layer in part if hasattr(layer, "weight")]
        for part in (model.encoder, model.decoder)
    ]
    assert shapes == [[(6, 7), (5, 6), (3, 5)], [(5, 3), (6, 5), (7, 6)]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_the_gpu(blobs):
    x, label = blobs([150, 150, 150])
    result = fit(x, 3, device="cuda", gpu=True)
    assert adjusted_rand_score(label, result.assignments) == 1
