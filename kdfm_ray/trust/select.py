"""The trusted subset: pseudo labels that are confident and that the clusters agree with.

    embeddings, pseudo labels  ->  confidence >= tau  ->  clusters of what is kept  ->  a class for
    each cluster  ->  trusted where the class of the image's cluster is its predicted class

Labeled images among the ``n`` are anchors: they are always clustered, whatever their confidence,
and vote with their true class when clusters are matched to classes (that they skip the confidence
filter is ours). They are never in the trusted subset, and no size, coverage or precision counts
them: their true labels are known anyway.

Legend: n images, d embedding size, k classes, m labeled images, t trusted images, c clusters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, Int64

from kdfm_ray.trust.agreement import (
    adjusted_rand_index,
    class_of,
    contingency,
    match_clusters,
    matched_agreement,
    normalized_mutual_information,
)
from kdfm_ray.trust.algorithms import NOISE, SEEDED, Clustering, Task
from kdfm_ray.trust.clusterers import fit_and_assign, make_clusterer
from kdfm_ray.trust.figures import Images, cluster_warnings
from kdfm_ray.trust.rows import Rows
from kdfm_ray.types import UNKNOWN, Emit


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
        record: fit for JSON. ``filters`` (``all``, ``confidence``, ``agreement``: see
            ``Images.figures``; with ``max_per_class`` or ``share`` also ``before_quota``), ``nmi``
            and ``ari`` of clusters against pseudo labels (noise left out), ``agreement`` (matched,
            at DEC's ``start`` and at the ``end``), ``fallback`` (DEC's start was used),
            ``cluster_sizes`` (labeled images among them), ``noise``, ``part_seconds``,
            ``warnings``, and the clusterer's ``details``.
    """

    trusted_index: Int64[np.ndarray, " t"]
    trusted_label: Int64[np.ndarray, " t"]
    cluster: Int64[np.ndarray, " n"]
    cluster_to_class: Int64[np.ndarray, " c"]
    record: dict[str, Any]


