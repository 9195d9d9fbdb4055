"""Strong views by the same kernels for every batch, whatever operations were drawn.

``views.grouped_view`` carries out each operation on the images that drew it: the least arithmetic,
and some hundred small kernels, other ones for every batch. A GPU waits for the host to launch
them. Here every image passes every operation and keeps what it drew: many times the arithmetic,
and always the same kernels on the same shapes, so that they can be recorded once and launched
together (``captured``). Bit for bit the same views.

Shapes: n images, c channels, h x w pixels, k operations per image.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from kdfm_ray.augment import geometry, pointwise
from kdfm_ray.augment.params import IDENTITY, NAMES, StrongParams

Images = UInt8[Tensor, "n c h w"]
Drawn = Int64[Tensor, " n"]
Magnitudes = Float[Tensor, " n"]

TABLES = (*pointwise.VALUE_TABLES, *pointwise.IMAGE_TABLES)
MIXERS = tuple(pointwise.MIXERS)


class Numbers(NamedTuple):
    """What the kernels read: arrays whose shapes do not depend on what was drawn.

    Attributes:
        dx, dy: int64 ``[n]``, of the weak view, and flip: bool ``[n]``.
        fixed: int32 ``[k, 6, n]``, a geometric operation or one that moves nothing, in the fixed
            point of ``geometry``.
        table, mixer: int64 ``[k, n]``, 1 + the position in ``TABLES`` or ``MIXERS``, or 0.
        magnitude: float32 ``[k, n]``.
        y, x, side: int64 ``[n]``, the box.
    """

    dx: np.ndarray
    dy: np.ndarray
    flip: np.ndarray
    fixed: np.ndarray
    table: np.ndarray
    mixer: np.ndarray
    magnitude: np.ndarray
    y: np.ndarray
    x: np.ndarray
    side: np.ndarray


def lay_out(params: StrongParams, size: tuple[int, int], n: int) -> Numbers:
    """The numbers for ``n`` images: those of ``params``, and others to which nothing is done."""
    rows = n - len(params.op)
    op = _longer(np.where(params.apply, params.op, IDENTITY), rows, fill=IDENTITY)
    magnitude = _longer(params.magnitude, rows)
    fixed = np.empty((op.shape[1], 6, n), dtype=np.int32)
    for slot in range(op.shape[1]):
        matrices = geometry.affine_matrices(_AFFINE[op[:, slot]], magnitude[:, slot], size)
        fixed[slot] = geometry.fixed_point(matrices)
    dx, dy, flip = (_longer(part, rows) for part in params.weak)
    side = params.cutout_side * params.cutout_apply
    return Numbers(
        dx=dx,
        dy=dy,
        flip=flip,
        fixed=fixed,
        table=_TABLE[op].T,
        mixer=_MIXER[op].T,
        magnitude=magnitude.T,
        y=_longer(params.cutout_y, rows),
        x=_longer(params.cutout_x, rows),
        side=_longer(side, rows),
    )


def dense_view(images: Images, sent: list[Tensor]) -> Images:
    """Strong views; ``sent`` are the ``Numbers`` of these images, on their device."""
    dx, dy, flip, fixed, table, mixer, magnitude, *box = sent
    size = (images.shape[2], images.shape[3])
    index = geometry.weak_index(dx, dy, flip, size)
    if len(fixed) == 0:
        return geometry.cut_out_(geometry.resample(images, index), *box)
    views = images
    for slot in range(len(fixed)):
        moved = geometry.affine_index(fixed[slot], size)
        if slot == 0:  # what comes before the first color is one index with the weak view
            moved = geometry.compose(index, moved, size)
        views = geometry.resample(views, moved)
        views = _recolored(views, table[slot], magnitude[slot])
        views = _mixed(views, mixer[slot], magnitude[slot])
    return geometry.cut_out_(views, *box)


def _recolored(images: Images, drawn: Drawn, magnitude: Magnitudes) -> Images:
    """Each image through the table that it drew."""
    n, c = images.shape[:2]
    tables = [pointwise.identity_tables(n, c, images.device)]
    tables += [make(magnitude).expand(n, c, 256) for make in pointwise.VALUE_TABLES.values()]
    tables += [make(images, magnitude) for make in pointwise.IMAGE_TABLES.values()]
    which = drawn.view(1, n, 1, 1).expand(1, n, c, 256)
    return pointwise.look_up(images, torch.stack(tables).gather(0, which)[0])


def _mixed(images: Images, drawn: Drawn, magnitude: Magnitudes) -> Images:
    """Each image mixed as it drew."""
    found = images
    for code, mix in enumerate(pointwise.MIXERS.values(), 1):
        here = (drawn == code).view(-1, 1, 1, 1)
        found = torch.where(here, mix(images, magnitude), found)
    return found


def _longer(values: np.ndarray, rows: int, fill: int = 0) -> np.ndarray:
    """Some rows more, all of ``fill``."""
    more = np.full((rows, *values.shape[1:]), fill, dtype=values.dtype)
    return np.concatenate([values, more])


def _places(names: tuple[str, ...]) -> np.ndarray:
    """For each of ``NAMES``: 1 + its place among ``names``, or 0."""
    return np.array([1 + names.index(name) if name in names else 0 for name in NAMES])


_AFFINE = _places(geometry.AFFINE) - 1
_TABLE = _places(TABLES)
_MIXER = _places(MIXERS)
