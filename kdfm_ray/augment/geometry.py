"""Moving pixels: shift, flip, rotate, shear and translate by nearest neighbor; the cutout box.

Shapes: n images, c channels, h x w pixels, p = h * w positions.

A geometric operation is an index, int64 [n, p]: for every new pixel (row by row) the old position
that it comes from. Positions are counted in the image with a frame of fill, one pixel wide, around
it; position 0, a corner of the frame, is the fill. Two operations in a row are one index
(``compose``) and cost one gather (``resample``). As positions stay whole numbers in between, the
result is that of two resamplings, intermediate fill included.

What comes from outside the image is gray 127. It is cutout's color, and the FixMatch authors'
RandAugment fills with the zero of images scaled to [-1, 1].
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int32, Int64, UInt8
from torch import Tensor

GRAY = 127
AFFINE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")

Images = UInt8[Tensor, "n c h w"]
Index = Int64[Tensor, "n p"]
Pixels = Int[Tensor, " n"]


def resample(images: Images, index: Index) -> Images:
    """Images whose every pixel comes from where the index says."""
    n, c, h, w = images.shape
    framed = torch.full((n, c, h + 2, w + 2), GRAY, dtype=torch.uint8, device=images.device)
    framed[..., 1:-1, 1:-1] = images
    return framed.flatten(2).gather(2, index[:, None].expand(-1, c, -1)).view(n, c, h, w)


def compose(first: Index, then: Index, size: tuple[int, int]) -> Index:
    """The one index that equals resampling images of ``size`` by ``first``, then by ``then``."""
    framed = F.pad(first.unflatten(1, size), (1, 1, 1, 1), value=0)
    return framed.flatten(1).gather(1, then)


def identity_index(n: int, size: tuple[int, int], device: torch.device) -> Index:
    """Indices that move nothing."""
    h, w = size
    rows, cols = torch.arange(h, device=device), torch.arange(w, device=device)
    return _position(rows[:, None] + 1, cols + 1, w).flatten().repeat(n, 1)


def weak_index(dx: Pixels, dy: Pixels, flip: Bool[Tensor, " n"], size: tuple[int, int]) -> Index:
    """Mirror left to right where ``flip``, then shift the window; the borders reflect.

    Args:
        dx, dy: how far the window moves right and down, in pixels, less than a side either way.
        flip: which images are mirrored.
        size: (h, w).
    """
    h, w = size
    rows = _reflect(torch.arange(h, device=dx.device) + dy[:, None], h)
    cols = _reflect(torch.arange(w, device=dx.device) + dx[:, None], w)
    cols = torch.where(flip[:, None], w - 1 - cols, cols)
    return _position(rows[:, :, None] + 1, cols[:, None] + 1, w).flatten(1)


def fixed_point(matrices: Float[np.ndarray, "n 6"]) -> Int32[np.ndarray, "6 n"]:
    """Affine maps in the 16-bit fixed point of Pillow's ``Image.transform(size, AFFINE)``.

    Args:
        matrices: rows (a, b, c, d, e, f): the pixel at x, y comes from (a x + b y + c,
            d x + e y + f). The unit is a pixel, and the center of the first one is (0.5, 0.5).
    """
    a, b, c, d, e, f = matrices.T
    numbers = np.stack([a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5])
    fixed = np.floor(numbers * 65536 + 0.5).astype(np.int32)
    fixed[[2, 5]] += 65536  # the frame is one pixel wide
    return fixed


def affine_index(fixed: Int32[Tensor, "6 n"], size: tuple[int, int]) -> Index:
    """What maps in ``fixed_point`` move, on their device; sides below 16384 fit in 32 bits."""
    h, w = size
    assert max(h, w) < 16384, size
    xx, xy, x0, yx, yy, y0 = fixed[:, :, None, None].unbind()
    x = torch.arange(w, dtype=torch.int32, device=fixed.device)
    y = torch.arange(h, dtype=torch.int32, device=fixed.device)[:, None]
    col = (xx * x + (xy * y + x0)).bitwise_right_shift_(16).clamp_(0, w + 1)
    row = (yx * x + (yy * y + y0)).bitwise_right_shift_(16).clamp_(0, h + 1)
    return _position(row, col, w).flatten(1).long()


def affine_matrices(
    kind: Int[np.ndarray, " n"], magnitude: Float[np.ndarray, " n"], size: tuple[int, int]
) -> Float[np.ndarray, "n 6"]:
    """The six numbers of ``affine_index`` for one operation per image.

    Args:
        kind: positions in ``AFFINE``.
        magnitude: of rotate: degrees counterclockwise about the middle; of shear: pixels per
            pixel, where row 0 or column 0 stays; of translate: the fraction of the width or
            height, rounded to whole pixels, by which the content moves left or up.
        size: (h, w).
    """
    h, w = size
    amount = magnitude.astype(np.float64)
    matrices = np.tile([1.0, 0.0, 0.0, 0.0, 1.0, 0.0], (len(kind), 1))
    rows = {name: np.flatnonzero(kind == k) for k, name in enumerate(AFFINE)}

    turned = rows["rotate"]
    angle = -np.deg2rad(amount[turned])
    cos, sin, x, y = np.cos(angle), np.sin(angle), w / 2, h / 2
    about_middle = [cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y]
    matrices[turned] = np.stack(about_middle, axis=1)

    matrices[rows["shear_x"], 1] = amount[rows["shear_x"]]
    matrices[rows["shear_y"], 3] = amount[rows["shear_y"]]
    matrices[rows["translate_x"], 2] = np.floor(amount[rows["translate_x"]] * w + 0.5)
    matrices[rows["translate_y"], 5] = np.floor(amount[rows["translate_y"]] * h + 0.5)
    return matrices


def cut_out_(images: Images, y: Pixels, x: Pixels, side: Pixels) -> Images:
    """Paint a gray square into every image, in place (Cutout, arXiv 1708.04552).

    The box starts at row ``y - side // 2`` and ends before row ``y - side // 2 + side``, columns
    likewise; what lies outside the image is clipped, and side 0 paints nothing.
    """
    rows = _inside(y - side // 2, side, images.shape[2])
    cols = _inside(x - side // 2, side, images.shape[3])
    # Arithmetic on bytes: on a CPU, masks of bool take many times longer.
    box = rows[:, None, :, None] * cols[:, None, None, :]
    return images.mul_(1 - box).add_(box * GRAY)


def _inside(start: Tensor, length: Tensor, size: int) -> Tensor:
    offset = torch.arange(size, device=start.device) - start[:, None]
    return ((offset >= 0) & (offset < length[:, None])).to(torch.uint8)


def _reflect(position: Tensor, length: int) -> Tensor:
    """Mirror positions beyond either end back inside; the border pixel is not repeated."""
    last = length - 1
    return last - (last - position.abs()).abs()


def _position(row: Tensor, col: Tensor, width: int) -> Tensor:
    """Row and column, counted with the frame, to a position."""
    return torch.add(col, row, alpha=width + 2)
