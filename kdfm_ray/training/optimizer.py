"""Optimizers, what they decay, and the learning rate's schedule."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from kdfm_ray.models.backbone import Network

OPTIMIZERS = ("sgd", "adamw")
FUSED_DEVICES = ("cpu", "cuda")  # one kernel for all weights


def cosine_factor(step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """What the learning rate is multiplied by at ``step`` (from 0) of ``total_steps``.

    ``cos(7 pi t / 16 T)`` (FixMatch, arXiv 2001.07685, section 2.4): from 1 down to 0.195. With
    ``warmup_steps`` it climbs linearly first, and the cosine spans the steps that are left.
    """
    assert 0 <= step <= total_steps, (step, total_steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return math.cos(7 * math.pi / 16 * progress)


def make_optimizer(
    name: str,
    network: Network,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    layer_decay: float | None = None,
) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over the network's weights.

    Call it when the network is on its device.

    Args:
        name: ``sgd`` or ``adamw``.
        network: not yet wrapped by DDP.
        learning_rate: at the top of the schedule; of the last layer with ``layer_decay``.
        momentum: of SGD; AdamW keeps (0.9, 0.999).
        weight_decay: not on norms, biases, and what the backbone itself excludes.
        layer_decay: each layer nearer to the image learns this much slower than the next;
            ``None`` for one rate.

    Raises:
        ValueError: unknown name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}")
    groups = parameter_groups(network, weight_decay, layer_decay)
    for group in groups:
        group["lr"] = learning_rate * group.pop("lr_scale", 1.0)
    fused = next(network.parameters()).device.type in FUSED_DEVICES
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, fused=fused)
    return torch.optim.SGD(
        groups, lr=learning_rate, momentum=momentum, nesterov=momentum > 0, fused=fused
    )


def parameter_groups(
    network: Network, weight_decay: float, layer_decay: float | None = None
) -> list[dict[str, Any]]:
    """Groups that hold every weight once, with its ``weight_decay`` and, by layer, ``lr_scale``."""
    backbone: nn.Module = network.backbone
    exclude: Collection[str] = getattr(backbone, "no_weight_decay", set)()
    if layer_decay is None:
        groups = param_groups_weight_decay(backbone, weight_decay, no_weight_decay_list=exclude)
    else:
        groups = param_groups_layer_decay(
            backbone, weight_decay, no_weight_decay_list=exclude, layer_decay=layer_decay
        )
    return list(groups)
