"""Pseudo labels of the whole unlabeled set in the proportions that classes should come in.

What a young network says of many images leans towards a few classes. Distribution alignment
(``method.align``) corrects that batch by batch while it trains. When the outer network labels, all
images are there at once, and the proportions can be met: Sinkhorn's iteration on the network's own
probabilities, as Asano et al. 2020 (arXiv 1911.05371, section 3.1) make labels of equal classes.

Legend: n images, k classes.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

TOLERANCE, MOST = 1e-3, 200  # of a class's share, relative; of iterations
LEAST = 1e-8  # added to every probability, so that no class is impossible


def class_weights(
    probs: Float32[np.ndarray, "n k"], target: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, " k"]:
    """The weights with which classes come in given proportions.

    Args:
        probs: probabilities of the images, or of a sample of them.
        target: share of each class, summing to 1. A class of share 0 keeps its weight.

    Returns:
        Factors: the means of ``weighted(probs, factors)`` are ``target``, within a thousandth of
        each share, or as near as 200 iterations come.
    """
    weight = np.ones(len(target))
    wanted = target > 0
    for _ in range(MOST):
        share = weighted(probs, weight).mean(axis=0)
        off = np.divide(share, target, out=np.ones_like(weight), where=wanted)
        if np.abs(off - 1).max() < TOLERANCE:
            break
        weight = weight / off
    return weight / weight.max()


def weighted(
    probs: Float[np.ndarray, "n k"], weight: Float64[np.ndarray, " k"]
) -> Float64[np.ndarray, "n k"]:
    """Probabilities times the weights of the classes, normalized."""
    scaled = (probs.astype(np.float64) + LEAST) * weight
    normalized: Float64[np.ndarray, "n k"] = scaled / scaled.sum(axis=1, keepdims=True)
    return normalized


def relabel(
    probs: Float32[np.ndarray, "n k"], weight: Float64[np.ndarray, " k"]
) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, " n"]]:
    """Most likely class of every image under the weights, and its probability."""
    scaled = weighted(probs, weight)
    return scaled.argmax(axis=1), scaled.max(axis=1).astype(np.float32)
