"""How long an optimizer update takes, and where the time goes: the training loop's own update."""

from __future__ import annotations

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import tyro
from torch import Tensor

from kdfm_ray.bench.measuring import (
    make_network,
    peak_memory_mb,
    pick_device,
    pick_numerics,
    positive,
    reset_peak_memory,
    where,
)
from kdfm_ray.bench.pictures import check_size, crops, training_data
from kdfm_ray.config import Config, parse_config
from kdfm_ray.data.streams import rng
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.batches import Batch
from kdfm_ray.training.loop import Training
from kdfm_ray.training.runtime import Runtime, keep_freed_memory
from kdfm_ray.types import UserError

NEVER_SURE = 2.0  # a threshold above every confidence: then only trusted labels pass the mask
WARMUP = 3  # untimed updates
NUM_LABELED = 400
MAX_IMAGES, MAX_BYTES = 20_000, 2**28


@dataclass(frozen=True)
class StepBench:
    """Time optimizer updates of the FixMatch step on crops of real photos."""

    model: Annotated[str, tyro.conf.arg(help="backbone, as in model.name")] = "wrn_28_2"
    global_batch: Annotated[int, tyro.conf.arg(help="labeled images an update, all workers")] = 16
    mu: Annotated[int, tyro.conf.arg(help="unlabeled images per labeled one")] = 7
    size: Annotated[int, tyro.conf.arg(help="pixels a side")] = 32
    steps: Annotated[int, tyro.conf.arg(help="timed updates")] = 10
    threads: Annotated[int, tyro.conf.arg(help="torch threads of a worker; 0: all cores")] = 0
    workers: Annotated[int, tyro.conf.arg(help="processes that share the batch (DDP, gloo)")] = 1
    mask_rate: Annotated[
        float, tyro.conf.arg(help="share of unlabeled images that give a loss, by construction")
    ] = 1.0
    strong_views: Annotated[
        Literal["auto", "all", "masked"],
        tyro.conf.arg(help="as in fixmatch.strong_views; auto: masked where mask-rate is below 1"),
    ] = "auto"
    norm: Annotated[Literal["batch", "group"], tyro.conf.arg(help="as in model.norm")] = "batch"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    compile: Annotated[
        Literal["auto", "on", "off"],
        tyro.conf.arg(help="as in train.compile; auto: off, as in runs that are not of hours"),
    ] = "auto"
    device: Annotated[
        Literal["auto", "cpu", "gpu"], tyro.conf.arg(help="auto: the GPU where there is one")
    ] = "auto"
    json: Annotated[bool, tyro.conf.arg(help="print one JSON object")] = False

    def run(self) -> dict[str, Any]:
        """Measure.

        Raises:
            UserError: a flag out of range.
        """
        positive(self, "global_batch", "mu", "steps", "workers")
        if not 0 <= self.mask_rate <= 1:
            raise UserError(f"--mask-rate {self.mask_rate} must be between 0 and 1")
        check_size(self.size)
        device = pick_device(self.device)
        if self.workers > 1 and device.type == "cuda":
            raise UserError("--workers above 1 is for CPUs here; train with Ray to use more GPUs")
        config = self._config()
        threads = self.threads or max(1, (os.cpu_count() or 1) // self.workers)
        torch.set_num_threads(threads)
        numerics = pick_numerics(
            self.model,
            self.size,
            self.precision,
            self.memory_format,
            device,
            compile=self.compile,
            norm=self.norm,
            batch_x=-(-self.global_batch // self.workers),
            mu=self.mu,
        )
        job = _Job(self, config, numerics, threads)
        timed = job.alone(device) if self.workers == 1 else job.side_by_side()
        seconds = float(np.median(timed.seconds))
        views = self.global_batch * (1 + 2 * self.mu)
        return {
            "benchmark": "step",
            "seconds_per_step": seconds,
            "images_per_second": views / seconds,
            "mean_seconds_per_step": float(np.mean(timed.seconds)),
            "steps": self.steps,
            "model": self.model,
            "norm": self.norm,
            "global_batch": self.global_batch,
            "mu": self.mu,
            "size": self.size,
            "mask_rate": round(self.mask_rate * self.global_batch * self.mu)
            / (self.global_batch * self.mu),
            "strong_views": config.fixmatch.strong_views,
            "precision": numerics.precision,
            "memory_format": numerics.memory_format,
            "compile": numerics.compile,
            "share": timed.shares(),
            "workers": self.workers,
            "threads": threads,
            "peak_memory_mb": timed.peak_memory_mb,
        } | where(device)

    def _config(self) -> Config:
        masked = (
            self.mask_rate < 1 if self.strong_views == "auto" else self.strong_views == "masked"
        )
        return parse_config(
            {
                "data": {"name": "digits"},  # nothing of it is read: the pictures are our own
                "model": {"name": self.model, "norm": self.norm},
                "train": {
                    "batch_size": self.global_batch,
                    "steps": WARMUP + 2 * self.steps,
                    "precision": self.precision,
                    "memory_format": self.memory_format,
                    "compile": self.compile,
                },
                "fixmatch": {"mu": self.mu, "strong_views": "masked" if masked else "all"},
                "scale": {"num_workers": self.workers},
            }
        )


@dataclass
class Timed:
    """What was measured: seconds of each update, and the fractions that parts of it take."""

    seconds: list[float]
    parts: dict[str, float]
    peak_memory_mb: float

    def shares(self) -> dict[str, float]:
        """Fractions of the time; what is neither augmentation nor optimizer is the network."""
        return self.parts | {"network": 1 - sum(self.parts.values())}


@dataclass(frozen=True)
class _Job:
    """What a worker process needs to know."""

    bench: StepBench
    config: Config
    numerics: Numerics
    threads: int

    def alone(self, device: torch.device) -> Timed:
        return self._time(Runtime(device=device))

    def side_by_side(self) -> Timed:
        """Workers in processes of their own; those of the slowest rank count."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(_worker, (self, folder), nprocs=self.bench.workers)
            found: list[Timed] = [
                torch.load(f"{folder}/{rank}.pt", weights_only=False)
                for rank in range(self.bench.workers)
            ]
        found.sort(key=lambda timed: sum(timed.seconds))
        return dataclasses.replace(
            found[-1], peak_memory_mb=sum(timed.peak_memory_mb for timed in found)
        )

    def _time(self, runtime: Runtime) -> Timed:
        torch.set_num_threads(self.threads)
        if runtime.device.type == "cpu":
            keep_freed_memory()
        reset_peak_memory(runtime.device)
        bench = self.bench
        few = max(NUM_LABELED, bench.global_batch * bench.mu)
        many = min(MAX_IMAGES, MAX_BYTES // (3 * bench.size**2))
        pictures = crops(max(few, many), bench.size)
        inner = self.config.inner.model_copy(update={"tau_inner": NEVER_SURE})
        training = Training(
            make_network(bench.model, bench.size, norm=bench.norm),
            training_data(pictures, NUM_LABELED),
            self.config.model_copy(update={"inner": inner}),
            "inner",
            runtime,
            self.numerics,
        )
        clock = _Clock(runtime.device)
        _take_times(training, clock, bench.mask_rate)

        def updates(first: int, count: int) -> list[float]:
            seconds = []
            for step in range(first, first + count):
                started = clock.now()
                training.update(step)
                seconds.append(clock.now() - started)
            return seconds

        updates(0, WARMUP)
        seconds = updates(WARMUP, bench.steps)
        # The parts in updates of their own: on a GPU, looking at them keeps work from overlapping.
        clock.runs = True
        again = sum(updates(WARMUP + bench.steps, bench.steps))
        parts = {name: value / again for name, value in clock.parts.items()}
        return Timed(seconds, parts, peak_memory_mb(runtime.device))


class _Clock:
    """Adds up the time of parts; waits for a GPU, so that its work counts where it belongs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.runs = False
        self.parts = {"augmentation": 0.0, "optimizer": 0.0}

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def timing(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if not self.runs:
                return function(*args, **kwargs)
            started = self.now()
            result = function(*args, **kwargs)
            self.parts[part] += self.now() - started
            return result

        return timed


def _take_times(training: Training, clock: _Clock, mask_rate: float) -> None:
    """Have the parts of an update timed, and give each batch its mask."""
    make = clock.timing("augmentation", training.batches.at)

    def at(step: int) -> Batch:
        batch: Batch = make(step)
        strong = batch.strong_u
        if callable(strong):
            strong = clock.timing("augmentation", strong)
        return dataclasses.replace(
            batch, strong_u=strong, trusted_u=_mask(batch.trusted_u, mask_rate, step)
        )

    # The very objects that the update uses, with a clock around them.
    training.batches.at = at  # type: ignore[method-assign]
    training.optimizer.step = clock.timing(  # type: ignore[method-assign]
        "optimizer", training.optimizer.step
    )
    training.ema.update = clock.timing(  # type: ignore[method-assign]
        "optimizer", training.ema.update
    )


def _mask(trusted: Tensor, rate: float, step: int) -> Tensor:
    """Trusted labels for that share of the images, anywhere in the batch; none for the others."""
    labels = np.full(len(trusted), -1, dtype=np.int64)
    chosen = rng(0, step, "bench/mask").permutation(len(trusted))[: round(rate * len(trusted))]
    labels[chosen] = 0
    return torch.from_numpy(labels).to(trusted.device)


def _worker(rank: int, job: _Job, folder: str) -> None:
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=job.bench.workers,
    )
    try:
        timed = job._time(Runtime(rank=rank, world_size=job.bench.workers))
        torch.save(timed, f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
