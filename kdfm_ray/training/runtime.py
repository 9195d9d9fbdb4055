"""The seam between the loop and whatever runs it: a handful of facts and three collective acts.

``jobs/crew.py`` fills it in from Ray Train; a test or a notebook makes one by hand. Collectives
go through ``torch.distributed``, which whoever starts several workers has set up.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from kdfm_ray.augment.captured import recordings
from kdfm_ray.types import Emit, Event

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h


def keep_freed_memory() -> None:
    """Have this process keep the memory that tensors leave, for the next ones.

    An update frees and takes the same tensors of some megabytes over and over. glibc gives such
    memory back to the system each time, and every page of it is faulted in anew: some per cent of
    an update on a CPU. Without glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return
    mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(M_TOP_PAD, 256 << 20)


def give_back_memory() -> None:
    """Give the system what this process kept, before it waits for long."""
    gc.collect()
    if torch.cuda.is_initialized():
        recordings.forget()
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def keeping_memory(device: torch.device) -> Iterator[None]:
    """Within the block, freed memory is kept where a CPU computes; then the system has it back."""
    if device.type == "cpu":
        keep_freed_memory()
    try:
        yield
    finally:
        give_back_memory()


def ignore(event: Event) -> None:
    """Listen to nothing."""


class Wish(IntEnum):
    """What somebody outside wants of a training; of several wishes the highest counts."""

    NONE = 0
    SAVE = 1  # this worker's machine will be taken away soon
    STOP = 2  # the user wants to go on another time: save, and end


def no_wish(updates: int) -> Wish:
    """Nobody wants anything."""
    return Wish.NONE


@dataclass(frozen=True)
class Runtime:
    """Where this worker stands.

    Attributes:
        rank: 0 .. world_size - 1; rank 0 reports and saves.
        world_size: number of workers.
        device: where this worker computes.
        emit: takes progress events; called by rank 0 only.
        wish: asked about once a second, on every worker at the same step, with the number of
            updates since it was asked last.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    emit: Emit = ignore
    wish: Callable[[int], Wish] = no_wish

    def wrap(self, network: nn.Module, *, norm_sync: str) -> nn.Module:
        """The network with gradients averaged over workers.

        Batch-norm buffers stay a worker's own while training, where they are not read;
        ``average_buffers`` brings them together before they are.
        """
        if norm_sync == "global":
            if self.device.type != "cuda":
                raise ValueError(
                    "train.norm_sync = global is torch's SyncBatchNorm, which runs on GPUs only: "
                    "use train.norm_sync = local on CPUs"
                )
            network = convert_sync_batchnorm(network)  # torch's own drops timm's activations
        if self.world_size == 1:
            return network
        device_ids = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(
            network,
            device_ids=device_ids,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )

    def sum_over_workers(self, values: Tensor) -> Tensor:
        """Elementwise sum, in place, the same on all workers."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, values: list[int]) -> list[int]:
        """Elementwise largest over workers: what one of them wants, all of them do."""
        if self.world_size == 1:
            return values
        found = torch.tensor(values, device=self.device)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return [int(value) for value in found.tolist()]

    def gather(self, values: Tensor) -> Tensor:
        """The ``[n]`` of every worker, as ``[world_size, n]`` on all of them."""
        if self.world_size == 1:
            return values[None]
        rows = [torch.empty_like(values) for _ in range(self.world_size)]
        dist.all_gather(rows, values.contiguous())
        return torch.stack(rows)

    @torch.no_grad()
    def average_buffers(self, network: nn.Module) -> None:
        """Mean of floating-point buffers (running statistics) over workers, in place."""
        if self.world_size == 1:
            return
        buffers = [b for b in network.buffers() if b.is_floating_point()]
        if not buffers:
            return
        flat = self.sum_over_workers(torch.cat([b.flatten() for b in buffers])) / self.world_size
        parts = flat.split([b.numel() for b in buffers])
        for buffer, mean in zip(buffers, parts, strict=True):
            buffer.copy_(mean.view_as(buffer))
