"""The same operations by Pillow, one image at a time, and images to compare them on."""

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

GRAY = 127
NEAREST = Image.Resampling.NEAREST


def pillow_op(image, name, magnitude):
    """Apply one operation to a ``PIL.Image``; the magnitude is rounded to float32 first."""
    m = float(np.float32(magnitude))
    fill = GRAY if image.mode == "L" else (GRAY,) * 3

    def affine(*numbers):
        return image.transform(image.size, Image.Transform.AFFINE, numbers, NEAREST, fillcolor=fill)

    match name:
        case "identity":
            return image
        case "autocontrast" | "equalize" | "invert":
            return getattr(ImageOps, name)(image)
        case "brightness" | "color" | "contrast" | "sharpness":
            return getattr(ImageEnhance, name.title())(image).enhance(m)
        case "posterize":
            return ImageOps.posterize(image, int(m))
        case "solarize":
            return ImageOps.solarize(image, int(256 * m))
        case "rotate":
            return image.rotate(m, NEAREST, fillcolor=fill)
        case "shear_x":
            return affine(1, m, 0, 0, 1, 0)
        case "shear_y":
            return affine(1, 0, 0, m, 1, 0)
        case "translate_x":
            return affine(1, 0, m * image.width, 0, 1, 0)
        case "translate_y":
            return affine(1, 0, 0, 0, 1, m * image.height)
    raise AssertionError(name)


def pillow_chain(images, ops, magnitudes):
    """Apply to image i of uint8 [n, c, h, w] the operations named in ``ops[i]``, one by one."""
    results = []
    for pixels, names, strengths in zip(images.numpy(), ops, magnitudes, strict=True):
        image = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
        for name, magnitude in zip(names, strengths, strict=True):
            image = pillow_op(image, name, magnitude)
        array = np.asarray(image)
        results.append(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return torch.tensor(np.stack(results))


def sample_images(n, channels, size, seed=0):
    """uint8 [n, c, h, w]: in turn noise, low contrast, one value, two values, photo-like."""
    rng = np.random.default_rng(seed)
    h, w = size
    y, x = np.mgrid[0:h, 0:w] / max(size)
    images = []
    for i in range(n):
        low, high = np.sort(rng.choice(256, 2, replace=False))
        if i % 5 == 0:
            image = rng.integers(0, 256, (channels, h, w))
        elif i % 5 == 1:
            image = rng.integers(low, min(low + 12, 255) + 1, (channels, h, w))
        elif i % 5 == 2:
            image = np.broadcast_to(rng.integers(0, 256, (channels, 1, 1)), (channels, h, w))
        elif i % 5 == 3:
            image = np.where(rng.random((channels, h, w)) < 0.05, low, high)
        else:
            a, b, phase = rng.normal(0, 9, (3, channels, 1, 1))
            image = 128 + 90 * np.sin(a * x + b * y + phase) + rng.normal(0, 6, (channels, h, w))
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return torch.tensor(np.stack(images))
