"""Thresholds that follow what the network is sure of, each class its own: FreeMatch.

Wang et al. 2023 (arXiv 2205.07246), section 3.1, self-adaptive thresholding. A fixed threshold of
0.95 leaves most unlabeled images out while the network is young, and for longer those of classes
that it finds hard.

Legend: n images of this worker, k classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

# The paper's 0.999 is for a million updates. This one forgets within the few hundred of short runs.
MOMENTUM = 0.99


class Thresholds(nn.Module):
    """``p[c] / max(p) * t``: the mean confidence, less for classes that are predicted less.

    ``t`` is the moving mean of the largest probability (equation 5), ``p`` that of all of them
    (equation 6); the threshold of class ``c`` is equation 8, and here at most a bound. All begin at
    1 / k. The means are those of the global batch, so all workers have the same ones. They are part
    of a training's state.
    """

    confidence: Tensor
    shares: Tensor

    def __init__(
        self, num_classes: int, most: float, sum_over_workers: Callable[[Tensor], Tensor]
    ) -> None:
        """Begin at 1 / k.

        Args:
            num_classes: k.
            most: no threshold is greater.
            sum_over_workers: elementwise sum of a tensor over all workers.
        """
        super().__init__()
        self._most, self._sum = most, sum_over_workers
        self.register_buffer("confidence", torch.tensor(1 / num_classes))
        self.register_buffer("shares", torch.full((num_classes,), 1 / num_classes))

    @torch.no_grad()
    def forward(self, probs: Float[Tensor, "n k"]) -> Float[Tensor, " n"]:
        """Take a batch of softmax outputs into the means.

        Args:
            probs: of weak views; float32.

        Returns:
            For each image the threshold of the class that it is most likely of.
        """
        count = probs.new_full((1,), len(probs))
        confidence = probs.amax(dim=1).sum(dim=0, keepdim=True)
        totals = self._sum(torch.cat([probs.sum(dim=0), confidence, count]).float())
        means = totals[:-1] / totals[-1].clamp(min=1)
        self.shares.lerp_(means[:-1], 1 - MOMENTUM)
        self.confidence.lerp_(means[-1], 1 - MOMENTUM)
        of_class = self.shares / self.shares.max() * self.confidence
        return of_class.clamp(max=self._most)[probs.argmax(dim=1)]
