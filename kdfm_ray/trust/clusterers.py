"""One small interface to all clusterers: a name and settings in, a way to cluster any set out.

Legend: n points of size d, p of them to be clustered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from kdfm_ray.trust.algorithms import (
    FITS,
    MAX_POINTS,
    NOISE,
    SEEDED,
    Clustering,
    Task,
    options_of,
)
from kdfm_ray.trust.rows import Rows
from kdfm_ray.types import UNKNOWN

NAMES = (*FITS, "none")


@dataclass(frozen=True)
class Clusterer:
    """A named way to cluster at most ``max_points`` points (``None``: any number).

    One that is ``seeded`` takes the points and the class of each labeled one (-1 elsewhere).
    """

    name: str
    fit: Callable[..., Clustering]
    max_points: int | None
    seeded: bool = False


@dataclass(frozen=True)
class Scaler:
    """Subtracts the mean and divides by one number, so that the mean square per feature is 1.

    DEC (section 4.1) asks for that size, since the kernel's width is fixed at 1. One number for all
    features keeps their proportions: dividing each by its own deviation would blow up dead ones.
    """

    mean: Float32[np.ndarray, "1 d"]
    scale: float

    @classmethod
    def fit(cls, x: Float[np.ndarray, "n d"]) -> Scaler:
        mean = x.mean(0, keepdims=True, dtype=np.float64)
        parts = np.array_split(x, 1 + len(x) // 8192)  # a float64 copy of all could be too large
        squares = sum(float(np.square(part - mean).sum()) for part in parts)
        scale = float(np.sqrt(squares / x.size))
        return cls(mean.astype(np.float32), scale if scale > 0 else 1.0)

    def __call__(self, x: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
        return ((x - self.mean) / self.scale).astype(np.float32)


def make_clusterer(name: str, task: Task, **options: Any) -> Clusterer | None:
    """The clusterer of that name; ``None`` for ``none``, where confidence alone decides.

    ``options`` may hold settings of any clusterer (one config serves all); each takes its own.

    Raises:
        ValueError: unknown name or option, fewer than one cluster.
    """
    if name not in NAMES:
        raise ValueError(f"unknown clusterer {name!r}; there are: {', '.join(NAMES)}")
    known = set[str]().union(*map(options_of, FITS.values()))
    if unknown := sorted(set(options) - known):
        raise ValueError(
            f"unknown clusterer option {', '.join(unknown)}; there are: {', '.join(sorted(known))}"
        )
    if task.num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {task.num_clusters}")
    if name == "none":
        return None
    own = {key: value for key, value in options.items() if key in options_of(FITS[name])}
    fit = partial(FITS[name], task=task, **own)
    return Clusterer(name, fit, MAX_POINTS.get(name), name in SEEDED)


def fit_and_assign(
    rows: Rows,
    kept: Int64[np.ndarray, " p"],
    clusterer: Clusterer,
    *,
    sample_size: int,
    seed: int,
    known: Int64[np.ndarray, " p"] | None = None,
) -> Clustering:
    """Cluster a set of any size: scale, fit on a random sample, place the rest piece by piece.

    The sample holds ``sample_size`` points, or fewer where the clusterer takes fewer; it and one
    piece of the rows are all that is in memory. Points of the sample keep the cluster that the fit
    gave them.

    Args:
        rows: of all points.
        kept: positions of those to cluster, ascending; assignments are theirs.
        clusterer: how.
        sample_size: to fit on, at most.
        seed: of the sample.
        known: class of each labeled point, -1 elsewhere; a seeded clusterer is told, and has all
            of the labeled ones in its sample.

    Raises:
        ValueError: values that are not finite.
    """
    n = len(kept)
    size = min(n, sample_size, clusterer.max_points or n)
    chosen = np.arange(n)
    if size < n:
        chosen = np.sort(np.random.default_rng(seed).choice(n, size, replace=False))
    if clusterer.seeded and known is not None:
        chosen = np.union1d(chosen, np.flatnonzero(known != UNKNOWN))
        size = len(chosen)
    sample = _finite(rows.take(kept[chosen]))
    scaler = Scaler.fit(sample)
    told = {} if known is None or not clusterer.seeded else {"known": known[chosen]}
    fitted = clusterer.fit(scaler(sample), **told)
    parts = [fitted, *([fitted.start] if fitted.start else [])]
    placed = [np.full(n, NOISE, np.int64) for _ in parts]
    for part, assignments in zip(parts, placed, strict=True):
        assignments[chosen] = part.assignments
    if size < n:
        del sample
        place = np.full(len(rows), -1)  # in ``kept``; -1 where nothing is to be placed
        place[kept] = np.arange(n)
        place[kept[chosen]] = -1
        for index, embeddings in rows.parts():
            wanted = place[index] >= 0
            if wanted.any():
                batch, where = scaler(_finite(embeddings[wanted])), place[index[wanted]]
                for part, assignments in zip(parts, placed, strict=True):
                    assignments[where] = part.assign_more(batch)

    def complete(part: Clustering, assignments: Int64[np.ndarray, " p"]) -> Clustering:
        return Clustering(
            assignments,
            part.num_clusters,
            lambda more: part.assign_more(scaler(more)),
            part.details | {"fitted_on": int(size)},
            complete(part.start, placed[1]) if part.start else None,
        )

    return complete(fitted, placed[0])


def _finite(embeddings: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
    if not np.isfinite(embeddings).all():
        raise ValueError(
            "the embeddings are not all finite numbers: the outer network has diverged; train it "
            "with a lower learning rate"
        )
    return embeddings
