"""The trusted subset: pseudo labels that are confident and that the clusters agree with.

    embeddings, probs  ->  confidence >= tau  ->  clusters of what is kept  ->  a class for each
    cluster  ->  trusted where the class of the image's cluster is its predicted class

Labeled images among the ``n`` are anchors: they are always clustered, whatever their confidence,
and vote with their true class when clusters are matched to classes (that they skip the confidence
filter is ours). They are never in the trusted subset, and no size, coverage or precision counts
them: their true labels are known anyway.

Legend: n images, d embedding size, k classes, m labeled images, t trusted images, c clusters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from kdfm_ray.trust.agreement import (
    UNMATCHED,
    adjusted_rand_index,
    contingency,
    match_clusters,
    matched_agreement,
    normalized_mutual_information,
)
from kdfm_ray.trust.clusterers import NOISE, Clusterer, Clustering, fit_and_assign, make_clusterer
from kdfm_ray.types import UNKNOWN, Emit

COLLAPSED = 0.5  # alarm when the clusters' effective number falls below this share of the classes'


class EmptyTrustedError(ValueError):
    """No image can be trusted; the message says why and which thresholds to try."""


@dataclass(frozen=True)
class Selection:
    """The trusted subset and how it came about.

    Attributes:
        trusted_index: positions of the trusted images, ascending; no labeled image.
        trusted_label: their predicted classes.
        cluster: cluster of every image; -1 where confidence was too low, for noise, and without
            a clusterer.
        cluster_to_class: class of each cluster; -1 for a cluster without images.
        record: sizes, precision and agreement at each filter, warnings; fit for JSON.
    """

    trusted_index: Int64[np.ndarray, " t"]
    trusted_label: Int64[np.ndarray, " t"]
    cluster: Int64[np.ndarray, " n"]
    cluster_to_class: Int64[np.ndarray, " c"]
    record: dict[str, Any]


def select_trusted(
    embeddings: Float[np.ndarray, "n d"],
    probs: Float[np.ndarray, "n k"],
    *,
    tau: float,
    clusterer: str,
    num_clusters: int | None,
    labeled_index: Int64[np.ndarray, " m"],
    labeled_class: Int64[np.ndarray, " m"],
    labeled_weight: float,
    truth: Int64[np.ndarray, " n"] | None,
    sample_size: int,
    seed: int,
    device: str = "cpu",
    gpu: bool = False,
    options: Mapping[str, Any] | None = None,
    allowed_fall: float = 0.0,
    emit: Emit | None = None,
) -> Selection:
    """Choose the images whose pseudo label can be trusted.

    Args:
        embeddings: of the outer network.
        probs: its class probabilities; compared with ``tau`` in float32.
        tau: ``tau_select``, the least confidence (``>=``).
        clusterer: a name of ``clusterers.NAMES``; ``none`` trusts confidence alone.
        num_clusters: ``None`` for as many as classes.
        labeled_index: positions of the labeled images within the ``n``.
        labeled_class: their true classes.
        labeled_weight: how many votes a labeled image has in the matching.
        truth: true classes, -1 where unknown; for the record only, they choose nothing.
        sample_size: fit the clusterer on at most so many images, place the rest.
        seed: of the sample and the clusterer.
        device: torch device of DEC.
        gpu: k-means on the GPU.
        options: settings of the clusterers, see ``make_clusterer``.
        allowed_fall: how far DEC may lower the matched agreement below its k-means start before
            that start is used in its place; 1 switches the comparison off.
        emit: takes progress events.

    Raises:
        EmptyTrustedError: no image passed the confidence filter or the agreement filter, or too
            few are left to cluster.
        ValueError: unknown clusterer or option, values that are not finite.
    """
    started = time.perf_counter()
    for name, array in {"embeddings": embeddings, "probs": probs}.items():
        if not np.isfinite(array).all():
            raise ValueError(f"{name} are not all finite: the outer network has diverged")
    n, num_classes = probs.shape
    num_clusters = num_clusters or num_classes
    tool = make_clusterer(
        clusterer,
        num_clusters=num_clusters,
        seed=seed,
        gpu=gpu,
        device=device,
        emit=emit,
        **(options or {}),
    )
    images = _Images.of(probs, labeled_index, labeled_class, truth)
    confident = images.confidence >= np.float32(tau)
    figures = {
        "all": images.figures(images.unlabeled),
        "confidence": images.figures(confident & images.unlabeled),
    }
    if not (confident & images.unlabeled).any():
        raise EmptyTrustedError(_nothing_confident(images, tau))

    kept = np.flatnonzero(confident | ~images.unlabeled)
    if tool is None:
        matched = _Matched.nothing()
        agrees = confident
    else:
        if len(kept) < num_clusters:
            raise EmptyTrustedError(_too_few(images, tau, len(kept), num_clusters))
        matched = _cluster_and_match(
            embeddings[kept],
            images.at(kept),
            tool,
            labeled_weight=labeled_weight,
            sample_size=sample_size,
            seed=seed,
            allowed_fall=allowed_fall,
        )
        agrees = np.zeros(n, bool)
        agrees[kept] = matched.class_of_image == images.predicted[kept]
    trusted = np.flatnonzero(agrees & confident & images.unlabeled)
    if not len(trusted):
        raise EmptyTrustedError(_nothing_agrees(images, tau, clusterer, matched))

    figures["agreement"] = images.figures(np.isin(np.arange(n), trusted))
    cluster = np.full(n, NOISE, np.int64)
    if tool is not None:
        cluster[kept] = matched.cluster
    record = {
        "clusterer": clusterer,
        "tau_select": float(tau),
        "filters": figures,
        "size": figures["agreement"]["size"],
        "coverage": figures["agreement"]["coverage"],
        "precision": figures["agreement"]["precision"],
        "precision_all": figures["all"]["precision"],
        **matched.record,
        "warnings": matched.warnings + _missing_classes(images, trusted, confident),
    }
    record["part_seconds"]["total"] = time.perf_counter() - started
    return Selection(
        trusted, images.predicted[trusted], cluster, matched.cluster_to_class, record
    )
