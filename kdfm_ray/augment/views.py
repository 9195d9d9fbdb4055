"""Weak and strong views of a batch: uint8 in, uint8 out, on the device where the images are.

Shapes: n images, c channels (1 = gray, 3 = RGB), h x w pixels, k operations per image.

    weak   = flip, then shift with reflected borders
    strong = weak, then RandAugment (arXiv 1909.13719), then Cutout (arXiv 1708.04552)

as in FixMatch (arXiv 2001.07685, section 2.3 and the appendix' table of transformations). A view is
a function of images and parameters only.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from kdfm_ray.augment import geometry, pointwise
from kdfm_ray.augment.captured import recordings
from kdfm_ray.augment.params import AFFINE, IDENTITY, NAMES, OPS, StrongParams, WeakParams
from kdfm_ray.augment.parcel import Parcel

_IS_AFFINE = np.isin(np.arange(len(NAMES)), AFFINE)
_ORDER = np.array(
    [code + len(NAMES) * (name in pointwise.MIXERS) for code, name in enumerate(NAMES)]
)
_LOOKS = np.array([name in {**pointwise.IMAGE_TABLES, **pointwise.MIXERS} for name in NAMES])

Images = UInt8[Tensor, "n c h w"]
Sent = list[Tensor]  # what a parcel held, on the device
Act = Callable[[Tensor, Sent], None]


def weak_view(images: Images, params: WeakParams) -> Images:
    """Flipped and shifted images."""
    assert len(params.dx) == len(images), (len(params.dx), len(images))
    parcel = Parcel()
    parts = [parcel.add(part) for part in params]
    sent = parcel.send(images.device)
    dx, dy, flip = (sent[part] for part in parts)
    return geometry.resample(images, geometry.weak_index(dx, dy, flip, _size(images)))


def strong_view(images: Images, params: StrongParams) -> Images:
    """Weak view, then each image's operations in their order, then the cutout box.

    On a GPU, batches of small images are made by ``captured``; bit for bit the same views.
    """
    assert images.shape[1] in (1, 3), f"{images.shape[1]} channels"
    assert len(params.op) == len(images), (params.op.shape, images.shape)
    views = recordings.view(images, params) if images.is_cuda else None
    return grouped_view(images, params) if views is None else views


def grouped_view(images: Images, params: StrongParams) -> Images:
    """``strong_view`` where each operation is carried out on the images that drew it.

    Geometric and color operations take turns in phases, geometry in the even ones, phase 0 with the
    weak view. Neighboring operations of a kind share a phase, where they are fused; no operation
    overtakes another. All numbers go to the images' device together, before the first phase.
    """
    op = np.where(params.apply, params.op, IDENTITY)
    phase = _phases(op)
    size, parcel = _size(images), Parcel()
    weak = [parcel.add(part) for part in params.weak]
    fuse = _fusing(parcel, np.where(phase == 0, op, IDENTITY), params.magnitude, size)
    acts = []
    for now in range(1, phase.max(initial=0) + 1):
        here = np.where(phase == now, op, IDENTITY)
        plan = _recoloring if now % 2 else _moving
        acts.append(plan(parcel, here, params.magnitude, size))
    sides = params.cutout_side * params.cutout_apply
    box = [parcel.add(part) for part in (params.cutout_y, params.cutout_x, sides)]

    sent = parcel.send(images.device)
    dx, dy, flip = (sent[part] for part in weak)
    index = geometry.weak_index(dx, dy, flip, size)
    fuse(index, sent)
    views = geometry.resample(images, index)
    for act in acts:
        act(views, sent)
    return geometry.cut_out_(views, *(sent[part] for part in box))


def apply_op(images: Images, name: str, magnitude: float) -> Images:
    """One operation on every image: to look at what it does, and to test it."""
    if name not in OPS:
        raise ValueError(f"unknown operation {name!r}; known: {', '.join(OPS)}")
    views = images.clone(memory_format=torch.contiguous_format)
    op = np.full((len(images), 1), NAMES.index(name))
    plan, parcel = _moving if name in geometry.AFFINE else _recoloring, Parcel()
    act = plan(parcel, op, np.full(op.shape, magnitude, dtype=np.float32), _size(images))
    act(views, parcel.send(images.device))
    return views


def _phases(op: np.ndarray) -> np.ndarray:
    """The phase of each of the operations [n, k]; an identity shares that of its predecessor."""
    phase = np.zeros_like(op)
    now = np.zeros(len(op), dtype=op.dtype)
    for slot in range(op.shape[1]):
        color = ~_IS_AFFINE[op[:, slot]]
        now = now + ((now % 2 != color) & (op[:, slot] != IDENTITY))
        phase[:, slot] = now
    return phase


# Each plans on the host, and returns what then acts on the device, in place, on what was sent.


def _fusing(parcel: Parcel, op: np.ndarray, magnitude: np.ndarray, size: tuple[int, int]) -> Act:
    """Add the geometric ones among the operations [n, k] to an index."""
    steps = []
    for slot in range(op.shape[1]):
        rows = np.flatnonzero(_IS_AFFINE[op[:, slot]])
        if len(rows) == 0:
            continue
        kind = np.argmax(op[rows, slot, None] == AFFINE, axis=1)
        matrices = geometry.affine_matrices(kind, magnitude[rows, slot], size)
        steps.append((parcel.add(rows), parcel.add(geometry.fixed_point(matrices))))

    def act(index: Tensor, sent: Sent) -> None:
        for rows, fixed in steps:
            where, then = sent[rows], geometry.affine_index(sent[fixed], size)
            _put_(index, where, geometry.compose(index.index_select(0, where), then, size))

    return act


def _moving(parcel: Parcel, op: np.ndarray, magnitude: np.ndarray, size: tuple[int, int]) -> Act:
    """Carry out the geometric ones among the operations [n, k]."""
    rows = np.flatnonzero(_IS_AFFINE[op].any(axis=1))
    fuse = _fusing(parcel, op[rows], magnitude[rows], size)
    there = parcel.add(rows)

    def act(images: Tensor, sent: Sent) -> None:
        index = geometry.identity_index(len(rows), size, images.device)
        fuse(index, sent)
        where = sent[there]
        _put_(images, where, geometry.resample(images.index_select(0, where), index))

    return act


def _recoloring(
    parcel: Parcel, op: np.ndarray, magnitude: np.ndarray, size: tuple[int, int]
) -> Act:
    """Carry out the color operations [n, k]; tables wait until pixels must be seen."""
    waiting = np.zeros(len(op), dtype=bool)
    steps: list[Callable[[Tensor, Tensor, Sent], None]] = []
    for slot in range(op.shape[1]):
        looks = waiting & _LOOKS[op[:, slot]]
        steps.append(_looking_up(parcel, looks))
        waiting &= ~looks

        # Images in the order of their operations: each operation has a slice, mixers come last.
        rows = np.argsort(_ORDER[op[:, slot]], kind="stable")
        rows = rows[op[rows, slot] != IDENTITY]
        if len(rows) == 0:
            continue
        runs = _runs(op[rows, slot])
        tabled = sum(run.stop - run.start for name, run in runs if name not in pointwise.MIXERS)
        waiting[rows[:tabled]] = True
        steps.append(_one_slot(parcel, rows, magnitude[rows, slot], runs, tabled))
    steps.append(_looking_up(parcel, waiting))

    def act(images: Tensor, sent: Sent) -> None:
        n, c = images.shape[:2]
        tables = pointwise.identity_tables(n, c, images.device)
        for step in steps:
            step(images, tables, sent)

    return act


def _one_slot(
    parcel: Parcel,
    rows: np.ndarray,
    magnitude: np.ndarray,
    runs: list[tuple[str, slice]],
    tabled: int,
) -> Callable[[Tensor, Tensor, Sent], None]:
    """One color operation on each image of ``rows``, the first ``tabled`` of which are tables."""
    there, strengths = parcel.add(rows), parcel.add(magnitude)

    def act(images: Tensor, tables: Tensor, sent: Sent) -> None:
        where, strength = sent[there], sent[strengths]
        seen = images.index_select(0, where)
        then: list[Tensor] = []
        mixed: list[Tensor] = []
        for name, part in runs:
            if name in pointwise.VALUE_TABLES:
                table = pointwise.VALUE_TABLES[name](strength[part])
                then.append(table.expand(-1, images.shape[1], -1))
            elif name in pointwise.IMAGE_TABLES:
                then.append(pointwise.IMAGE_TABLES[name](seen[part], strength[part]))
            else:
                mixed.append(pointwise.MIXERS[name](seen[part], strength[part]))
        if then:
            first = tables.index_select(0, where[:tabled])
            _put_(tables, where[:tabled], pointwise.compose(first, torch.cat(then)))
        if mixed:
            _put_(images, where[tabled:], torch.cat(mixed))

    return act


def _runs(op: np.ndarray) -> list[tuple[str, slice]]:
    """Name and place of each run of equal operations."""
    starts = np.flatnonzero(np.diff(op, prepend=-1)).tolist()
    ends = [*starts[1:], len(op)]
    return [(NAMES[op[start]], slice(start, end)) for start, end in zip(starts, ends, strict=True)]


def _looking_up(parcel: Parcel, mask: np.ndarray) -> Callable[[Tensor, Tensor, Sent], None]:
    """Apply the tables of the images that pass the mask [n], and clear these tables."""
    rows = np.flatnonzero(mask)
    there = parcel.add(rows)

    def act(images: Tensor, tables: Tensor, sent: Sent) -> None:
        if len(rows) == 0:
            return
        where = sent[there]
        chosen = tables.index_select(0, where)
        _put_(images, where, pointwise.look_up(images.index_select(0, where), chosen))
        _put_(tables, where, pointwise.identity_tables(len(where), tables.shape[1], tables.device))

    return act


def _put_(target: Tensor, where: Tensor, rows: Tensor) -> None:
    """``target[where] = rows`` in place, in words of eight bytes where they fit.

    ``index_copy_`` takes as long for a byte as for a word, and rows of bytes were a quarter of
    the time of a view.
    """
    assert target.is_contiguous()
    target, rows = target.flatten(1), rows.flatten(1)
    if target.shape[1] * target.element_size() % 8 == 0:
        target, rows = target.view(torch.int64), rows.view(torch.int64)
    target.index_copy_(0, where, rows)


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[2], images.shape[3]
