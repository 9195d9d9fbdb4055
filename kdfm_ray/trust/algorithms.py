"""The clustering algorithms, each a function from points to a ``Clustering``.

    dec, idec   kdfm_ray.trust.dec; further points go to their most likely centroid
    kmeans      FAISS; further points go to the nearest centroid
    gmm         Gaussian mixture with full covariances; further points to the likeliest component
    spectral    nearest-neighbor graph; at most 5,000 points; further points by neighbors' majority
    dbscan      at most 10,000 points; further points join the nearest core point within eps
    hdbscan     at most 10,000 points; further points by neighbors' majority, noise having a vote
    spread      labels spread over a neighbor graph; a cluster is a class; at most 200,000 points;
                further points by neighbors' majority

``dbscan`` and ``hdbscan`` find the number of clusters themselves and leave noise, cluster -1. The
keyword arguments of a function are its settings.

Legend: n points of size d, scaled by ``clusterers.Scaler``.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int64

from kdfm_ray.trust import dec, kmeans
from kdfm_ray.trust.spread import spread_labels
from kdfm_ray.types import Emit

NOISE = -1
GMM_SMALL = 2**30  # multiplications of one covariance
NEIGHBORS = 5  # that vote on a point outside the sample
# Where time or memory is quadratic.
MAX_POINTS = {"spectral": 5_000, "dbscan": 10_000, "hdbscan": 10_000, "spread": 200_000}
SEEDED = {"spread"}  # are told the classes of labeled images: a cluster is a class


@dataclass(frozen=True)
class Clustering:
    """A clustering of some points.

    Attributes:
        assignments: cluster of each point, -1 for noise.
        num_clusters: clusters that there may be; a parametric method can leave some empty.
        assign_more: places further points (float ``[n, d]`` to int64 ``[n]``).
        details: plain numbers and strings for the record; ``notes`` are sentences for people.
        start: where an iterative method came from, so that the two can be compared.
    """

    assignments: Int64[np.ndarray, " n"]
    num_clusters: int
    assign_more: Callable[[np.ndarray], np.ndarray]
    details: dict[str, Any] = field(default_factory=dict)
    start: Clustering | None = None


@dataclass(frozen=True)
class Task:
    """What every clusterer is told; each uses what concerns it."""

    num_clusters: int
    seed: int
    gpu: bool
    device: str
    emit: Emit | None


def fit_dec(x: Float[np.ndarray, "n d"], task: Task, **options: Any) -> Clustering:
    result = dec.fit_dec(
        x,
        task.num_clusters,
        seed=task.seed,
        gpu=task.gpu,
        device=task.device,
        emit=task.emit,
        **options,
    )
    details: dict[str, Any] = {
        "iterations": result.iterations,
        "stopped_by": result.stopped_by,
        "moved": result.moved,
        "seconds": result.seconds,
        "history": result.history,
        "notes": [],
    }
    if result.stopped_by == "diverged":
        details["notes"] = [
            f"deep clustering diverged after {result.iterations} steps, so its k-means start was "
            "used: try a lower learning_rate"
        ]
    start = Clustering(result.start_assignments, task.num_clusters, result.start.assign)
    return Clustering(result.assignments, task.num_clusters, result.clusters.assign, details, start)


def fit_idec(
    x: Float[np.ndarray, "n d"], task: Task, *, gamma: float = 0.1, **options: Any
) -> Clustering:
    return fit_dec(x, task, gamma=gamma, **options)


def fit_kmeans(x: Float[np.ndarray, "n d"], task: Task, *, kmeans_restarts: int = 10) -> Clustering:
    centroids, assignments = kmeans.fit_kmeans(
        x, task.num_clusters, seed=task.seed, restarts=kmeans_restarts, gpu=task.gpu
    )
    return Clustering(assignments, task.num_clusters, partial(kmeans.assign, centroids=centroids))


def fit_gmm(
    x: Float[np.ndarray, "n d"], task: Task, *, gmm_regularization: float = 1e-3
) -> Clustering:
    """``gmm_regularization`` is added to the variances, which are about 1; it keeps dead features
    and small clusters from a singular covariance."""
    from sklearn.mixture import GaussianMixture

    kmeans.check_points(len(x), max(2, task.num_clusters))
    mixture = GaussianMixture(
        task.num_clusters, reg_covar=gmm_regularization, random_state=task.seed
    )
    small = len(x) * x.shape[1] * x.shape[1] < GMM_SMALL
    with warnings.catch_warnings(record=True) as caught, kmeans.one_thread(small):
        warnings.simplefilter("always")
        mixture.fit(x)
    return Clustering(
        mixture.predict(x), task.num_clusters, mixture.predict, {"notes": _notes(caught)}
    )


def fit_spectral(
    x: Float[np.ndarray, "n d"], task: Task, *, spectral_neighbors: int = 10
) -> Clustering:
    from sklearn.cluster import SpectralClustering

    kmeans.check_points(len(x), max(2, task.num_clusters))
    spectral = SpectralClustering(
        task.num_clusters,
        affinity="nearest_neighbors",
        n_neighbors=min(spectral_neighbors, len(x) - 1),
        random_state=task.seed,
    )
    with warnings.catch_warnings(record=True) as caught, kmeans.one_thread(True):
        warnings.simplefilter("always")
        assignments = spectral.fit_predict(x).astype(np.int64)
    return Clustering(
        assignments, task.num_clusters, _majority(x, assignments), {"notes": _notes(caught)}
    )


def fit_dbscan(
    x: Float[np.ndarray, "n d"],
    task: Task,
    *,
    dbscan_eps: float | None = None,
    dbscan_eps_quantile: float = 0.5,
    dbscan_min_samples: int = 10,
) -> Clustering:
    """A point is core when ``dbscan_min_samples`` points, itself among them, lie within eps.

    Without ``dbscan_eps`` (in scaled units) eps is the ``dbscan_eps_quantile`` of the distances to
    the ``dbscan_min_samples``-th point: that share of all points becomes core.
    """
    from sklearn.cluster import DBSCAN

    min_samples = min(dbscan_min_samples, len(x))
    eps = dbscan_eps
    if eps is None:
        squared = np.maximum(kmeans.nearest(x, x, count=min_samples)[1][:, -1], 0)
        # a hair more than the distance, which FAISS and scikit-learn round differently
        eps = float(np.sqrt(np.quantile(squared, dbscan_eps_quantile))) * (1 + 1e-4) or 1e-6
    with kmeans.one_thread(True):
        dbscan = DBSCAN(eps=eps, min_samples=min_samples).fit(x)
    core = dbscan.core_sample_indices_
    core_points, core_cluster = x[core], dbscan.labels_[core].astype(np.int64)

    def assign_more(more: Float[np.ndarray, "m d"]) -> Int64[np.ndarray, " m"]:
        if not len(core):
            return np.full(len(more), NOISE, np.int64)
        found, squared = kmeans.nearest(more, core_points)
        within = squared[:, 0] <= eps**2
        return np.where(within, core_cluster[found[:, 0]], NOISE)

    details = {"eps": eps, "core_share": len(core) / len(x)}
    assignments = dbscan.labels_.astype(np.int64)
    return Clustering(assignments, int(assignments.max()) + 1, assign_more, details)


def fit_hdbscan(
    x: Float[np.ndarray, "n d"],
    task: Task,
    *,
    hdbscan_min_cluster_size: int | None = None,
    hdbscan_min_samples: int = 5,
) -> Clustering:
    """Without ``hdbscan_min_cluster_size``, 1/40 of an average cluster, at least 5: larger values
    merged half of all images into one cluster on a weak network's embeddings."""
    from sklearn.cluster import HDBSCAN

    smallest = hdbscan_min_cluster_size or max(5, len(x) // (40 * task.num_clusters))
    min_samples = min(hdbscan_min_samples, len(x))
    with kmeans.one_thread(True):
        hdbscan = HDBSCAN(min_cluster_size=smallest, min_samples=min_samples, copy=True).fit(x)
    assignments = np.maximum(hdbscan.labels_, NOISE).astype(np.int64)
    return Clustering(
        assignments,
        int(assignments.max()) + 1,
        _majority(x, assignments),
        {"min_cluster_size": smallest},
    )


def fit_spread(
    x: Float[np.ndarray, "n d"],
    task: Task,
    known: Int64[np.ndarray, " n"],
    *,
    spread_neighbors: int = 15,
    spread_alpha: float = 0.99,
) -> Clustering:
    """``known``: class of each labeled point, -1 elsewhere. Noise is where no label arrives."""
    arrived = spread_labels(
        x, known, task.num_clusters, neighbors=spread_neighbors, alpha=spread_alpha
    )
    assignments = np.where(arrived.max(axis=1) > 0, arrived.argmax(axis=1), NOISE).astype(np.int64)
    return Clustering(assignments, task.num_clusters, _majority(x, assignments))


def _majority(
    x: Float[np.ndarray, "n d"], assignments: Int64[np.ndarray, " n"]
) -> Callable[[np.ndarray], np.ndarray]:
    """Places points by the vote of their nearest neighbors in ``x``; a tie goes to the lowest
    number, so to noise first."""
    count = min(NEIGHBORS, len(x))
    choices = np.arange(NOISE, assignments.max() + 1)

    def assign_more(more: Float[np.ndarray, "m d"]) -> Int64[np.ndarray, " m"]:
        found, _ = kmeans.nearest(more, x, count=count)
        ballots = assignments[found]
        votes = (ballots[:, :, None] == choices).sum(1)
        return choices[votes.argmax(1)]

    return assign_more


def _notes(caught: list[warnings.WarningMessage]) -> list[str]:
    """A library's warnings as sentences of the record."""
    messages = sorted({str(warning.message) for warning in caught})
    return [f"scikit-learn: {text} Try another seed or clusterer." for text in messages]


FITS: dict[str, Callable[..., Clustering]] = {
    "dec": fit_dec,
    "idec": fit_idec,
    "kmeans": fit_kmeans,
    "gmm": fit_gmm,
    "spectral": fit_spectral,
    "dbscan": fit_dbscan,
    "hdbscan": fit_hdbscan,
    "spread": fit_spread,
}


def options_of(fit: Callable[..., Clustering]) -> set[str]:
    """The settings of a fit function: its keyword-only arguments."""
    functions: list[Callable[..., Any]] = [fit]
    if fit in (fit_dec, fit_idec):  # which hand theirs on
        functions.append(dec.fit_dec)
    names = {
        parameter.name
        for function in functions
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    if fit is fit_dec:
        names.discard("gamma")  # with a gamma it would be IDEC
    return names - {field.name for field in fields(Task)}
