"""Every color operation equals Pillow's bit for bit."""

import numpy as np
import pytest
import torch
from pillow_reference import pillow_chain, sample_images

from kdfm_ray.augment import pointwise
from kdfm_ray.augment.params import OPS
from kdfm_ray.augment.views import apply_op

COLOR_OPS = [*pointwise.VALUE_TABLES, *pointwise.IMAGE_TABLES, *pointwise.MIXERS]


def magnitudes(name):
    low, high, whole = OPS[name]
    if name in ("brightness", "color", "contrast", "sharpness"):
        return [0.0, 1.0, *np.linspace(low, high, 13), *np.random.default_rng(1).random(6)]
    return np.arange(1, 9) if whole else np.linspace(low, high, 33 if high > low else 1)


@pytest.mark.parametrize("size", [(32, 32), (28, 28), (9, 14), (2, 7), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", COLOR_OPS)
def test_operation_equals_pillow(name, channels, size):
    images = sample_images(10, channels, size)
    for magnitude in magnitudes(name):
        ours = apply_op(images, name, float(magnitude))
        theirs = pillow_chain(images, [[name]] * 10, [[magnitude]] * 10)
        assert torch.equal(ours, theirs), magnitude


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_operations_that_depend_on_the_histogram_equal_pillow_on_many_images(name):
    n = 600
    rng = np.random.default_rng(3)
    widest = torch.tensor(rng.integers(1, 256, (n, 1, 1, 1)))
    images = sample_images(n, 1, (12, 16)).long() % widest
    images = images.clamp(max=255).to(torch.uint8)
    theirs = pillow_chain(images, [[name]] * n, [[0.0]] * n)
    assert torch.equal(apply_op(images, name, 0.0), theirs)


@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_factors_beyond_one_are_clipped_as_by_pillow(name):
    images = sample_images(10, 3, (16, 16))
    theirs = pillow_chain(images, [[name]] * 10, [[1.9]] * 10)
    assert torch.equal(apply_op(images, name, 1.9), theirs)


def test_each_image_has_its_own_magnitude():
    images = sample_images(5, 3, (8, 8))
    factors = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9])
    together = pointwise.color(images, factors)
    for i, factor in enumerate(factors):
        assert torch.equal(together[i : i + 1], pointwise.color(images[i : i + 1], factor[None]))


def test_composed_tables_equal_two_look_ups():
    images = sample_images(6, 3, (8, 8))
    generator = torch.Generator().manual_seed(0)
    tables = torch.randint(0, 256, (2, 6, 3, 256), generator=generator).to(torch.uint8)
    twice = pointwise.look_up(pointwise.look_up(images, tables[0]), tables[1])
    assert torch.equal(pointwise.look_up(images, pointwise.compose(*tables)), twice)
    assert not torch.equal(pointwise.look_up(images, pointwise.compose(*tables.flip(0))), twice)


def test_identity_tables_change_nothing():
    images = sample_images(5, 3, (8, 8))
    tables = pointwise.identity_tables(5, 3, images.device)
    assert torch.equal(pointwise.look_up(images, tables), images)


def test_color_leaves_a_gray_image_alone():
    images = sample_images(5, 1, (8, 8))
    assert torch.equal(apply_op(images, "color", 0.05), images)
