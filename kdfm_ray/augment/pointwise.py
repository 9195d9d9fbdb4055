"""Color operations on a batch of 8-bit images, equal to Pillow's bit for bit.

Shapes: n images, c channels (1 = gray, 3 = RGB), h x w pixels; a table is uint8 [n, c, 256].

Most of RandAugment's color operations give every old value one new value. Such an operation is a
table, two in a row are one table (``compose``), and a table costs one look-up per pixel however
many operations it stands for. What an operation must know divides them:

    VALUE_TABLES   only the magnitude: brightness, posterize, solarize, invert
    IMAGE_TABLES   the image as it is by then: autocontrast, contrast, equalize
    MIXERS         no table: color mixes channels, sharpness mixes pixels
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

Images = UInt8[Tensor, "n c h w"]
Tables = UInt8[Tensor, "n c 256"]
Magnitudes = Float[Tensor, " n"]


def look_up(images: Images, tables: Tables) -> Images:
    """Every value replaced by what its image's and channel's table says."""
    return tables.gather(2, images.flatten(2).long()).view(images.shape)


def compose(first: Tables, then: Tables) -> Tables:
    """The one table that equals ``first`` followed by ``then``."""
    return then.gather(2, first.long())


def identity_tables(n: int, c: int, device: torch.device) -> Tables:
    """Tables that change nothing, in memory of their own."""
    return torch.arange(256, device=device).to(torch.uint8).repeat(n, c, 1)


# Tables from the magnitude alone, the same for every channel.


def brightness(factor: Magnitudes) -> UInt8[Tensor, "n 1 256"]:
    """``ImageEnhance.Brightness``: 0 is black, 1 changes nothing."""
    black = torch.zeros(1, device=factor.device)
    return _blend(black, _values(factor.device), factor[:, None, None])


def posterize(bits: Magnitudes) -> UInt8[Tensor, "n 1 256"]:
    """``ImageOps.posterize``: keep the first ``bits`` (1 to 8, rounded down) of every value."""
    step = 1 << (8 - bits.int()[:, None, None])
    return (_values(bits.device).int() & -step).to(torch.uint8)


def solarize(threshold: Magnitudes) -> UInt8[Tensor, "n 1 256"]:
    """``ImageOps.solarize``: invert values from ``floor(256 * threshold)`` on; 1: none of them."""
    values = _values(threshold.device)
    kept = values < (256 * threshold).floor()[:, None, None]
    return torch.where(kept, values, 255 - values).to(torch.uint8)


def invert(unused: Magnitudes) -> UInt8[Tensor, "n 1 256"]:
    """``ImageOps.invert``."""
    return (255 - _values(unused.device)).to(torch.uint8).repeat(len(unused), 1, 1)


# Tables from the image.


def autocontrast(images: Images, unused: Magnitudes) -> Tables:
    """``ImageOps.autocontrast``: stretch each channel to 0-255; a channel of one value stays."""
    pixels = images.flatten(2)
    low = pixels.amin(2, keepdim=True).double()
    high = pixels.amax(2, keepdim=True).double()
    values = _values(images.device).double()
    # float64 in Pillow's order, and a real division (number / tensor multiplies by a reciprocal):
    # where a product is close to a whole number, the last bit decides.
    scale = values[-1] / (high - low).clamp(min=1)
    stretched = (values * scale + -low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, values).to(torch.uint8)


def contrast(images: Images, factor: Magnitudes) -> Tables:
    """``ImageEnhance.Contrast``: 0 is flat at the image's mean gray, 1 changes nothing."""
    _, c, h, w = images.shape
    total = luma(images).sum((1, 2), dtype=torch.int64)
    mean = (2 * total + h * w) // (2 * h * w)  # to the nearest whole number, halves up
    start = mean.float()[:, None, None]
    return _blend(start, _values(images.device), factor[:, None, None]).expand(-1, c, -1)


def equalize(images: Images, unused: Magnitudes) -> Tables:
    """``ImageOps.equalize``: spread each channel's values evenly; a channel of one value stays."""
    n, c, h, w = images.shape
    pixels = images.flatten(2).long()
    counts = torch.zeros(n, c, 256, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones_like(counts[:1, :1, :1]).expand_as(pixels))
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (h * w - brightest) // 255
    divisor = step.clamp(min=1)
    below = counts.cumsum(2, dtype=torch.int32) - counts
    spread = ((divisor // 2 + below) // divisor).clamp(max=255)
    return torch.where(step > 0, spread, _values(images.device).int()).to(torch.uint8)


# No table.


def color(images: Images, factor: Magnitudes) -> Images:
    """``ImageEnhance.Color``: 0 is gray, 1 changes nothing; a gray image stays as it is."""
    if images.shape[1] == 1:
        return images.clone()
    return _blend(luma(images)[:, None].float(), images.float(), factor[:, None, None, None])


def sharpness(images: Images, factor: Magnitudes) -> Images:
    """``ImageEnhance.Sharpness``: 0 is blurred, 1 changes nothing.

    The blur is Pillow's SMOOTH, a 3x3 kernel of ones with a 5 in the middle. It leaves the
    outermost pixels alone, so an image with a side below 3 stays as it is.
    """
    result = images.clone()
    values = images.short()
    rows = values[:, :, :-2] + values[:, :, 1:-1] + values[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    middle = values[..., 1:-1, 1:-1]
    # A whole number over 13 is never close to a half, so float32 rounds it as Pillow does.
    blurred = ((box + 4 * middle) / 13 + 0.5).floor()
    result[..., 1:-1, 1:-1] = _blend(blurred, middle.float(), factor[:, None, None, None])
    return result


VALUE_TABLES: dict[str, Callable[[Tensor], Tensor]] = {
    "brightness": brightness,
    "posterize": posterize,
    "solarize": solarize,
    "invert": invert,
}
IMAGE_TABLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "autocontrast": autocontrast,
    "contrast": contrast,
    "equalize": equalize,
}
MIXERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"color": color, "sharpness": sharpness}


def luma(images: Images) -> Int[Tensor, "n h w"]:
    """Gray values 0-255 as of Pillow's ``convert("L")``: ITU-R 601-2 in 16-bit fixed point."""
    if images.shape[1] == 1:
        return images[:, 0].int()
    red, green, blue = images.int().unbind(1)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _values(device: torch.device) -> Tensor:
    return torch.arange(256, dtype=torch.float32, device=device)


def _blend(start: Tensor, end: Tensor, factor: Tensor) -> Tensor:
    """``Image.blend``: float32, the fraction cut off; unfused steps, so that each one rounds."""
    return (start + factor * (end - start)).clamp_(0, 255).to(torch.uint8)
