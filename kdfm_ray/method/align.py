"""Distribution alignment: pseudo labels that come in the proportions of the labels.

ReMixMatch (Berthelot et al. 2020, arXiv 1911.09785, section 3.1). What a network says of unlabeled
images drifts towards a few classes; it is divided by how often it has said each class lately, and
multiplied by how often the class should come.

Legend: n images of this worker, k classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

MOMENTUM = 0.99  # ReMixMatch takes the mean of the last 128 batches; this one forgets as slowly
LEAST = 1e-6  # of a class that was never predicted: nothing is divided by zero


class Alignment(nn.Module):
    """``p * target / mean(p)``, normalized, with a moving mean over the batches so far.

    The mean is that of the global batch, so all workers have the same one. It is part of a
    training's state.
    """

    target: Tensor
    mean: Tensor
    weight: Tensor

    def __init__(
        self, target: Float[Tensor, " k"], sum_over_workers: Callable[[Tensor], Tensor]
    ) -> None:
        """Align with ``target``.

        Args:
            target: share of each class, greater than or equal to 0; normalized here.
            sum_over_workers: elementwise sum of a tensor over all workers.

        Raises:
            ValueError: no class has a share.
        """
        super().__init__()
        if not bool((target >= 0).all()) or not bool(target.sum() > 0):
            raise ValueError(f"target must be shares of classes, got {target.tolist()}")
        self._sum = sum_over_workers
        self.register_buffer("target", (target / target.sum()).float())
        self.register_buffer("mean", torch.zeros_like(self.target))
        self.register_buffer("weight", torch.zeros((), device=target.device))

    @torch.no_grad()
    def forward(self, probs: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Take a batch of softmax outputs into the mean, and align it.

        Args:
            probs: of weak views; float32.

        Returns:
            The same images, each row with a sum of 1.
        """
        count = torch.full_like(probs[0, :1], len(probs)) if len(probs) else probs.new_zeros(1)
        totals = self._sum(torch.cat([probs.sum(dim=0), count]).float())
        batch_mean = totals[:-1] / totals[-1].clamp(min=1)
        self.mean.mul_(MOMENTUM).add_(batch_mean, alpha=1 - MOMENTUM)
        self.weight.mul_(MOMENTUM).add_(1 - MOMENTUM)
        lately = (self.mean / self.weight).clamp(min=LEAST)
        aligned = probs * (self.target / lately)
        return aligned / aligned.sum(dim=1, keepdim=True).clamp(min=LEAST)


def class_shares(labels: Int[Tensor, " n"], num_classes: int) -> Float[Tensor, " k"]:
    """Share of each class among ``labels`` (int64 ``[n]``)."""
    return torch.bincount(labels, minlength=num_classes).float() / max(1, len(labels))
