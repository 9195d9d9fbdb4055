"""The exponential moving average of a network: what is evaluated, labels, and is shipped."""

from __future__ import annotations

from typing import Generic, TypeVar

import torch
from timm.utils import ModelEmaV3
from torch import nn

WARMUP_POWER = 3 / 4  # timm's advice for runs well under a million steps

N = TypeVar("N", bound=nn.Module)


class Ema(Generic[N]):
    """Keeps a copy of a network that follows it: weights and floating-point buffers are averaged.

    Integer buffers (batch counters) are copied. The copy stays in eval mode without gradients.
    The decay is a pure function of the step, so a resume needs ``network.state_dict()`` only:

        decay(step) = min(decay, 1 - (step + 1) ** -3/4)     with warm-up: 0.999 from step 10,000
        decay(step) = decay, but 0 at step 0                 without

    Without warm-up a short run still carries its start: after 1,500 updates at 0.999 a fifth of
    the average is the network as the first update left it.
    """

    def __init__(self, network: N, decay: float, warmup: bool) -> None:
        """Copy ``network`` (not a DDP wrapper of it), on its device and in its memory layout."""
        assert 0 <= decay < 1, decay
        self._average = ModelEmaV3(
            network, decay=decay, use_warmup=warmup, warmup_power=WARMUP_POWER
        )
        self.network.requires_grad_(False)
        self._followed = network
        # Listed once, as whoever changes them does so in place.
        mine, theirs = self.network.state_dict(), network.state_dict()
        averaged = [name for name, value in mine.items() if value.is_floating_point()]
        self._mine = [mine[name] for name in averaged]
        self._theirs = [theirs[name] for name in averaged]
        counters = [name for name in mine if name not in averaged]
        self._mine_copied = [mine[name] for name in counters]
        self._theirs_copied = [theirs[name] for name in counters]

    @property
    def network(self) -> N:
        """The averaged network."""
        module: N = self._average.module
        return module

    @torch.no_grad()
    def update(self, network: N, step: int) -> None:
        """Move towards ``network`` as the optimizer update of ``step`` (the first is 0) left it."""
        assert step >= 0, step
        assert network is self._followed, "another network than the one that was copied"
        weight = 1.0 - self._average.get_decay(step + 1)  # timm counts from 1
        torch._foreach_lerp_(self._mine, self._theirs, weight)
        if self._mine_copied:
            torch._foreach_copy_(self._mine_copied, self._theirs_copied)
