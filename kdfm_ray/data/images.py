"""From files (or arrays of another size) to uint8 arrays of one size, on all cores.

Legend: N images, S pixels a side, C channels.
"""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image

from kdfm_ray.types import Emit, UserError

MOST_NAMED = 10  # files that an error message names
_CHUNK = 32  # images that a thread takes at a time
# Pillow lists these endings, but they are vector graphics, films, grids of floats or mere stubs.
_NOT_PHOTOS = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}
# A photo with a second one for depth or 3D; a picture whose layers follow the whole of it.
_FIRST_IS_WHOLE = {"MPO", "PSD"}
_KNOWN_BY_HEAD = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "JPEG2000", "AVIF")
_BAND_PIXELS = 2**20  # that are laid on white at a time
_MAX_WIDE = 0xFFFF  # brightest of 16 bits
_UPRIGHT = {  # EXIF orientation -> what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@cache
def suffixes() -> frozenset[str]:
    """Endings of image files that Pillow reads here, lower case, with the dot."""
    Image.init()
    readable = set(Image.OPEN) - _NOT_PHOTOS
    return frozenset(end for end, kind in Image.registered_extensions().items() if kind in readable)


def has_image_head(head: bytes) -> bool:
    """Whether a file begins (16 bytes are enough) as a common kind of image does."""
    suffixes()
    kinds = (Image.OPEN[kind][1] for kind in _KNOWN_BY_HEAD if kind in Image.OPEN)
    return any(accept is not None and bool(accept(head)) for accept in kinds)


MISSING = "no such file (a broken link?)"  # the reason that other machines may not have


class Unreadable(ValueError):
    """A file that gives no picture; its text is the reason, as part of a sentence."""


def decode(
    source: Path | bytes, size: int, max_pixels: int | None = None
) -> UInt8[np.ndarray, "s s 3"]:
    """One image as uint8 RGB ``[S, S, 3]``: shorter side to S, then the center square.

    The camera's rotation (EXIF) is undone. Transparency is laid on white. Grey becomes three equal
    channels; 16 bits are scaled to 8, without stretching. CMYK is converted without a color
    profile. Resizing is bilinear and antialiased.

    Args:
        source: a file, or the content of one.
        size: S, pixels a side.
        max_pixels: of an image, as far as it has to be decoded; it takes 8 to 9 bytes of memory
            for each. ``None``: as many as Pillow takes.

    Raises:
        Unreadable: it is empty, cut off, no image, an animation, too large, or of numbers that
            have no scale.
    """
    try:
        with Image.open(_content(source)) as file:
            _check_single(file)
            # JPEG can be decoded at 1/2, 1/4 or 1/8: the smallest that is at least twice our size.
            file.draft("RGB", (2 * size, 2 * size))
            _check_pixels(file.size, max_pixels)
            square = _square(_to_rgb(file), size)
            turn = _UPRIGHT.get(_orientation(file))
        return np.asarray(square if turn is None else square.transpose(turn))
    except Exception as error:  # Pillow raises a dozen kinds
        raise Unreadable(_reason(error)) from error


def shorter_side(source: Path | bytes) -> int | None:
    """Pixels of an image's shorter side, by its head alone; ``None`` where it says nothing."""
    try:
        with quiet_pillow(), Image.open(_content(source)) as file:
            return min(file.size)
    except Exception:  # decoding says why
        return None


def quiet_pillow() -> warnings.catch_warnings:
    """A block without Pillow's warnings of odd files: such a file is either read or refused.

    Python keeps filters for the whole process, so threads within the block have them too.
    """
    return warnings.catch_warnings(action="ignore", category=Warning)


def decode_files(
    paths: Sequence[Path], size: int, emit: Emit | None = None
) -> UInt8[np.ndarray, "n s s 3"]:
    """Decode image files with ``decode``, in order.

    Args:
        paths: N image files.
        size: S, pixels a side.
        emit: told of the progress: ``{"stage": "data", "phase": "decode", "step": n, "total": N}``.

    Raises:
        UserError: files that cannot be read; all are found first, ten are named with the reason.
    """
    images = np.empty((len(paths), size, size, 3), dtype=np.uint8)
    broken: dict[int, str] = {}
    suffixes()  # registers Pillow's plugins before threads ask for them

    def work(i: int) -> None:
        try:
            images[i] = decode(paths[i], size)
        except Unreadable as error:
            broken[i] = f"\n  {paths[i]}: {error}"

    with quiet_pillow():
        for_each(len(paths), work, _steps("decode", len(paths), emit))
    if broken:
        lines = [broken[i] for i in sorted(broken)]
        more = f"\n  and {len(lines) - MOST_NAMED} more" if len(lines) > MOST_NAMED else ""
        raise UserError(
            f"{len(lines)} of {len(paths)} images cannot be read:"
            f"{''.join(lines[:MOST_NAMED])}{more}\nMend them or take them away, then run again."
        )
    return images


def resize(
    images: UInt8[np.ndarray, "n h w c"], size: int, emit: Emit | None = None
) -> UInt8[np.ndarray, "n s s c"]:
    """Square-cropped and resized copies of ``[N, H, W, C]``, C = 1 or 3; contiguous.

    Args:
        images: N images; any memory layout.
        size: S, pixels a side.
        emit: told of the progress, with the phase ``resize``.
    """
    n, height, width, channels = images.shape
    if (height, width) == (size, size):
        return np.ascontiguousarray(images)
    out = np.empty((n, size, size, channels), dtype=np.uint8)

    def work(i: int) -> None:
        pixels = np.ascontiguousarray(images[i, :, :, 0] if channels == 1 else images[i])
        out[i] = np.asarray(_square(Image.fromarray(pixels), size)).reshape(size, size, channels)

    for_each(n, work, _steps("resize", n, emit))
    return out


def for_each(
    n: int, work: Callable[[int], None], tell: Callable[[int], None], threads: int | None = None
) -> None:
    """``work(i)`` for 0..n-1 in threads (Pillow lets go of the interpreter lock).

    Args:
        n: how often.
        work: what to do.
        tell: told how many are done since it was told the last time, about a hundred times.
        threads: none: one for each core.
    """

    def chunk(start: int) -> int:
        end = min(start + _CHUNK, n)
        for i in range(start, end):
            work(i)
        return end

    told = 0
    with ThreadPoolExecutor(max_workers=threads or os.cpu_count()) as pool:
        for done in pool.map(chunk, range(0, n, _CHUNK)):
            if done == n or done - told >= n / 100:
                tell(done - told)
                told = done


def _steps(phase: str, total: int, emit: Emit | None) -> Callable[[int], None]:
    """Progress as events."""
    done = 0

    def tell(advance: int) -> None:
        nonlocal done
        done += advance
        if emit is not None:
            emit({"stage": "data", "phase": phase, "step": done, "total": total})

    return tell


def _square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to ``size``, then the center square, in one resampling.

    The box picks the square; the filter still sees the pixels around it, so this equals resizing
    the whole picture and cropping then, without the rounding of the longer side.
    """
    width, height = image.size
    if (width, height) == (size, size):
        return image
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def _content(source: Path | bytes) -> Path | io.BytesIO:
    """What Pillow opens; refuses what it would wait for, or could only call no image."""
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if isinstance(source, Path) and not stat.S_ISREG(source.stat().st_mode):
        raise ValueError("no ordinary file")
    if size == 0:
        raise ValueError("empty (0 bytes)")
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _check_single(file: Image.Image) -> None:
    frames = getattr(file, "n_frames", 1)
    if frames > 1 and file.format not in _FIRST_IS_WHOLE:
        raise ValueError(f"an animation, or of several pages ({frames} pictures in one file)")


def _check_pixels(size: tuple[int, int], most: int | None) -> None:
    width, height = size
    if most is not None and width * height > most:
        raise ValueError(
            f"too large: {width:,} x {height:,} pixels, more than data.max_pixels = {most:,}"
        )


def _to_rgb(file: Image.Image) -> Image.Image:
    if file.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if file.mode.startswith("I"):  # 16 bits, which Pillow sometimes calls 32
        wide = np.asarray(file)
        if wide.min() < 0 or wide.max() > _MAX_WIDE:
            raise ValueError("its pixels are 32-bit numbers; save it with 8 or 16 bits")
        return Image.fromarray((wide >> 8).astype(np.uint8)).convert("RGB")
    return _on_white(file) if file.has_transparency_data else file.convert("RGB")


def _on_white(file: Image.Image) -> Image.Image:
    """Band by band: the whole at once takes five copies of the pixels, which this takes two of."""
    file.load()
    width, height = file.size
    below = Image.new("RGB", file.size)
    rows = max(1, _BAND_PIXELS // width)
    for top in range(0, height, rows):
        above = file.crop((0, top, width, min(height, top + rows))).convert("RGBA")
        white = Image.new("RGBA", above.size, "white")
        below.paste(Image.alpha_composite(white, above).convert("RGB"), (0, top))
    return below


def _orientation(file: Image.Image) -> int:
    try:
        return file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a broken EXIF block; viewers show such a picture as it is stored, so do we
        return 1


def _reason(error: Exception) -> str:
    """One short line; the path already stands before it."""
    if isinstance(error, FileNotFoundError):
        return MISSING
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image, or of a kind that Pillow does not know"
    if isinstance(error, Image.DecompressionBombError):
        return "too large: more pixels than Pillow takes for an honest picture"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(f"{error}".split()) or type(error).__name__
