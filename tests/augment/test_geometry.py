"""Geometric operations equal Pillow's nearest neighbor; shift, flip and box equal plain numpy.

Coordinates are computed in Pillow's own fixed point, so the share of pixels that differ is 0 here.
The tests allow one in 10,000, lest a sine that is rounded otherwise on another machine fail them.
"""

import numpy as np
import pytest
import torch
from pillow_reference import pillow_chain, sample_images

from kdfm_ray.augment import geometry
from kdfm_ray.augment.params import OPS
from kdfm_ray.augment.views import apply_op

SHARE = 1e-4


def index_of(matrices, size):
    """The index of affine maps, as a view makes it."""
    return geometry.affine_index(torch.from_numpy(geometry.fixed_point(matrices)), size)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (17, 40), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", geometry.AFFINE)
def test_operation_equals_pillow(name, channels, size):
    images = sample_images(5, channels, size)
    low, high, _ = OPS[name]
    strengths = [0.0, *np.linspace(low, high, 13), *np.random.default_rng(0).uniform(low, high, 7)]
    different = []
    for magnitude in strengths:
        ours = apply_op(images, name, float(magnitude))
        theirs = pillow_chain(images, [[name]] * 5, [[magnitude]] * 5)
        different.append((ours != theirs).float().mean())
    assert np.mean(different) <= SHARE


def test_outside_is_gray():
    black = torch.zeros(1, 3, 10, 10, dtype=torch.uint8)
    moved = apply_op(black, "translate_x", 0.3)
    assert (moved[..., 7:] == 127).all()
    assert (moved[..., :7] == 0).all()


def test_composed_indices_equal_two_resamplings_and_keep_the_fill_in_between():
    size = (9, 12)
    images = sample_images(40, 3, size)
    rng = np.random.default_rng(0)
    steps = []
    for _ in range(3):
        matrices = np.tile([1.0, 0, 0, 0, 1, 0], (40, 1)) + rng.normal(
            0, [0.3, 0.3, 3] * 2, (40, 6)
        )
        steps.append(index_of(matrices, size))
    one_by_one = images
    for step in steps:
        one_by_one = geometry.resample(one_by_one, step)
    fused = geometry.compose(geometry.compose(steps[0], steps[1], size), steps[2], size)
    assert torch.equal(geometry.resample(images, fused), one_by_one)

    there, back = (index_of(np.array([[1, 0, dx, 0, 1, 0.0]]), size) for dx in (4, -4))
    moved = geometry.resample(images[:1], geometry.compose(there, back, size))
    assert (moved[..., :4] == 127).all()
    assert torch.equal(moved[..., 4:], images[:1, :, :, 4:])


def test_identity_index_moves_nothing():
    images = sample_images(5, 3, (7, 5))
    assert torch.equal(
        geometry.resample(images, geometry.identity_index(5, (7, 5), images.device)), images
    )


@pytest.mark.parametrize("size", [(8, 8), (6, 11), (11, 6)], ids=str)
def test_weak_index_equals_flip_reflect_pad_and_crop(size):
    h, w = size
    cases = [
        (dx, dy, flip)
        for dx in range(-(w - 1), w)
        for dy in range(-(h - 1), h)
        for flip in (False, True)
    ]
    images = sample_images(len(cases), 3, size)
    dx, dy, flip = (torch.tensor(column) for column in zip(*cases, strict=True))
    ours = geometry.resample(images, geometry.weak_index(dx, dy, flip, size)).numpy()
    for i, (x, y, mirrored) in enumerate(cases):
        image = images[i].numpy()[:, :, ::-1] if mirrored else images[i].numpy()
        padded = np.pad(image, ((0, 0), (h - 1, h - 1), (w - 1, w - 1)), mode="reflect")
        top, left = h - 1 + y, w - 1 + x
        np.testing.assert_array_equal(ours[i], padded[:, top : top + h, left : left + w])


def test_cutout_box_is_half_open_and_clipped():
    size = (10, 13)
    rng = np.random.default_rng(0)
    n = 300
    y, x, side = rng.integers(0, 10, n), rng.integers(0, 13, n), rng.integers(0, 8, n)
    images = sample_images(n, 3, size)
    expected = images.clone()
    for i in range(n):
        top, left = y[i] - side[i] // 2, x[i] - side[i] // 2
        rows = slice(max(top, 0), max(top + side[i], 0))
        cols = slice(max(left, 0), max(left + side[i], 0))
        expected[i, :, rows, cols] = 127
    painted = geometry.cut_out_(images, *(torch.tensor(a) for a in (y, x, side)))
    assert painted is images  # in place
    assert torch.equal(images, expected)


def test_whole_cutout_box_has_the_side_asked_for():
    images = torch.zeros(6, 1, 20, 20, dtype=torch.uint8)
    middle = torch.full((6,), 10)
    geometry.cut_out_(images, middle, middle, torch.arange(6))
    assert (images == 127).sum((1, 2, 3)).tolist() == [0, 1, 4, 9, 16, 25]
