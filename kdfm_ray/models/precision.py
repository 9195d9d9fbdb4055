"""The arithmetic of a forward pass."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """A context for forward passes: float32 throughout, or bfloat16 where torch holds it safe.

    Weights, gradients and optimizer state stay float32 either way. The backward pass belongs
    outside the context.

    Raises:
        ValueError: ``precision`` is neither ``fp32`` nor ``bf16``.
    """
    if precision == "fp32":
        return nullcontext()
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    raise ValueError(f"unknown precision {precision!r}; choose fp32 or bf16")
