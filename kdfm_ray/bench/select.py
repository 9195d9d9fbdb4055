"""How long the trusted subset takes, and how much memory: made-up embeddings with known classes."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from kdfm_ray.bench.measuring import peak_memory_mb, pick_device, positive, where
from kdfm_ray.config import SelectConfig
from kdfm_ray.jobs.select import clusterer_options
from kdfm_ray.trust.rows import ArrayRows
from kdfm_ray.trust.select import select_trusted

SPREAD = 1.0  # of a class around its center; centers are about 4 apart
SURE_SHARE = 0.95  # of pseudo labels that are right


@dataclass(frozen=True)
class SelectBench:
    """Time the choice of the trusted subset on normal clouds, one for each class."""

    count: Annotated[int, tyro.conf.arg(help="embeddings")] = 60_000
    dim: Annotated[int, tyro.conf.arg(help="size of an embedding")] = 64
    classes: Annotated[int, tyro.conf.arg(help="classes, and clusters")] = 10
    clusterer: Annotated[
        Literal["dec", "idec", "kmeans", "gmm", "none"], tyro.conf.arg(help="as select.clusterer")
    ] = "dec"
    sample_size: Annotated[int, tyro.conf.arg(help="as select.sample_size; 0: all of them")] = (
        SelectConfig().sample_size
    )
    threads: Annotated[int, tyro.conf.arg(help="torch threads; 0: all cores")] = 0
    device: Literal["auto", "cpu", "gpu"] = "auto"
    json: Annotated[bool, tyro.conf.arg(help="print one JSON object")] = False

    def run(self) -> dict[str, Any]:
        """Measure.

        Raises:
            UserError: a flag out of range.
        """
        positive(self, "count", "dim", "classes")
        device = pick_device(self.device)
        threads = self.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        embeddings, probs, truth = clouds(self.count, self.dim, self.classes)
        before = peak_memory_mb(device)
        settings = SelectConfig()
        started = time.perf_counter()
        selection = select_trusted(
            ArrayRows(embeddings),
            probs.argmax(1),
            probs.max(1),
            num_classes=self.classes,
            tau=settings.tau_select,
            clusterer=self.clusterer,
            num_clusters=None,
            labeled_index=np.arange(0),
            labeled_class=np.arange(0),
            labeled_weight=settings.labeled_weight,
            truth=truth,
            sample_size=self.sample_size or self.count,
            seed=0,
            device=device.type,
            gpu=device.type == "cuda",
            options=clusterer_options(settings),
            allowed_fall=settings.allowed_fall,
            class_names=[str(k) for k in range(self.classes)],
        )
        seconds = time.perf_counter() - started
        return {
            "benchmark": "select",
            "seconds": seconds,
            "embeddings_per_second": self.count / seconds,
            "trusted": len(selection.trusted_index),
            "precision": selection.record["filters"]["agreement"]["precision"],
            "count": self.count,
            "dim": self.dim,
            "classes": self.classes,
            "clusterer": self.clusterer,
            "sample_size": self.sample_size or self.count,
            "threads": threads,
            "memory_before_mb": before,
            "peak_memory_mb": peak_memory_mb(device),
        } | where(device)


def clouds(count: int, dim: int, classes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings ``[n, d]`` and probabilities ``[n, k]`` in float32, true classes int64 ``[n]``."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, classes, count)
    centers = rng.normal(0, 4 / np.sqrt(2), (classes, dim)).astype(np.float32)
    embeddings = rng.standard_normal((count, dim), dtype=np.float32)
    embeddings *= SPREAD
    embeddings += centers[truth]
    wrong = rng.random(count) > SURE_SHARE
    said = np.where(wrong, rng.integers(0, classes, count), truth)
    confidence = rng.uniform(0.6, 1.0, count).astype(np.float32)
    probs = np.repeat(((1 - confidence) / max(1, classes - 1))[:, None], classes, axis=1)
    probs[np.arange(count), said] = confidence
    return embeddings, probs, truth.astype(np.int64)
