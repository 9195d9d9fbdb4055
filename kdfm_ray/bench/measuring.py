"""What the benchmarks share: checks of flags, memory, and the facts beside every number."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from kdfm_ray.jobs.session import cpu_name
from kdfm_ray.types import UserError


def positive(flags: object, *names: str) -> None:
    """Raise ``UserError`` unless those attributes are 1 or more."""
    for name in names:
        value = getattr(flags, name)
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be 1 or more")


def where(device: torch.device) -> dict[str, Any]:
    """Device, processor and torch version."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"device": device.type, "cpu": cpu_name(), "gpu": gpu, "torch": torch.__version__}


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far: by tensors on a GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median time of ``work``, after one untimed call."""
    seconds = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))
