"""Which label each unlabeled image is trained with: the paper's Heuristic 1 (arXiv 2309.05826).

Legend: n images, k classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


class Targets(NamedTuple):
    """What the unlabeled loss needs, and what the step reports about it.

    Attributes:
        target: the class to train towards; 0 where the mask is off.
        mask: whether the image gives a loss at all.
        from_trusted: the target is the trusted label (the network itself was not confident).
        override: the network was confident and disagreed with the trusted label.
    """

    target: Int64[Tensor, " n"]
    mask: Bool[Tensor, " n"]
    from_trusted: Bool[Tensor, " n"]
    override: Bool[Tensor, " n"]


def merge_targets(
    probs: Float[Tensor, "n k"], trusted_label: Int64[Tensor, " n"], *, tau_inner: float
) -> Targets:
    """Merge the network's own labels with the trusted ones.

    The own label counts where its confidence is at least ``tau_inner`` (our reading of the
    paper's Heuristic 1); else the trusted label where there is one; else the image is masked
    out. Without any trusted label this is FixMatch's mask, so outer and inner networks share it.

    Args:
        probs: softmax output on the weak views, without gradient.
        trusted_label: class number, or -1 where the image is not trusted.
        tau_inner: confidence threshold, a fraction.
    """
    confidence, own_label = probs.max(dim=1)
    confident = confidence >= tau_inner
    trusted = trusted_label >= 0
    from_trusted = ~confident & trusted

    target = torch.where(confident, own_label, trusted_label.clamp(min=0))
    override = confident & trusted & (own_label != trusted_label)
    return Targets(target, confident | trusted, from_trusted, override)
