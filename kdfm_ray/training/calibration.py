"""One temperature for a network's logits, so that its confidence is how often it is right.

Guo et al. 2017, arXiv 1706.04599. Legend: n images whose class is known, k classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, Int64
from scipy.optimize import brentq
from scipy.special import log_softmax, softmax

LOWEST, HIGHEST = 0.05, 20.0  # temperatures outside say that the images tell nothing
BINS = 15  # of confidence, equally wide


def fit_temperature(logits: Float32[np.ndarray, "n k"], truth: Int64[np.ndarray, " n"]) -> float:
    """The ``T`` with the least negative log-likelihood of ``softmax(logits / T)``, ``n >= 1``.

    The loss is convex in ``1 / T``, so the root of its slope is the minimum. Where every image is
    right there is none, and ``T`` would fall without end: so the true class has a target of
    ``1 - 1 / (n + 2)`` and the others share the rest (after Platt 1999), as if one more image
    were wrong. It matters with few images alone.
    """
    n, k = logits.shape
    z = logits.astype(np.float64)
    z -= z.max(axis=1, keepdims=True)
    spare = 1 / (n + 2)
    target = np.full((n, k), spare / max(1, k - 1))
    target[np.arange(n), truth] = 1 - spare

    def slope(inverse: float) -> float:
        """Of the mean loss, in ``1 / T``."""
        return float(((softmax(inverse * z, axis=1) - target) * z).sum(axis=1).mean())

    low, high = 1 / HIGHEST, 1 / LOWEST
    if slope(low) >= 0:
        return HIGHEST
    if slope(high) <= 0:
        return LOWEST
    return float(1 / brentq(slope, low, high, xtol=1e-9))


def logits_of(probs: Float32[np.ndarray, "n k"]) -> Float32[np.ndarray, "n k"]:
    """Logits of these probabilities, but for a constant of each row, which changes nothing."""
    return np.log(np.maximum(probs, np.float32(1e-38)))


def calibrated(probs: Float32[np.ndarray, "n k"], temperature: float) -> Float32[np.ndarray, "n k"]:
    """The probabilities that the same logits give when they are divided by the temperature."""
    found: np.ndarray = softmax(logits_of(probs).astype(np.float64) / temperature, axis=1)
    return found.astype(np.float32)


def loss_and_error(
    logits: Float32[np.ndarray, "n k"], truth: Int64[np.ndarray, " n"], temperature: float
) -> tuple[float, float]:
    """Mean negative log-likelihood (nats) and expected calibration error (fraction) at ``T``."""
    found = log_softmax(logits.astype(np.float64) / temperature, axis=1)
    loss = -found[np.arange(len(truth)), truth].mean()
    confidence, right = np.exp(found.max(axis=1)), found.argmax(axis=1) == truth
    place = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gap = np.bincount(place, weights=confidence - right, minlength=BINS)
    return float(loss), float(np.abs(gap).sum() / len(truth))
