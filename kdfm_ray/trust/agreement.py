"""How clusters and classes are matched, and how well they agree.

Legend: n images, c clusters, k classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64, Int64

UNMATCHED = -1


def contingency(
    cluster: Int64[np.ndarray, " n"],
    label: Int64[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    shape: tuple[int, int],
) -> Float64[np.ndarray, "c k"]:
    """The weight of the images in each cluster with each label; noise (cluster -1) is left out.

    ``shape`` is (number of clusters, number of classes).
    """
    table = np.zeros(shape)
    real = cluster >= 0
    np.add.at(table, (cluster[real], label[real]), weight[real])
    return table


def match_clusters(table: Float64[np.ndarray, "c k"]) -> Int64[np.ndarray, " c"]:
    """The class of each cluster; -1 for a cluster without images.

    Up to as many clusters as classes: the one-to-one matching of greatest total weight (Hungarian
    method). With more clusters: each takes its most frequent class, the lowest number where two
    are equally frequent.
    """
    from scipy.optimize import linear_sum_assignment

    clusters, classes = table.shape
    if clusters > classes:
        match = table.argmax(1).astype(np.int64)
    else:
        match = np.full(clusters, UNMATCHED, np.int64)
        rows, columns = linear_sum_assignment(table, maximize=True)
        match[rows] = columns
    match[table.sum(1) == 0] = UNMATCHED
    return match


def matched_agreement(
    table: Float64[np.ndarray, "c k"], cluster_to_class: Int64[np.ndarray, " c"]
) -> float:
    """The share of the table's weight that lies in the class matched to its cluster; 0 if empty."""
    total = table.sum()
    matched = np.flatnonzero(cluster_to_class != UNMATCHED)
    agreed = table[matched, cluster_to_class[matched]].sum()
    return float(agreed / total) if total else 0.0


def class_of(
    cluster: Int64[np.ndarray, " n"], cluster_to_class: Int64[np.ndarray, " c"]
) -> Int64[np.ndarray, " n"]:
    """The class matched to every image's cluster; -1 for noise and for unmatched clusters."""
    return np.append(cluster_to_class, UNMATCHED)[cluster]  # noise, -1, reads the one appended


def normalized_mutual_information(
    cluster: Int64[np.ndarray, " n"], label: Int64[np.ndarray, " n"]
) -> float | None:
    """NMI (normalized by the arithmetic mean of the entropies), 0 to 1; ``None`` of no images."""
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(label, cluster)) if len(label) else None


def adjusted_rand_index(
    cluster: Int64[np.ndarray, " n"], label: Int64[np.ndarray, " n"]
) -> float | None:
    """ARI, about 0 for chance and 1 for equality; ``None`` of no images."""
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(label, cluster)) if len(label) else None
