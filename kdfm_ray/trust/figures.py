"""What the record of a selection says: sizes and precision at each filter, and its sentences.

Legend: n images, k classes, c clusters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int64

from kdfm_ray.types import UNKNOWN

COLLAPSED = 0.5  # alarm when the clusters' effective number is below this share of the classes'


@dataclass(frozen=True)
class Images:
    """The images of a selection. Labeled ones (``unlabeled`` false) count in no figure.

    Attributes:
        predicted: pseudo labels.
        confidence: their probability.
        unlabeled: whether the image has no label of its own.
        truth: true classes for the record, -1 where unknown.
        num_classes: K.
    """

    predicted: Int64[np.ndarray, " n"]
    confidence: Float32[np.ndarray, " n"]
    unlabeled: Bool[np.ndarray, " n"]
    truth: Int64[np.ndarray, " n"]
    num_classes: int

    def figures(self, kept: Bool[np.ndarray, " n"]) -> dict[str, Any]:
        """Size, coverage (of the images without a label) and precision, also by predicted class.

        Precision is the share of right ones among the kept whose truth is known; ``None`` where
        none is.
        """
        kept = kept & self.unlabeled
        size = self._count(kept)
        known = self._count(kept & (self.truth != UNKNOWN))
        right = self._count(kept & (self.truth == self.predicted))
        total = int(self.unlabeled.sum())
        return {
            "size": int(size.sum()),
            "coverage": float(size.sum() / total) if total else 0.0,
            "precision": _share(right.sum(), known.sum()),
            "per_class": {
                "size": size.tolist(),
                "precision": [_share(*pair) for pair in zip(right, known, strict=True)],
            },
        }

    def missing_classes(
        self, trusted: Bool[np.ndarray, " n"], names: Sequence[str] | None = None
    ) -> list[str]:
        """One sentence where classes have no trusted image; ``names`` by class number."""
        missing = np.flatnonzero(self._count(trusted & self.unlabeled) == 0)
        if not len(missing):
            return []
        listed = ", ".join(names[int(k)] if names else str(k) for k in missing)
        return [
            f"no trusted image of class {listed}: lower tau_select, raise share where it is set, "
            "give those classes more labeled images, or try another clusterer"
        ]

    def _count(self, chosen: Bool[np.ndarray, " n"]) -> Int64[np.ndarray, " k"]:
        return np.bincount(self.predicted[chosen], minlength=self.num_classes)


def cluster_warnings(
    sizes: Int64[np.ndarray, " c"], label_sizes: Int64[np.ndarray, " k"]
) -> list[str]:
    """Sentences on collapse and empty clusters, each with what to try.

    Collapsed: the effective number of clusters, exp(entropy of their sizes), is below half of that
    of the labels among the same images, so that a set of unequal classes raises no alarm.
    """
    if not sizes.sum():
        return []  # noise alone: nothing can be trusted, and the error says so
    found = []
    effective, classes = _effective(sizes), _effective(label_sizes)
    if effective < COLLAPSED * classes:
        found.append(
            f"the clusters collapsed: the largest holds {sizes.max() / sizes.sum():.0%} of the "
            f"images, and by size they are worth {effective:.1f} equal clusters where the pseudo "
            f"labels are worth {classes:.1f}: try clusterer idec, gmm or kmeans, or a lower "
            "learning_rate or max_iter"
        )
    if empty := np.flatnonzero(sizes == 0).tolist():
        found.append(
            f"no image is in cluster {', '.join(map(str, empty))} of {len(sizes)}: try clusterer "
            "gmm or kmeans, another seed, or fewer clusters (num_clusters)"
        )
    return found


def _effective(sizes: Int64[np.ndarray, " c"]) -> float:
    share = sizes[sizes > 0] / sizes.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def _share(part: int | np.integer, whole: int | np.integer) -> float | None:
    return float(part / whole) if whole else None
