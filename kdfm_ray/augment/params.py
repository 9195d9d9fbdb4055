"""What random views do: the numbers of a batch, drawn with numpy on the host.

Shapes: n images, k operations per image. Parameters are drawn for the whole global batch and then
sliced, so the number of workers changes no view.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np

from kdfm_ray.augment import geometry


class Range(NamedTuple):
    """Magnitudes are uniform in [low, high]; ``whole``: whole numbers, both ends included."""

    low: float
    high: float
    whole: bool = False


OPS: dict[str, Range] = {
    "autocontrast": Range(0, 0),  # no magnitude
    "brightness": Range(0.05, 0.95),  # 0 = black, 1 = as it is
    "color": Range(0.05, 0.95),  # 0 = gray, 1 = as it is
    "contrast": Range(0.05, 0.95),  # 0 = flat, 1 = as it is
    "equalize": Range(0, 0),  # no magnitude
    "identity": Range(0, 0),  # no magnitude
    "posterize": Range(4, 8, whole=True),  # bits kept
    "rotate": Range(-30, 30),  # degrees
    "sharpness": Range(0.05, 0.95),  # 0 = blurred, 1 = as it is
    "shear_x": Range(-0.3, 0.3),  # pixels per pixel
    "shear_y": Range(-0.3, 0.3),  # pixels per pixel
    "solarize": Range(0, 1),  # values from this fraction of 256 on are inverted
    "translate_x": Range(-0.3, 0.3),  # fraction of the width
    "translate_y": Range(-0.3, 0.3),  # fraction of the height
    "invert": Range(0, 0),  # in RandAugment's list, not in FixMatch's
}
FIXMATCH_OPS = tuple(name for name in OPS if name != "invert")
SHIFT = 0.125  # longest shift, fraction of the side: 4 of 32 pixels
CUTOUT = 0.5  # longest side of the box, fraction of the image's shorter side
PROB = 0.5  # that a drawn operation is applied; not in the paper, but in its authors' code

NAMES = tuple(OPS)
IDENTITY = NAMES.index("identity")
AFFINE = np.array([NAMES.index(name) for name in geometry.AFFINE])


class WeakParams(NamedTuple):
    """What a weak view does to each image.

    Attributes:
        dx, dy: int64 ``[n]``, pixels by which the window moves right and down.
        flip: bool ``[n]``, mirrored left to right before the shift.
    """

    dx: np.ndarray
    dy: np.ndarray
    flip: np.ndarray


class StrongParams(NamedTuple):
    """What a strong view does to each image.

    Attributes:
        weak: the weak view that comes first.
        op: int64 ``[n, k]``, positions in ``NAMES``.
        magnitude: float32 ``[n, k]``, in the operation's unit.
        apply: bool ``[n, k]``, whether the operation is carried out.
        cutout_y, cutout_x, cutout_side: int64 ``[n]``, the box as in ``geometry.cut_out_``.
        cutout_apply: bool ``[n]``, whether the box is painted.
    """

    weak: WeakParams
    op: np.ndarray
    magnitude: np.ndarray
    apply: np.ndarray
    cutout_y: np.ndarray
    cutout_x: np.ndarray
    cutout_side: np.ndarray
    cutout_apply: np.ndarray


Params = TypeVar("Params", WeakParams, StrongParams)


def draw_weak(
    rng: np.random.Generator, n: int, *, size: tuple[int, int], shift: float = SHIFT, flip: bool
) -> WeakParams:
    """Random weak views of n images; always takes 3 n numbers from ``rng``.

    Args:
        rng: source of the random numbers.
        n: images in the global batch.
        size: (h, w).
        shift: longest shift as a fraction of the side, rounded down to pixels; all whole shifts
            up to it are equally likely.
        flip: whether half of the images are mirrored.
    """
    if not 0 <= shift < 1:
        raise ValueError(f"shift = {shift} must be a fraction of the side: 0 <= shift < 1")
    down, across = (int(shift * side) for side in size)
    u = rng.random((3, n))
    return WeakParams(
        dx=_whole(u[0], -across, across), dy=_whole(u[1], -down, down), flip=(u[2] < 0.5) & flip
    )


def draw_strong(
    rng: np.random.Generator,
    n: int,
    *,
    size: tuple[int, int],
    shift: float = SHIFT,
    flip: bool,
    num_ops: int = 2,
    prob: float = PROB,
    cutout: float = CUTOUT,
    cutout_prob: float = 1.0,
    ops: tuple[str, ...] = FIXMATCH_OPS,
) -> StrongParams:
    """Random strong views of n images; always takes (7 + 3 num_ops) n numbers from ``rng``.

    Args:
        rng, n, size, shift, flip: as for ``draw_weak``.
        num_ops: operations per image, drawn independently (the same one may come twice).
        prob: probability that a drawn operation is applied.
        cutout: longest side of the box as a fraction of the image's shorter side, rounded down to
            pixels; all whole sides from 0 up to it are equally likely, and so is any pixel as
            the center.
        cutout_prob: probability that the box is painted.
        ops: names from ``OPS`` to draw from.
    """
    _check(num_ops, {"prob": prob, "cutout": cutout, "cutout_prob": cutout_prob}, ops)
    weak = draw_weak(rng, n, size=size, shift=shift, flip=flip)
    which, strength, chance = rng.random((3, n, num_ops))
    u = rng.random((4, n))
    op = np.array([NAMES.index(name) for name in ops])[_whole(which, 0, len(ops) - 1)]
    low, high, whole = np.array(list(OPS.values())).T[:, op]
    magnitude = np.where(whole, _whole(strength, low, high), low + strength * (high - low))
    return StrongParams(
        weak=weak,
        op=op,
        magnitude=magnitude.astype(np.float32),
        apply=chance < prob,
        cutout_y=_whole(u[0], 0, size[0] - 1),
        cutout_x=_whole(u[1], 0, size[1] - 1),
        cutout_side=_whole(u[2], 0, int(cutout * min(size))),
        cutout_apply=u[3] < cutout_prob,
    )


def take(params: Params, which: slice | np.ndarray) -> Params:
    """The parameters of some of the images: a slice, a bool mask ``[n]``, or positions."""
    if isinstance(params, WeakParams):
        return WeakParams(*(part[which] for part in params))
    weak, *rest = params
    return StrongParams(take(weak, which), *(part[which] for part in rest))


def _whole(u: np.ndarray, low: int | np.ndarray, high: int | np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1) to whole numbers in [low, high], both included, as int64."""
    return (low + np.floor(u * (high - low + 1))).astype(np.int64)


def _check(num_ops: int, fractions: dict[str, float], ops: tuple[str, ...]) -> None:
    if num_ops < 0:
        raise ValueError(f"num_ops = {num_ops} must be 0 or more")
    for name, value in fractions.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value} must be between 0 and 1")
    unknown = [name for name in ops if name not in OPS]
    if unknown or not ops:
        raise ValueError(f"unknown operations {unknown} in {ops}; choose from {', '.join(OPS)}")