def select_trusted(
    embeddings: Rows,
    predicted: Int64[np.ndarray, " n"],
    confidence: Float32[np.ndarray, " n"],
    *,
    num_classes: int,
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
    max_per_class: int | None = None,
    share: float | None = None,
    share_of_each: float = 0.0,
    class_names: Sequence[str] | None = None,
    emit: Emit | None = None,
) -> Selection:
    """Choose the images whose pseudo label can be trusted.

    Args:
        embeddings: of the outer network; a sample of them, and a piece at a time, are read.
        predicted: its most likely classes.
        confidence: their probabilities, compared with ``tau`` in float32.
        num_classes: K.
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
        max_per_class: trust at most so many images of a class, the most confident (of equally
            confident ones the first); ``None`` for all.
        share: trust at most this share of the unlabeled images, the most confident in the same
            way; ``None`` for all.
        share_of_each: beside ``share``: of the images of each class that passed the filters, this
            share is trusted whatever the others' confidence.
        class_names: for the warnings; class numbers without it.
        emit: takes progress events.

    Raises:
        EmptyTrustedError: no image passed the confidence filter or the agreement filter, or too
            few are left to cluster.
        ValueError: unknown clusterer or option, values that are not finite.
    """
    started = time.perf_counter()
    num_clusters = num_clusters or num_classes
    if clusterer in SEEDED and num_clusters != num_classes:
        raise ValueError(
            f"clusterer {clusterer} makes one cluster of each of the {num_classes} classes: leave "
            f"select.num_clusters out (it is {num_clusters}), or use another clusterer"
        )
    task = Task(num_clusters, seed, gpu, device, emit)
    tool = make_clusterer(clusterer, task, **(options or {}))
    images = _look_at(predicted, confidence, num_classes, labeled_index, truth)
    confident = images.confidence >= np.float32(tau)
    kept = np.flatnonzero(confident | ~images.unlabeled)
    _refuse_too_few(images, confident, tau, needed=num_clusters if tool else 1)

    cluster = np.full(len(predicted), NOISE, np.int64)
    matching, agrees = _NO_CLUSTERS, confident
    seconds = {"cluster": 0.0}
    if tool:
        vote, weight = images.predicted.copy(), np.ones(len(predicted))
        vote[labeled_index], weight[labeled_index] = labeled_class, labeled_weight
        before = time.perf_counter()
        known = np.full(len(predicted), UNKNOWN, np.int64)
        known[labeled_index] = labeled_class
        clustering = fit_and_assign(
            embeddings, kept, tool, sample_size=sample_size, seed=seed, known=known[kept]
        )
        seconds = {"cluster": time.perf_counter() - before, **clustering.details.get("seconds", {})}
        matching = _match(
            clustering, vote[kept], weight[kept], num_classes, allowed_fall, tool.seeded
        )
        cluster[kept] = matching.cluster
        agrees = class_of(cluster, matching.cluster_to_class) == images.predicted
    trusted = agrees & confident & images.unlabeled
    if not trusted.any():
        raise EmptyTrustedError(_none_agrees(clusterer, tau, cluster[confident & images.unlabeled]))

    agreed = trusted
    if max_per_class is not None:
        trusted = _of_each(images, agreed, lambda size: max_per_class)
    if share is not None:
        most = max(1, round(share * int(images.unlabeled.sum())))
        some = _of_each(images, trusted, lambda size: math.ceil(share_of_each * size))
        trusted = _first(images, trusted, most) | some
    limited = max_per_class is not None or share is not None

    real = (cluster != NOISE) & images.unlabeled
    index = np.flatnonzero(trusted)
    record = {
        "clusterer": clusterer,
        "tau_select": float(tau),
        "filters": {
            "all": images.figures(images.unlabeled),
            "confidence": images.figures(confident),
            **({"before_quota": images.figures(agreed)} if limited else {}),
            "agreement": images.figures(trusted),
        },
        "nmi": normalized_mutual_information(cluster[real], images.predicted[real]),
        "ari": adjusted_rand_index(cluster[real], images.predicted[real]),
        **matching.record,
        "warnings": matching.warnings + images.missing_classes(trusted, class_names),
        "part_seconds": {"total": time.perf_counter() - started, **seconds},
    }
    return Selection(index, images.predicted[index], cluster, matching.cluster_to_class, record)


def _of_each(
    images: Images, among: Bool[np.ndarray, " n"], most: Callable[[int], int]
) -> Bool[np.ndarray, " n"]:
    """The most confident images of each class, as many as ``most`` says for its size."""
    kept = np.zeros(len(among), bool)
    for number in range(images.num_classes):
        members = among & (images.predicted == number)
        kept |= _first(images, members, most(int(members.sum())))
    return kept


def _first(images: Images, among: Bool[np.ndarray, " n"], most: int) -> Bool[np.ndarray, " n"]:
    """At most so many images, the most confident ones."""
    kept = np.zeros(len(among), bool)
    members = np.flatnonzero(among)
    order = np.argsort(-images.confidence[members], kind="stable")
    kept[members[order[:most]]] = True
    return kept


@dataclass(frozen=True)
class _Matching:
    """The kept images once their clusters have classes; fields as in ``Selection``."""

    cluster: Int64[np.ndarray, " n"]
    cluster_to_class: Int64[np.ndarray, " c"]
    record: dict[str, Any]
    warnings: list[str]


_NO_CLUSTERS = _Matching(
    np.empty(0, np.int64),
    np.empty(0, np.int64),
    {
        "agreement": {"start": None, "end": None},
        "fallback": False,
        "cluster_sizes": [],
        "cluster_to_class": [],
        "noise": 0,
        "details": {},
    },
    [],
)


