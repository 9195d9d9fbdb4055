"""Real pictures for benchmarks, without a download: crops of the two photos in scikit-learn.

What augmentation costs depends on what is in the images: gray noise has no contrast to stretch, and
zeros nothing to equalize.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_sample_images

from kdfm_ray.data.split import Split
from kdfm_ray.training.batches import TrainingData
from kdfm_ray.types import UNKNOWN, ImageSet, UserError

NUM_CLASSES = 10
LARGEST = 426  # pixels a side: the photos are 427 x 640


def crops(count: int, size: int, *, seed: int = 0) -> ImageSet:
    """Random crops of a temple and a flower: uint8 ``[count, size, size, 3]``.

    A crop's class is its photo and the fifth of the photo's width in which it starts.

    Raises:
        UserError: the photos (427 x 640 pixels) have no crops of that size.
    """
    check_size(size)
    photos = load_sample_images().images
    height, width = photos[0].shape[:2]
    rng = np.random.default_rng(seed)
    which = rng.integers(0, len(photos), count)
    top = rng.integers(0, height - size, count)
    left = rng.integers(0, width - size, count)
    images = np.stack(
        [photos[k][y : y + size, x : x + size] for k, y, x in zip(which, top, left, strict=True)]
    )
    labels = which * 5 + left * 5 // (width - size)
    return ImageSet(images, labels.astype(np.int64))


def check_size(size: int) -> None:
    """Raise ``UserError`` unless the photos have crops of that size."""
    if not 8 <= size <= LARGEST:
        raise UserError(f"--size {size} must be 8 to {LARGEST} pixels")


def training_data(pictures: ImageSet, num_labeled: int) -> TrainingData:
    """The first pictures with labels, all of them as unlabeled ones too, none for validation."""
    everything = np.arange(len(pictures), dtype=np.int64)
    split = Split(
        labeled_index=everything[:num_labeled],
        unlabeled_index=everything,
        val_index=everything[:0],
        warnings=(),
    )
    trusted = np.full(len(pictures), UNKNOWN, dtype=np.int64)
    return TrainingData(pictures.images, pictures.labels, split, trusted, flip=True)
