"""What the benchmarks share: checks of flags, memory, and the facts beside every number."""

from __future__ import annotations

import contextlib
import gc
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdfm_ray.bench.pictures import NUM_CLASSES
from kdfm_ray.config import TrainConfig
from kdfm_ray.jobs.session import cpu_name
from kdfm_ray.models.backbone import Network, create_network
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.measure import Shape, candidates, measure
from kdfm_ray.training.runtime import give_back_memory
from kdfm_ray.types import UserError


def positive(flags: object, *names: str) -> None:
    """Raise ``UserError`` unless those attributes are 1 or more."""
    for name in names:
        value = getattr(flags, name)
        if value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} must be 1 or more")


def pick_device(name: str) -> torch.device:
    """``auto``, ``cpu`` or ``gpu`` as a device; ``UserError`` for a GPU that is not there."""
    if name == "gpu" and not torch.cuda.is_available():
        raise UserError("--device gpu, but torch sees no GPU here: use auto or cpu")
    use = name == "gpu" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if use else "cpu")


def make_network(model: str, size: int, *, norm: str = "batch") -> Network:
    """The same network each time, for color images."""
    try:
        return create_network(
            model,
            num_classes=NUM_CLASSES,
            image_channels=3,
            image_size=size,
            norm=norm,
            seed=0,
        )
    except ValueError as error:
        raise UserError(str(error)) from error


def pick_numerics(
    model: str,
    size: int,
    precision: str,
    memory_format: str,
    device: torch.device,
    *,
    compile: str = "off",
    norm: str = "batch",
    batch_x: int = 16,
    mu: int = 7,
) -> Numerics:
    """What the flags pin, and for the rest what is fastest in an update, as a run would choose."""
    train = TrainConfig.model_validate(
        {"precision": precision, "memory_format": memory_format, "compile": compile}
    )
    choices = candidates(train, device)
    if len(choices) == 1:
        return choices[0]
    shape = Shape(batch_x, batch_x * mu, (3, size, size), updates=0)
    return next(iter(measure(lambda: make_network(model, size, norm=norm), choices, shape, device)))


def where(device: torch.device) -> dict[str, Any]:
    """Device, processor and torch version."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"device": device.type, "cpu": cpu_name(), "gpu": gpu, "torch": torch.__version__}


def reset_peak_memory(device: torch.device) -> None:
    """Forget what was held before: the choice of numerics is no part of what is measured.

    Of a process this is Linux's to do; elsewhere its peak is of all that it did.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return
    give_back_memory()
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held since ``reset_peak_memory``: by tensors on a GPU, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
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
