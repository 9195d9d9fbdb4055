"""How many weak and strong views a second come out of augmentation, parameters drawn included."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from torchvision import transforms

from kdfm_ray.augment.captured import recordings
from kdfm_ray.augment.params import draw_strong, draw_weak
from kdfm_ray.augment.views import strong_view, weak_view
from kdfm_ray.bench.measuring import median_seconds, peak_memory_mb, pick_device, positive, where
from kdfm_ray.bench.pictures import crops
from kdfm_ray.config import AugmentConfig
from kdfm_ray.data.streams import rng

PEER_IMAGES = 256  # that the comparison augments one by one
SECONDS_EACH = 1.0  # about, of each measurement
DEFAULTS = AugmentConfig()


@dataclass(frozen=True)
class AugmentBench:
    """Time weak and strong views of crops of real photos, whole batches at once."""

    batch: Annotated[int, tyro.conf.arg(help="images at once; 448 = 7 x 64")] = 448
    size: Annotated[int, tyro.conf.arg(help="pixels a side")] = 32
    repeats: Annotated[int, tyro.conf.arg(help="batches timed; 0: for about a second")] = 0
    threads: Annotated[int, tyro.conf.arg(help="torch threads; 0: all cores")] = 0
    num_ops: Annotated[int, tyro.conf.arg(help="as augment.num_ops")] = DEFAULTS.num_ops
    op_prob: Annotated[float, tyro.conf.arg(help="as augment.op_prob")] = DEFAULTS.op_prob
    device: Literal["auto", "cpu", "gpu"] = "auto"
    peer: Annotated[bool, tyro.conf.arg(help="also time torchvision on PIL, image by image")] = True
    json: Annotated[bool, tyro.conf.arg(help="print one JSON object")] = False

    def run(self) -> dict[str, Any]:
        """Measure.

        Raises:
            UserError: a flag out of range.
        """
        positive(self, "batch")
        device = pick_device(self.device)
        threads = self.threads or os.cpu_count() or 1
        torch.set_num_threads(threads)
        pictures = crops(self.batch, self.size).images
        images = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)
        size, step = (self.size, self.size), iter(range(1_000_000))

        def strong() -> None:
            params = draw_strong(
                rng(0, next(step), "bench/strong"),
                self.batch,
                size=size,
                flip=True,
                num_ops=self.num_ops,
                prob=self.op_prob,
            )
            strong_view(images, params)

        def weak() -> None:
            params = draw_weak(rng(0, next(step), "bench/weak"), self.batch, size=size, flip=True)
            weak_view(images, params)

        found: dict[str, Any] = {
            "benchmark": "augment",
            "strong_views_per_second": self.batch / self._seconds(strong, device),
            "weak_views_per_second": self.batch / self._seconds(weak, device),
        }
        if self.peer:
            rate = _torchvision(pictures[:PEER_IMAGES])
            found["torchvision_randaugment_per_second_and_core"] = rate
        return (
            found
            | {
                "batch": self.batch,
                "size": self.size,
                "num_ops": self.num_ops,
                "op_prob": self.op_prob,
                "threads": threads,
                "cuda_graph": len(recordings) > 0,
                "peak_memory_mb": peak_memory_mb(device),
            }
            | where(device)
        )

    def _seconds(self, work: Any, device: torch.device) -> float:
        repeats = self.repeats
        if repeats < 1:
            repeats = max(5, int(SECONDS_EACH / median_seconds(work, device, 3)))
        return median_seconds(work, device, repeats)


def _torchvision(images: np.ndarray) -> float:
    """Images a second of torchvision's RandAugment (two operations) and crop on PIL images."""
    side = images.shape[1]
    view = transforms.Compose(
        [
            transforms.RandomHorizontalFlip(),
            transforms.RandomCrop(side, padding=side // 8, padding_mode="reflect"),
            transforms.RandAugment(num_ops=2),
        ]
    )
    pictures = [Image.fromarray(image) for image in images]
    view(pictures[0])
    started = time.perf_counter()
    for picture in pictures:
        view(picture)
    return len(pictures) / (time.perf_counter() - started)
