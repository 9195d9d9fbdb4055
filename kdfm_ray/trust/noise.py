"""Wrong labels on purpose: how much of them a loss can bear is one of the paper's questions."""

from __future__ import annotations

import numpy as np
from jaxtyping import Int64


def corrupt(
    labels: Int64[np.ndarray, " n"], share: float, *, num_classes: int, seed: int
) -> Int64[np.ndarray, " n"]:
    """Labels of which a share is replaced by another class (symmetric noise).

    Args:
        labels: class numbers in [0, ``num_classes``).
        share: of the labels, in [0, 1]; the count is rounded. Those of a smaller share, with the
            same seed, are among those of a larger one.
        num_classes: K, at least 2.
        seed: which ones, and which class each of them gets; every other class is as likely.

    Returns:
        A copy.
    """
    rng = np.random.default_rng([seed, 0x6E6F6973])  # "nois": no other stream of this seed
    order = rng.permutation(len(labels))
    offset = rng.integers(1, num_classes, len(labels))
    chosen = order[: round(share * len(labels))]
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + offset[chosen]) % num_classes
    return noisy
