"""Classification losses, one value per example; the caller decides how to reduce them.

Legend: n examples, k classes. Targets are class numbers. Everything is computed in float32
whatever the logits' dtype (float64 stays float64), so bfloat16 never meets a logarithm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

Loss = Callable[[Tensor, Tensor], Tensor]

LOG_ZERO = math.log(1e-4)  # what reverse cross-entropy takes for log 0
LOSSES = ("ce", "sce", "gce")


def make_loss(name: str, *, alpha: float, beta: float, q: float) -> Loss:
    """Pick a per-example loss by its config name; each takes only the parameters it knows.

    Args:
        name: ``ce``, ``sce`` (uses ``alpha`` and ``beta``) or ``gce`` (uses ``q``).
        alpha: weight of cross-entropy in ``sce``.
        beta: weight of reverse cross-entropy in ``sce``.
        q: exponent of ``gce``, 0 < q <= 1.

    Raises:
        ValueError: the name is not one of the three, or ``q`` is out of range for ``gce``.
    """
    if name == "ce":
        return cross_entropy
    if name == "sce":
        return partial(symmetric_cross_entropy, alpha=alpha, beta=beta)
    if name == "gce":
        if not 0 < q <= 1:
            raise ValueError(f"the gce loss got q={q}; q must lie in (0, 1]: small is near ce")
        return partial(generalized_cross_entropy, q=q)
    raise ValueError(f"unknown loss {name!r}; choose one of {', '.join(LOSSES)}")


def cross_entropy(logits: Float[Tensor, "n k"], target: Int64[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``-log p[target]``."""
    return F.cross_entropy(_at_least_float32(logits), target, reduction="none")


def reverse_cross_entropy(
    logits: Float[Tensor, "n k"], target: Int64[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Cross-entropy with prediction and target swapped (arXiv 1908.06112, equation 5).

    A hard target has log 1 = 0 at its class and log 0 := log 1e-4 elsewhere, so the sum over
    classes is ``-log 1e-4 * (1 - p[target])``: bounded, which is why label noise harms it less.
    """
    return -LOG_ZERO * -torch.expm1(-cross_entropy(logits, target))


def symmetric_cross_entropy(
    logits: Float[Tensor, "n k"], target: Int64[Tensor, " n"], *, alpha: float, beta: float
) -> Float[Tensor, " n"]:
    """``alpha * CE + beta * RCE`` (arXiv 1908.06112, equation 7)."""
    forward = cross_entropy(logits, target)
    return alpha * forward + beta * reverse_cross_entropy(logits, target)


def generalized_cross_entropy(
    logits: Float[Tensor, "n k"], target: Int64[Tensor, " n"], *, q: float
) -> Float[Tensor, " n"]:
    """``(1 - p[target]^q) / q`` (arXiv 1805.07836, equation 6): ce as q -> 0, mean absolute at 1.

    ``p^q`` is written ``exp(-q * CE)``: the power's own gradient is infinite times zero where
    p underflows, this one is zero there.
    """
    return -torch.expm1(-q * cross_entropy(logits, target)) / q


def _at_least_float32(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
