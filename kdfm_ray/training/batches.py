"""The tensors of one update, as a function of (seed, role, step, worker) and of nothing else.

    B  labeled images of the global batch      U = mu * B  unlabeled ones
    b, u  this worker's share (they differ by at most one between workers)

Indices and random numbers are drawn for the whole global batch and then sliced, so any number of
workers sees the same global batches, and a resumed run needs no sampler state.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kdfm_ray.augment.params import StrongParams, WeakParams, draw_strong, draw_weak, take
from kdfm_ray.augment.views import strong_view, weak_view
from kdfm_ray.config import Config, Keep
from kdfm_ray.data.split import Split
from kdfm_ray.data.streams import IndexStream, rng, worker_slice
from kdfm_ray.method.fixmatch import StrongViews
from kdfm_ray.training.runtime import Runtime
from kdfm_ray.types import UNKNOWN


@dataclass(frozen=True)
class TrainingData:
    """What a network is trained on.

    Attributes:
        images: uint8 ``[N, H, W, C]``, labeled, unlabeled and validation images together.
        labels: int64 ``[N]``, -1 where unknown; used for training only at ``split.labeled_index``.
        split: positions in ``images``.
        trusted_label: int64 ``[N_u]`` by position in ``split.unlabeled_index``; -1 without one.
        flip: whether a horizontal flip keeps the class.
    """

    images: np.ndarray
    labels: np.ndarray
    split: Split
    trusted_label: np.ndarray
    flip: bool


@dataclass(frozen=True)
class Batch:
    """This worker's part of a global batch; unlabeled parts are empty for labeled-only training.

    ``strong_u`` is a function of positions where only images that give a loss are to be augmented.
    """

    images_x: Tensor
    label_x: Tensor
    weak_u: Tensor
    strong_u: Tensor | StrongViews
    trusted_u: Tensor
    truth_u: Tensor
    counted_u: Tensor


class ImageSource:
    """Gathers images by position and hands them over as uint8 ``[n, C, H, W]`` on the device.

    A CPU gathers them from the array or memory map: one copy, the batch itself. A GPU keeps the
    whole array where it may and can; otherwise a thread gathers the next batch into pinned memory
    while the current one trains, and the copy to the GPU waits for nobody.
    """

    def __init__(self, images: np.ndarray, device: torch.device, keep: Keep = "auto") -> None:
        """Take ``images`` uint8 ``[N, H, W, C]``; a memory map is read as batches ask for it.

        Args:
            images: all of them.
            device: where batches go.
            keep: ``gpu`` has a GPU keep the whole array, ``host`` never does, ``auto`` where it
                takes at most a quarter of the free memory; on a CPU all are the same.
        """
        self.device = device
        self._images = images
        self._resident: Tensor | None = None
        if device.type == "cuda" and (keep == "gpu" or (keep == "auto" and _fits(images, device))):
            self._resident = torch.tensor(images, device=device)
        self.reads_ahead = device.type == "cuda" and self._resident is None
        self._reader = ThreadPoolExecutor(2, "kdfm-read") if self.reads_ahead else None
        self._coming: dict[bytes, Future[Tensor]] = {}

    def __call__(self, index: np.ndarray) -> Tensor:
        """Images at ``index`` (int64 ``[n]``)."""
        if self._resident is not None:
            batch = self._resident[torch.from_numpy(index).to(self.device)]
        else:
            coming = self._coming.pop(index.tobytes(), None)
            read = self._read(index) if coming is None else coming.result()
            batch = read.to(self.device, non_blocking=True)
        return batch.permute(0, 3, 1, 2)

    def ahead(self, index: np.ndarray) -> None:
        """Images at ``index`` will be asked for next: begin to read them."""
        if self._reader is not None:
            self._coming[index.tobytes()] = self._reader.submit(self._read, index)

    def _read(self, index: np.ndarray) -> Tensor:
        batch = torch.from_numpy(self._images[index])
        return batch.pin_memory() if self.device.type == "cuda" else batch


class Batches:
    """All batches of one network's training, reachable by step."""

    def __init__(self, data: TrainingData, config: Config, role: str, runtime: Runtime) -> None:
        """Set up the two endless streams; nothing is read yet."""
        self.data, self.config, self.role, self.runtime = data, config, role, runtime
        self.source = ImageSource(data.images, runtime.device, config.data.device)
        self.supervised = role == "baseline"
        self.size_x = config.train.batch_size
        self.size_u = 0 if self.supervised else self.size_x * config.fixmatch.mu
        split, seed = data.split, config.seed
        self._stream_x = IndexStream(
            len(split.labeled_index), self.size_x, seed=seed, stream=f"{role}/index_x"
        )
        rank, world = runtime.rank, runtime.world_size
        self._part_x = worker_slice(self.size_x, rank, world)
        self._stream_u = None
        if self.size_u:
            self._part_u = worker_slice(self.size_u, rank, world)
            self._stream_u = IndexStream(
                len(split.unlabeled_index), self.size_u, seed=seed, stream=f"{role}/index_u"
            )
        # The truth of unlabeled images serves figures only, and a labeled image counts in none.
        self._truth = data.labels[split.unlabeled_index].copy()
        self._is_labeled = np.isin(split.unlabeled_index, split.labeled_index)
        self._truth[self._is_labeled] = UNKNOWN

    def at(self, step: int) -> Batch:
        """This worker's part of global batch ``step`` (0-based)."""
        images_x, label_x = self._labeled(step)
        if self._stream_u is None:
            empty = torch.empty(0, dtype=torch.int64)
            none = images_x[:0]
            return Batch(images_x, label_x, none, none, empty, empty, empty.bool())
        part = self._part_u
        position = self._stream_u.at(step)[part]
        images_u = self.source(self.data.split.unlabeled_index[position])
        self._read_ahead(step + 1)
        weak, strong = self._draw_unlabeled(step)
        return Batch(
            images_x=images_x,
            label_x=label_x,
            weak_u=weak_view(images_u, take(weak, part)),
            strong_u=self._strong(images_u, take(strong, part)),
            trusted_u=self._to_device(self.data.trusted_label[position]),
            truth_u=self._to_device(self._truth[position]),
            counted_u=self._to_device(~self._is_labeled[position]),
        )

    def _read_ahead(self, step: int) -> None:
        if not self.source.reads_ahead or self._stream_u is None or step >= self.config.train.steps:
            return
        split = self.data.split
        self.source.ahead(split.labeled_index[self._stream_x.at(step)[self._part_x]])
        self.source.ahead(split.unlabeled_index[self._stream_u.at(step)[self._part_u]])

    def _strong(self, images: Tensor, params: StrongParams) -> Tensor | StrongViews:
        if self.config.fixmatch.strong_views == "all":
            return strong_view(images, params)

        def some(position: Tensor) -> Tensor:
            return strong_view(images.index_select(0, position), take(params, _numpy(position)))

        return some

    def _labeled(self, step: int) -> tuple[Tensor, Tensor]:
        part = self._part_x
        index = self.data.split.labeled_index[self._stream_x.at(step)[part]]
        params = draw_weak(
            rng(self.config.seed, step, f"{self.role}/weak_x"),
            self.size_x,
            size=self._image_size,
            shift=self.config.augment.shift,
            flip=self.data.flip,
        )
        images = weak_view(self.source(index), take(params, part))
        return images, self._to_device(self.data.labels[index])

    def _draw_unlabeled(self, step: int) -> tuple[WeakParams, StrongParams]:
        seed, augment = self.config.seed, self.config.augment
        weak = draw_weak(
            rng(seed, step, f"{self.role}/weak_u"),
            self.size_u,
            size=self._image_size,
            shift=augment.shift,
            flip=self.data.flip,
        )
        strong = draw_strong(
            rng(seed, step, f"{self.role}/strong_u"),
            self.size_u,
            size=self._image_size,
            shift=augment.shift,
            flip=self.data.flip,
            num_ops=augment.num_ops,
            prob=augment.op_prob,
            cutout=augment.cutout,
        )
        return weak, strong

    @property
    def _image_size(self) -> tuple[int, int]:
        return self.data.images.shape[1], self.data.images.shape[2]

    def _to_device(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.runtime.device)


def _numpy(values: Tensor) -> np.ndarray:
    return np.asarray(values.cpu().numpy())


def _fits(images: np.ndarray, device: torch.device) -> bool:
    free, _ = torch.cuda.mem_get_info(device)
    return images.nbytes <= free // 4
