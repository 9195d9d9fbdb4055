"""One FixMatch update (Sohn et al. 2020, arXiv 2001.07685), outer and inner network alike.

    b  labeled images of this worker      u  unlabeled images of this worker
    k  classes                            c, h, w  channels, height, width

A mean over the global batch is a sum over this worker's images divided by ``denom``: the global
count over the number of workers, because DDP averages gradients over workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from kdfm_ray.method.losses import cross_entropy
from kdfm_ray.method.merge import Targets, merge_targets
from kdfm_ray.models.backbone import Output

Forward = Callable[[Tensor], Output]
Align = Callable[[Tensor], Tensor]  # probabilities float32 [u, k] -> the same, aligned
Threshold = Callable[[Tensor], Tensor]  # probabilities float32 [u, k] -> threshold of each image
StrongViews = Callable[[Tensor], Tensor]  # positions int64 [m] -> uint8 [m, c, h, w]
Loss = Callable[[Tensor, Tensor], Tensor]
Merge = Callable[..., Targets]  # merge_targets with a rule bound to it


class StepOutput(NamedTuple):
    """The loss to differentiate, and sums (never means) over this worker's images."""

    loss: Float[Tensor, ""]
    sums: dict[str, Tensor]


def supervised_step(
    forward: Forward,
    images_x: UInt8[Tensor, "b c h w"],
    label_x: Int[Tensor, " b"],
    *,
    denom_x: float,
) -> StepOutput:
    """Cross-entropy on weak views of labeled images: what a labeled-only network does."""
    sum_x = cross_entropy(forward(images_x).logits, label_x).sum()
    loss = sum_x / denom_x
    return StepOutput(loss, {"loss_x": sum_x.detach()})


def fixmatch_step(
    forward: Forward,
    images_x: UInt8[Tensor, "b c h w"],
    label_x: Int[Tensor, " b"],
    weak_u: UInt8[Tensor, "u c h w"],
    strong_u: UInt8[Tensor, "u c h w"] | StrongViews,
    trusted_u: Int[Tensor, " u"],
    truth_u: Int[Tensor, " u"],
    counted_u: Bool[Tensor, " u"],
    *,
    tau: float | Threshold,
    lambda_u: float,
    unlabeled_loss: Loss,
    denom_x: float,
    denom_u: float,
    align: Align | None = None,
    merge: Merge = merge_targets,
) -> StepOutput:
    """The update of FixMatch, with trusted labels merged in (KD-FixMatch, Heuristic 1).

    Args:
        forward: the network in train mode; called twice: weak views alone and without a graph,
            then labeled and strong views together. Both passes update batch-norm statistics.
        images_x: weak views of labeled images.
        label_x: their classes.
        weak_u: weak views of unlabeled images.
        strong_u: strong views of the same images; or a function that makes those of given
            positions, and then images that give no loss are neither augmented nor passed. The
            loss is the same either way, but batch norm sees other images: another algorithm.
        trusted_u: their trusted labels, -1 where there is none (everywhere for plain FixMatch).
        truth_u: true classes for reports only, -1 where unknown.
        counted_u: images that have no label of their own, and so count in trusted figures.
        tau: confidence from which the network's own label counts (tau, or tau_inner); or a
            function of the (aligned) probabilities that gives each image its own.
        lambda_u: weight of the unlabeled loss.
        unlabeled_loss: per-image loss of ``(logits, target)``.
        denom_x: global labeled images / workers.
        denom_u: global unlabeled images / workers, whatever the mask lets through.
        align: what is done to the probabilities of weak views before they become labels.
        merge: ``merge_targets``, or the same with another rule than Heuristic 1.
    """
    with torch.no_grad():
        probs_u = forward(weak_u).logits.softmax(dim=1)
        if align is not None:
            probs_u = align(probs_u)
    targets = merge(probs_u, trusted_u, tau_inner=tau(probs_u) if callable(tau) else tau)

    target_u, mask_u = targets.target, targets.mask
    if callable(strong_u):
        kept = _kept(targets.mask, beside=len(images_x))
        strong_u, target_u, mask_u = strong_u(kept), target_u[kept], mask_u[kept]
    logits = forward(torch.cat([images_x, strong_u])).logits
    logits_x, logits_u = logits.split([len(images_x), len(strong_u)])
    sum_x = cross_entropy(logits_x, label_x).sum()
    sum_u = (unlabeled_loss(logits_u, target_u) * mask_u).sum()
    loss = sum_x / denom_x + lambda_u * sum_u / denom_u

    known = targets.mask & (truth_u >= 0)
    sums = {
        "loss_x": sum_x.detach(),
        "loss_u": sum_u.detach(),
        "mask": targets.mask.sum(),
        "counted": counted_u.sum(),
        "trusted": (targets.from_trusted & counted_u).sum(),
        "override": (targets.override & counted_u).sum(),
        "known": known.sum(),
        "correct": (known & (targets.target == truth_u)).sum(),
    }
    return StepOutput(loss, sums)


def _kept(mask: Bool[Tensor, " u"], *, beside: int) -> Int[Tensor, " m"]:
    """Positions of images that give a loss.

    One more, which gives none, where ``beside`` is a single image: batch norm cannot take one
    image alone through a feature map of one pixel.
    """
    kept = mask.nonzero()[:, 0]
    if len(kept) == 0 and beside == 1:
        kept = torch.zeros(1, dtype=torch.int64, device=mask.device)
    return kept
