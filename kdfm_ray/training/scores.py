"""How good a network's predictions are, beyond one accuracy: by class, by confidence, in pairs.

Legend: n images whose class is known, k classes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from kdfm_ray.training.calibration import calibrated, fit_temperature, logits_of

BINS = 10  # of confidence, equally wide
MOST_CLASSES = 128  # of which a whole confusion matrix is kept
MOST_CONFUSED = 20  # pairs of classes that are named
NORMAL_95 = 1.959964  # two-sided 95 % quantile of the normal distribution


def score(probs: Float32[np.ndarray, "n k"], truth: Int64[np.ndarray, " n"]) -> dict[str, Any]:
    """Figures of ``n >= 1`` predictions, fit for JSON.

    Returns:
        ``count``; ``accuracy``; ``loss`` (cross-entropy, nats); ``images`` and ``recall`` of each
        true class (``None`` without images); ``precision`` of each predicted class; ``confusion``,
        rows true and columns predicted (``None`` above ``MOST_CLASSES`` classes); ``confused``, the
        most frequent mistakes as ``[true, predicted, count]``; ``reliability``, see there.
    """
    classes = probs.shape[1]
    predicted = probs.argmax(axis=1)
    table = np.zeros((classes, classes), np.int64)
    np.add.at(table, (truth, predicted), 1)
    right = np.diag(table)
    chosen = np.maximum(probs[np.arange(len(truth)), truth].astype(np.float64), 1e-12)
    return {
        "count": len(truth),
        "accuracy": float(right.sum() / len(truth)),
        "loss": float(-np.log(chosen).mean()),
        "images": table.sum(axis=1).tolist(),
        "recall": _shares(right, table.sum(axis=1)),
        "precision": _shares(right, table.sum(axis=0)),
        "confusion": table.tolist() if classes <= MOST_CLASSES else None,
        "confused": _most_confused(table),
        "reliability": reliability(probs.max(axis=1), predicted == truth),
    }


def reliability(
    confidence: Float32[np.ndarray, " n"], right: Bool[np.ndarray, " n"]
) -> dict[str, Any]:
    """Confidence beside accuracy, in ``BINS`` equal bins of [0, 1].

    Returns:
        ``count``, mean ``confidence`` and ``accuracy`` of each bin (``None`` where empty), and
        ``ece``: the expected calibration error, their mean absolute difference weighted by count
        (Guo et al. 2017, arXiv 1706.04599).
    """
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    sums = np.bincount(place, weights=confidence.astype(np.float64), minlength=BINS)
    hits = np.bincount(place, weights=right.astype(np.float64), minlength=BINS)
    return {
        "count": count.tolist(),
        "confidence": _shares(sums, count),
        "accuracy": _shares(hits, count),
        "ece": float(np.abs(sums - hits).sum() / len(confidence)),
    }


def score_calibrated(
    val_probs: Float32[np.ndarray, "m k"],
    val_truth: Int64[np.ndarray, " m"],
    probs: Float32[np.ndarray, "n k"],
    truth: Int64[np.ndarray, " n"],
) -> dict[str, Any]:
    """What a temperature that is fitted to ``m >= 1`` validation images makes of confidence.

    Returns:
        ``temperature``; ``images``, to which it was fitted; ``reliability`` of the calibrated
        predictions, whose classes are the same.
    """
    temperature = fit_temperature(logits_of(val_probs), val_truth)
    confidence = calibrated(probs, temperature).max(axis=1)
    return {
        "temperature": temperature,
        "images": len(val_truth),
        "reliability": reliability(confidence, probs.argmax(axis=1) == truth),
    }


def compare(ours: Bool[np.ndarray, " n"], theirs: Bool[np.ndarray, " n"]) -> dict[str, Any]:
    """Two networks on the same images: where each alone is right.

    Returns:
        ``better`` and ``worse``: images that ours alone, theirs alone gets right; ``difference`` of
        the accuracies; ``low`` and ``high``: its 95 % interval for another draw of such images (of
        paired proportions, by the normal distribution). It says nothing of another seed.
    """
    n = len(ours)
    better, worse = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    difference = (better - worse) / n
    # One more disagreement each way (Agresti & Min 2005): no certainty from a handful of images.
    ups, downs, total = better + 0.5, worse + 0.5, n + 2
    spread = np.sqrt(ups + downs - (ups - downs) ** 2 / total) / total
    middle = (ups - downs) / total
    return {
        "better": better,
        "worse": worse,
        "difference": difference,
        "low": float(middle - NORMAL_95 * spread),
        "high": float(middle + NORMAL_95 * spread),
    }


def _most_confused(table: Int64[np.ndarray, "k k"]) -> list[list[int]]:
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSED]
    rows, columns = np.unravel_index(order, wrong.shape)
    return [
        [int(row), int(column), int(wrong[row, column])]
        for row, column in zip(rows, columns, strict=True)
        if wrong[row, column]
    ]


def _shares(part: np.ndarray, whole: np.ndarray) -> list[float | None]:
    return [float(a / b) if b else None for a, b in zip(part, whole, strict=True)]
