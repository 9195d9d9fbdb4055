"""Pseudo labels that look at all images at once: neighbors, and the proportions of classes.

    probabilities  ->  spread over the neighbor graph  ->  classes in proportion  ->  labels

The outer network looks at one image at a time. When it labels, the embeddings of all are there: an
image whose neighbors are said to be of another class is likely to be of that one, and a class that
is said too often takes images from others.

Legend: n images, d embedding size, k classes, m images of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from jaxtyping import Float32, Float64, Int64

from kdfm_ray.trust.balance import class_weights, relabel
from kdfm_ray.trust.neighbors import make_neighbors
from kdfm_ray.trust.rows import Rows, gather
from kdfm_ray.trust.spread import directions, spread_beliefs
from kdfm_ray.types import UNKNOWN

Source = Literal["network", "graph"]


class LabeledRows(Rows, Protocol):
    """Embeddings and class probabilities, in pieces that come in the same order."""

    def probabilities(
        self,
    ) -> Iterator[tuple[Int64[np.ndarray, " m"], Float32[np.ndarray, "m k"]]]:
        """All probabilities in pieces: positions, and the rows there."""


@dataclass(frozen=True)
class Relabeled:
    """Labels of all images.

    Attributes:
        predicted: most likely classes.
        confidence: their probabilities.
        weights: factors of the classes; ``None`` where no proportions were asked for.
        fitted_on: images that the graph and the weights were made of.
    """

    predicted: Int64[np.ndarray, " n"]
    confidence: Float32[np.ndarray, " n"]
    weights: Float64[np.ndarray, " k"] | None
    fitted_on: int


def relabel_all(
    rows: LabeledRows,
    *,
    source: Source,
    shares: Float64[np.ndarray, " k"] | None,
    strength: float,
    known: Int64[np.ndarray, " n"],
    neighbors: int,
    alpha: float,
    sample_size: int,
    seed: int,
) -> Relabeled:
    """Label all images.

    Args:
        rows: of all images, the labeled ones among them.
        source: ``network``: its probabilities as they are; ``graph``: spread over the graph of
            nearest neighbors, true labels among them.
        shares: of the classes, summing to 1; ``None``: as they come.
        strength: power of the weights that meet the shares: 1 meets them, near 0 leaves the
            classes as they come.
        known: class of each labeled image, -1 elsewhere.
        neighbors: of an image in the graph.
        alpha: how much of an image's label comes from its neighbors, below 1.
        sample_size: of a larger set, a random sample of that size (and the labeled images) makes
            the graph; the others take the mean of their nearest neighbors in it.
        seed: of the sample.
    """
    n = len(rows)
    chosen = np.arange(n)
    if sample_size < n:
        chosen = np.random.default_rng(seed).choice(n, sample_size, replace=False)
        chosen = np.union1d(chosen, np.flatnonzero(known != UNKNOWN))
    beliefs, x = gather(rows.probabilities(), chosen, n), None
    if source == "graph":
        told = known[chosen]
        labeled = told != UNKNOWN
        beliefs[labeled] = np.eye(beliefs.shape[1], dtype=beliefs.dtype)[told[labeled]]
        x = directions(rows.take(chosen))
        beliefs = spread_beliefs(x, beliefs, neighbors=neighbors, alpha=alpha)
    weights = np.ones(beliefs.shape[1])
    if shares is not None:
        weights = class_weights(beliefs, shares) ** strength

    predicted, confidence = np.empty(n, np.int64), np.empty(n, np.float32)
    predicted[chosen], confidence[chosen] = relabel(beliefs, weights)
    if len(chosen) < n:
        rest = np.ones(n, bool)
        rest[chosen] = False
        around_them = None if x is None else make_neighbors(x, int(rest.sum()))
        for (index, embeddings), (same, probs) in zip(
            rows.parts(), rows.probabilities(), strict=True
        ):
            assert np.array_equal(index, same)
            wanted = rest[index]
            if not wanted.any():
                continue
            own = probs[wanted]
            if around_them is not None:
                count = min(neighbors, len(chosen))
                found, _ = around_them.search(directions(embeddings[wanted]), count)
                around = beliefs[found].mean(axis=1)
                own = (alpha * around + (1 - alpha) * own).astype(np.float32)
            where = index[wanted]
            predicted[where], confidence[where] = relabel(own, weights)
    return Relabeled(predicted, confidence, None if shares is None else weights, len(chosen))
