"""The labeling pass against a bare forward loop over the same images on the same cores."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from kdfm_ray.bench.measuring import (
    make_network,
    peak_memory_mb,
    pick_device,
    pick_numerics,
    positive,
    reset_peak_memory,
    where,
)
from kdfm_ray.bench.pictures import NUM_CLASSES, crops, training_data
from kdfm_ray.config import LabelConfig
from kdfm_ray.jobs.label import Labeler, LabelTask, shards
from kdfm_ray.jobs.label_files import PARTS
from kdfm_ray.models.backbone import Network, save_network
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Store
from kdfm_ray.training.runtime import ignore, keep_freed_memory


@dataclass(frozen=True)
class LabelBench:
    """Time the labeling of crops of real photos: what an actor does, Parquet files included."""

    model: Annotated[str, tyro.conf.arg(help="backbone, as in model.name")] = "wrn_28_2"
    size: Annotated[int, tyro.conf.arg(help="pixels a side")] = 32
    count: Annotated[int, tyro.conf.arg(help="images to label")] = 8192
    batch_size: Annotated[int, tyro.conf.arg(help="as label.batch_size")] = LabelConfig().batch_size
    repeats: Annotated[int, tyro.conf.arg(help="passes of either kind, taking turns")] = 3
    threads: Annotated[int, tyro.conf.arg(help="torch threads; 0: all cores")] = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    memory_format: Literal["auto", "channels_last", "contiguous"] = "auto"
    device: Literal["auto", "cpu", "gpu"] = "auto"
    json: Annotated[bool, tyro.conf.arg(help="print one JSON object")] = False

    def run(self) -> dict[str, Any]:
        """Measure.

        Raises:
            UserError: a flag out of range.
        """
        positive(self, "count", "batch_size", "repeats")
        device = pick_device(self.device)
        threads = self.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        if device.type == "cpu":
            keep_freed_memory()
        pictures = crops(self.count, self.size)
        numerics = pick_numerics(self.model, self.size, self.precision, self.memory_format, device)
        reset_peak_memory(device)
        network = make_network(self.model, self.size).eval()
        with tempfile.TemporaryDirectory() as folder:
            labeler = self._labeler(network, pictures, folder, numerics, device, threads)
            bare, whole = [], []
            bounds = shards(self.count, self.batch_size)
            _bare_loop(
                network, pictures.images[: self.batch_size], self.batch_size, numerics, device
            )
            labeler(_columns(bounds[:1]))
            for _ in range(self.repeats):  # taking turns, as machines get faster and slower
                started = time.perf_counter()
                _bare_loop(network, pictures.images, self.batch_size, numerics, device)
                bare.append(time.perf_counter() - started)
                started = time.perf_counter()
                labeler(_columns(bounds))
                whole.append(time.perf_counter() - started)
        rate, bare_rate = self.count / np.median(whole), self.count / np.median(bare)
        return {
            "benchmark": "label",
            "images_per_second": float(rate),
            "bare_forward_images_per_second": float(bare_rate),
            "ratio": float(np.median([b / w for b, w in zip(bare, whole, strict=True)])),
            "model": self.model,
            "size": self.size,
            "count": self.count,
            "batch_size": self.batch_size,
            "precision": numerics.precision,
            "memory_format": numerics.memory_format,
            "threads": threads,
            "peak_memory_mb": peak_memory_mb(device),
        } | where(device)

    def _labeler(
        self,
        network: Network,
        pictures: Any,
        folder: str,
        numerics: Numerics,
        device: torch.device,
        threads: int,
    ) -> Labeler:
        """The actor of the labeling job, over a store that has what it reads."""
        store = Store(folder)
        with store.writing("outer", "bench") as draft:
            save_network(network, draft.path)
            draft.write_record({})
        with store.writing("dataset", "bench") as draft:
            np.save(draft.path / "train_images.npy", pictures.images)
            np.save(draft.path / "train_labels.npy", pictures.labels)
            draft.write_record({"classes": [str(k) for k in range(NUM_CLASSES)]})
        with store.writing("split", "bench") as draft:
            training_data(pictures, 1).split.save(draft.path / "split.npz")
            draft.write_record({})
        Path(folder, PARTS).mkdir()
        task = LabelTask(
            store=folder,
            folder=f"{folder}/{PARTS}",
            outer="bench",
            dataset="bench",
            split="bench",
            numerics=numerics,
            batch_size=self.batch_size,
            use_gpu=device.type == "cuda",
            threads=threads,
            run="bench",
            max_failures=sys.maxsize,
        )
        return Labeler(task, ignore)


@torch.inference_mode()
def _bare_loop(
    network: Network,
    images: np.ndarray,
    batch_size: int,
    numerics: Numerics,
    device: torch.device,
) -> None:
    """Forward passes and nothing else."""
    network = numerics.place(network, device)
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size]).to(device)
        with numerics.autocast(device):
            network(batch.permute(0, 3, 1, 2))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _columns(bounds: list[dict[str, int]]) -> dict[str, np.ndarray]:
    return {name: np.array([b[name] for b in bounds]) for name in ("start", "stop")}
