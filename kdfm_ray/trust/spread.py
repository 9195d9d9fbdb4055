"""Labels spread over a neighbor graph: clusters that know their classes.

Zhou et al. 2004 ("Learning with local and global consistency"), on a graph of embeddings as Iscen
et al. 2019 (arXiv 1904.04717) build it. The labeled images are the sources; every other image takes
the class from which most arrives.

Legend: n points of size d, m of them labeled, k classes, e edges.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int64

from kdfm_ray.trust.neighbors import make_neighbors
from kdfm_ray.types import UNKNOWN

POWER = 3.0  # of the cosine, which is an edge's weight (arXiv 1904.04717, section 4.2)
ROUNDS = 30  # of spreading beliefs
TOLERANCE, MOST = 1e-4, 100  # of conjugate gradients; on graphs of 55,000 images 20 to 60 are used


def spread_labels(
    x: Float[np.ndarray, "n d"],
    known: Int64[np.ndarray, " n"],
    num_classes: int,
    *,
    neighbors: int,
    alpha: float,
) -> Float[np.ndarray, "n k"]:
    """How much of each class arrives at each point.

    Solves ``(I - alpha S) F = Y`` (Zhou et al., equation 4) with ``S`` the normalized adjacency of
    the graph in which every point is joined with its nearest ones, and ``Y`` the labeled points,
    each class with a mass of 1 in all, so that a class with more labels is not the stronger for it.

    Args:
        x: embeddings; their directions count.
        known: class of each labeled point, -1 elsewhere.
        num_classes: k.
        neighbors: of each point in the graph.
        alpha: how far labels spread, below 1.

    Returns:
        Float64, 0 where nothing arrives.

    Raises:
        ValueError: no point is labeled.
    """
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import cg

    if not (known != UNKNOWN).any():
        raise ValueError("labels cannot spread where no image is labeled: use another clusterer")
    system = eye_array(len(x), format="csr") - alpha * _graph(x, neighbors)
    arrived = np.zeros((len(x), num_classes))
    for number in range(num_classes):
        source = (known == number).astype(np.float64)
        if source.any():
            source /= source.sum()
            arrived[:, number], _ = cg(system, source, rtol=TOLERANCE, maxiter=MOST)
    return np.maximum(arrived, 0)


def spread_beliefs(
    x: Float32[np.ndarray, "n d"],
    beliefs: Float32[np.ndarray, "n k"],
    *,
    neighbors: int,
    alpha: float,
) -> Float32[np.ndarray, "n k"]:
    """What each point and its neighbors believe together.

    ``F <- alpha S F + (1 - alpha) Y`` (Zhou et al., the iteration before equation 4), from
    ``F = Y``, the beliefs of all points, ``ROUNDS`` times: with ``alpha = 0.95`` four fifths of the
    way to its limit. Rows are normalized at the end.

    Args:
        x: embeddings; their directions count.
        beliefs: class probabilities of each point.
        neighbors: of each point in the graph.
        alpha: how much comes from neighbors, below 1.
    """
    graph = _graph(x, neighbors).astype(np.float32)
    found = beliefs
    for _ in range(ROUNDS):
        found = alpha * (graph @ found) + (1 - alpha) * beliefs
    found = np.maximum(found, np.finfo(np.float32).tiny)
    normalized: Float32[np.ndarray, "n k"] = found / found.sum(axis=1, keepdims=True)
    return normalized.astype(np.float32)


def directions(x: Float[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    """Points at length 1."""
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.maximum(norm, np.finfo(np.float32).tiny)).astype(np.float32)


def _graph(x: Float[np.ndarray, "n d"], neighbors: int) -> Any:
    """``D^-1/2 (W + W^T) D^-1/2`` of the graph of nearest neighbors, as a sparse array."""
    from scipy.sparse import csr_array, diags_array

    n = len(x)
    direction = directions(x)
    count = min(neighbors + 1, n)  # itself is among them
    found, squared = make_neighbors(direction, n).search(direction, count)
    cosine = 1 - squared / 2
    weight = np.where(found == np.arange(n)[:, None], 0, np.maximum(cosine, 0) ** POWER)
    rows = np.repeat(np.arange(n), count)
    one_way = csr_array((weight.ravel().astype(np.float64), (rows, found.ravel())), shape=(n, n))
    both = (one_way + one_way.T).tocsr()
    degree = np.asarray(both.sum(axis=1)).ravel()
    scale = diags_array(1 / np.sqrt(np.where(degree > 0, degree, 1)))
    return (scale @ both @ scale).tocsr()