def _match(
    clustering: Clustering,
    vote: Int64[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    num_classes: int,
    allowed_fall: float,
    known: bool,
) -> _Matching:
    """Give the clusters classes, unless these are known; where they agree less than their start
    did, take the start."""

    def measure(part: Clustering) -> tuple[Int64[np.ndarray, " c"], float]:
        shape = (part.num_clusters, num_classes)
        table = contingency(part.assignments, vote, weight, shape)
        classes = np.arange(num_classes) if known else match_clusters(table)
        return classes, matched_agreement(table, classes)

    def alarms(part: Clustering) -> list[str]:
        return cluster_warnings(_sizes(part), np.bincount(vote[part.assignments != NOISE]))

    used, (cluster_to_class, end), start = clustering, measure(clustering), None
    warnings = [*clustering.details.get("notes", []), *alarms(clustering)]
    if clustering.start:
        start_classes, start = measure(clustering.start)
        if start - end > allowed_fall:
            used, cluster_to_class = clustering.start, start_classes
            warnings.append(
                "deep clustering made the clusters worse than their k-means start (agreement with "
                f"the pseudo labels {start:.2%} -> {end:.2%}), so the start was used: try "
                "clusterer idec, gmm or kmeans, or a lower learning_rate or max_iter"
            )
            warnings += alarms(used)
    record = {
        "agreement": {"start": start, "end": end},
        "fallback": used is not clustering or clustering.details.get("stopped_by") == "diverged",
        "cluster_sizes": _sizes(used).tolist(),
        "cluster_to_class": cluster_to_class.tolist(),
        "noise": int((used.assignments == NOISE).sum()),
        "details": clustering.details,
    }
    return _Matching(used.assignments, cluster_to_class, record, warnings)


def _sizes(part: Clustering) -> Int64[np.ndarray, " c"]:
    real = part.assignments[part.assignments != NOISE]
    return np.bincount(real, minlength=part.num_clusters)


def _look_at(
    predicted: Int64[np.ndarray, " n"],
    confidence: Float32[np.ndarray, " n"],
    num_classes: int,
    labeled_index: Int64[np.ndarray, " m"],
    truth: Int64[np.ndarray, " n"] | None,
) -> Images:
    if not np.isfinite(confidence).all():
        raise ValueError(
            "the probabilities are not all finite numbers: the outer network has diverged; train "
            "it with a lower learning rate"
        )
    unlabeled = np.ones(len(predicted), bool)
    unlabeled[labeled_index] = False
    if truth is None:
        truth = np.full(len(predicted), UNKNOWN, np.int64)
    return Images(predicted, confidence, unlabeled, truth, num_classes)


def _refuse_too_few(
    images: Images, confident: Bool[np.ndarray, " n"], tau: float, *, needed: int
) -> None:
    """Raise where the confidence filter leaves nothing to trust, or too little to cluster."""
    confidence = images.confidence[images.unlabeled]
    passed = int((confident & images.unlabeled).sum())
    clustered = passed + int((~images.unlabeled).sum())
    if not len(confidence):
        raise EmptyTrustedError("every image is labeled: there are no pseudo labels to trust")
    if passed and clustered >= needed:
        return
    median, tenth, most = np.quantile(confidence, [0.5, 0.9, 1.0])
    reason = (
        f"only {clustered} images, labeled ones included, are left to make {needed} clusters of"
        if passed
        else "no image passed the confidence filter"
    )
    raise EmptyTrustedError(
        f"the trusted subset is empty: {reason}, at tau_select = {tau:g}. The confidence of the "
        f"{len(confidence)} unlabeled images has a median of {median:.4f}, a 90 % quantile of "
        f"{tenth:.4f}, a maximum of {most:.4f}. Try tau_select = {_below(tenth)} (keeps a tenth) "
        f"or {_below(median)} (keeps half), or train the outer network longer."
    )


def _below(threshold: float) -> str:
    """The threshold cut, not rounded, to four digits, so that it keeps what it promises."""
    return f"{np.floor(threshold * 1e4) / 1e4:g}"


def _none_agrees(clusterer: str, tau: float, cluster: Int64[np.ndarray, " p"]) -> str:
    noise = int((cluster == NOISE).sum())
    return (
        f"the trusted subset is empty: of {len(cluster)} images with a confidence of at least "
        f"tau_select = {tau:g}, {noise} are noise to clusterer {clusterer!r} and for the others "
        "the class of the cluster is not the predicted one. Try clusterer none (confidence alone), "
        "gmm or kmeans, more clusters (num_clusters), or another tau_select."
    )
