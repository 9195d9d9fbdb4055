"""Which label each unlabeled image is trained with: Heuristic 1 (arXiv 2309.05826), and others.

Legend: n images, k classes.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Rule = Literal["own_first", "trusted_first", "agreement"]


class Targets(NamedTuple):
    """What the unlabeled loss needs, and what the step reports about it.

    Attributes:
        target: the class to train towards; 0 where the mask is off.
        mask: whether the image gives a loss at all.
        from_trusted: the target is the trusted label, and the network's own does not count.
        override: the network's own label took the place of another, trusted one.
    """

    target: Int64[Tensor, " n"]
    mask: Bool[Tensor, " n"]
    from_trusted: Bool[Tensor, " n"]
    override: Bool[Tensor, " n"]


def merge_targets(
    probs: Float[Tensor, "n k"],
    trusted_label: Int64[Tensor, " n"],
    *,
    tau_inner: float | Float[Tensor, " n"],
    rule: Rule = "own_first",
    tau_override: float | None = None,
) -> Targets:
    """Merge the network's own labels with the trusted ones.

    The own label counts where its confidence is at least ``tau_inner``, the trusted one where the
    own does not; with neither the image is masked out. Without any trusted label this is
    FixMatch's mask, so outer and inner networks share it. Where both are there and differ:

    - ``own_first``: the own label (our reading of the paper's Heuristic 1), if its confidence is
      at least ``tau_override`` too; else the trusted one;
    - ``trusted_first``: the trusted label;
    - ``agreement``: none, the image is masked out.

    Args:
        probs: softmax output on the weak views, without gradient.
        trusted_label: class number, or -1 where the image is not trusted.
        tau_inner: confidence threshold, a fraction; one for all images, or one for each.
        rule: whose label counts where both are there and differ.
        tau_override: confidence threshold of ``own_first`` for images whose trusted label is
            another; ``None``: ``tau_inner``.
    """
    confidence, own_label = probs.max(dim=1)
    confident = confidence >= tau_inner
    trusted = trusted_label >= 0
    differs = confident & trusted & (own_label != trusted_label)

    nowhere = torch.zeros_like(differs)
    dropped = differs if rule == "agreement" else nowhere
    override = differs if rule == "own_first" else nowhere
    if tau_override is not None:
        override = override & (confidence >= tau_override)
    own_counts = confident & (~differs | override)
    from_trusted = trusted & ~own_counts & ~dropped

    target = torch.where(own_counts, own_label, trusted_label * from_trusted)
    return Targets(target, own_counts | from_trusted, from_trusted, override)
