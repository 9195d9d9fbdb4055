"""Whole views: chains equal Pillow's, parameters are drawn as FixMatch's table says, slices fit."""

import itertools
import time

import numpy as np
import pytest
import torch
from pillow_reference import pillow_chain, sample_images

from kdfm_ray.augment import geometry
from kdfm_ray.augment.params import (
    FIXMATCH_OPS,
    NAMES,
    OPS,
    StrongParams,
    WeakParams,
    draw_strong,
    draw_weak,
    take,
)
from kdfm_ray.augment.views import apply_op, strong_view, weak_view

SIZE = (32, 32)


def chain_params(names, magnitudes):
    """Only the operations: no shift, no flip, no box."""
    n, k = np.shape(names)
    zero = np.zeros(n, dtype=np.int64)
    return StrongParams(
        weak=WeakParams(zero, zero, zero > 0),
        op=np.array([[NAMES.index(name) for name in row] for row in names], dtype=np.int64),
        magnitude=np.array(magnitudes, dtype=np.float32).reshape(n, k),
        apply=np.ones((n, k), dtype=bool),
        cutout_y=zero,
        cutout_x=zero,
        cutout_side=zero,
        cutout_apply=zero > 0,
    )


def random_magnitudes(names, rng):
    ranges = [[OPS[name] for name in row] for row in names]
    return [
        [int(rng.integers(4, 9)) if r.whole else rng.uniform(*r[:2]) for r in row] for row in ranges
    ]


def differing(ours, theirs):
    """Share of differing values, per image."""
    return (ours != theirs).flatten(1).double().mean(1).numpy()


def same(a, b):
    if isinstance(a, StrongParams):
        return same(a.weak, b.weak) and same(a[1:], b[1:])
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# Chains


@pytest.mark.parametrize("channels", [1, 3])
def test_every_pair_of_operations_equals_pillow(channels):
    rng = np.random.default_rng(channels)
    pairs = list(itertools.product(OPS, OPS)) * 3
    images = sample_images(len(pairs), channels, (20, 24))
    magnitudes = random_magnitudes(pairs, rng)
    ours = strong_view(images, chain_params(pairs, magnitudes))
    share = differing(ours, pillow_chain(images, pairs, magnitudes))
    moves = np.isin(np.array(pairs), geometry.AFFINE).any(axis=1)
    assert share[~moves].max() == 0
    assert share[moves].mean() <= 1e-4  # seen: 0


@pytest.mark.parametrize("length", [0, 1, 3, 5])
def test_long_chains_equal_pillow(length):
    rng = np.random.default_rng(length)
    chains = rng.choice(NAMES, (150, length)).tolist()
    images = sample_images(150, 3, (19, 16))
    magnitudes = random_magnitudes(chains, rng)
    ours = strong_view(images, chain_params(chains, magnitudes))
    assert differing(ours, pillow_chain(images, chains, magnitudes)).mean() <= 1e-4  # seen: 0


def test_equalize_after_translate_sees_the_fill():
    images = sample_images(5, 3, SIZE)[4:]
    fill_first = [["translate_x", "equalize"]]
    fill_last = [["equalize", "translate_x"]]
    before = strong_view(images, chain_params(fill_first, [[0.3, 0]]))
    after = strong_view(images, chain_params(fill_last, [[0, 0.3]]))
    assert torch.equal(before, pillow_chain(images, fill_first, [[0.3, 0]]))
    assert torch.equal(after, pillow_chain(images, fill_last, [[0, 0.3]]))
    assert not torch.equal(before, after)


def test_strong_view_is_weak_view_then_operations_then_box():
    images = sample_images(200, 3, SIZE)
    params = draw_strong(np.random.default_rng(0), 200, size=SIZE, flip=True)
    names = [
        [NAMES[op] if on else "identity" for op, on in zip(ops, ons, strict=True)]
        for ops, ons in zip(params.op, params.apply, strict=True)
    ]
    expected = pillow_chain(weak_view(images, params.weak), names, params.magnitude)
    box = (params.cutout_y, params.cutout_x, params.cutout_side)
    geometry.cut_out_(expected, *(torch.tensor(part) for part in box))
    assert differing(strong_view(images, params), expected).mean() <= 1e-4


def test_weak_view_is_the_cropped_reflection():
    images = sample_images(50, 3, (16, 24))
    params = draw_weak(np.random.default_rng(0), 50, size=(16, 24), flip=True)
    ours = weak_view(images, params).numpy()
    for i in range(50):
        image = images[i].numpy()
        image = image[:, :, ::-1] if params.flip[i] else image
        padded = np.pad(image, ((0, 0), (2, 2), (3, 3)), mode="reflect")
        top, left = 2 + params.dy[i], 3 + params.dx[i]
        np.testing.assert_array_equal(ours[i], padded[:, top : top + 16, left : left + 24])


# Batches


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (13, 30)], ids=str)
def test_view_of_a_slice_is_the_slice_of_the_view(channels, size):
    images = sample_images(61, channels, size)
    params = draw_strong(np.random.default_rng(0), 61, size=size, flip=True, prob=0.9)
    strong, weak = strong_view(images, params), weak_view(images, params.weak)
    mask = np.random.default_rng(1).random(61) < 0.4
    workers = [slice(0, 21), slice(21, 41), slice(41, 61)]
    for part in (*workers, mask, np.array([7, 3, 3]), slice(5, 6)):
        assert torch.equal(strong_view(images[part], take(params, part)), strong[part])
        assert torch.equal(weak_view(images[part], take(params.weak, part)), weak[part])


def test_views_repeat_and_leave_the_input_alone():
    images = sample_images(100, 3, SIZE)
    kept = images.clone()
    params = draw_strong(np.random.default_rng(0), 100, size=SIZE, flip=True, prob=1.0)
    assert torch.equal(strong_view(images, params), strong_view(images, params))
    for name in OPS:
        apply_op(images, name, 5.0)
    weak_view(images, params.weak)
    assert torch.equal(images, kept)


def test_empty_batch():
    for channels in (1, 3):
        images = torch.empty(0, channels, 8, 8, dtype=torch.uint8)
        params = draw_strong(np.random.default_rng(0), 4, size=(8, 8), flip=True)
        none = take(params, slice(0, 0))
        assert strong_view(images, none).shape == images.shape
        assert weak_view(images, none.weak).shape == images.shape
        assert all(apply_op(images, name, 5.0).shape == images.shape for name in OPS)
    assert len(draw_strong(np.random.default_rng(0), 0, size=(8, 8), flip=True).op) == 0


def test_channels_last_images_and_read_only_parameters_make_no_difference():
    images = sample_images(60, 3, SIZE)
    params = draw_strong(np.random.default_rng(0), 60, size=SIZE, flip=True)
    expected = strong_view(images, params)
    for part in (*params.weak, *params[1:]):
        part.flags.writeable = False
    permuted = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(strong_view(permuted, params), expected)
    assert strong_view(permuted, params).is_contiguous()
    for name in OPS:
        assert torch.equal(apply_op(permuted, name, 5.0), apply_op(images, name, 5.0)), name


def test_sizes_that_do_not_fill_whole_words_make_no_difference():
    """Rows of bytes are written in words of eight where they fit; 5 x 5 x 3 bytes do not."""
    rng = np.random.default_rng(0)
    chains = rng.choice(NAMES, (60, 4)).tolist()
    magnitudes = random_magnitudes(chains, rng)
    images = sample_images(60, 3, (5, 5))
    ours = strong_view(images, chain_params(chains, magnitudes))
    assert differing(ours, pillow_chain(images, chains, magnitudes)).mean() <= 1e-4


# Parameters


def test_the_table_is_that_of_the_fixmatch_paper():
    enhance, slant = (0.05, 0.95), (-0.3, 0.3)
    assert {name: OPS[name][:2] for name in FIXMATCH_OPS if OPS[name].high > OPS[name].low} == {
        "brightness": enhance,
        "color": enhance,
        "contrast": enhance,
        "posterize": (4, 8),
        "rotate": (-30, 30),
        "sharpness": enhance,
        "shear_x": slant,
        "shear_y": slant,
        "solarize": (0, 1),
        "translate_x": slant,
        "translate_y": slant,
    }
    assert {"autocontrast", "equalize", "identity"} < set(FIXMATCH_OPS)
    assert [name for name in OPS if OPS[name].whole] == ["posterize"]


def test_weak_draws_are_uniform_and_in_range():
    n = 20_000
    params = draw_weak(np.random.default_rng(0), n, size=(28, 32), flip=True)
    shares_y = np.bincount(params.dy + 3) / n  # 12.5 % of 28 is 3.5
    shares_x = np.bincount(params.dx + 4) / n
    np.testing.assert_allclose(shares_y, np.full(7, 1 / 7), atol=0.01)
    np.testing.assert_allclose(shares_x, np.full(9, 1 / 9), atol=0.01)
    assert params.flip.mean() == pytest.approx(0.5, abs=0.02)
    assert not draw_weak(np.random.default_rng(0), n, size=(28, 32), flip=False).flip.any()


def test_operations_are_drawn_equally_often_with_magnitudes_over_the_whole_range():
    n, prob = 30_000, 0.7
    params = draw_strong(np.random.default_rng(0), n, size=SIZE, flip=True, prob=prob)
    assert len(FIXMATCH_OPS) == 14
    counts = np.bincount(params.op.ravel(), minlength=len(NAMES))
    assert counts[NAMES.index("invert")] == 0
    for name in FIXMATCH_OPS:
        chosen = params.op == NAMES.index(name)
        low, high, whole = OPS[name]
        magnitude = params.magnitude[chosen]
        assert chosen.mean(axis=0) == pytest.approx(1 / 14, abs=0.006)
        assert low - 1e-6 <= magnitude.min() <= low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) <= magnitude.max() <= high + 1e-6
        assert magnitude.mean() == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
        if whole:
            shares = [(magnitude == bits).mean() for bits in range(4, 9)]
            np.testing.assert_allclose(shares, np.full(5, 0.2), atol=0.03)
        assert params.apply[chosen].mean() == pytest.approx(prob, abs=0.02)
    pairs = (params.op[:, 0] == params.op[:, 1]).mean()
    assert pairs == pytest.approx(1 / 14, abs=0.006)  # slots are independent


def test_cutout_is_drawn_over_the_whole_image_up_to_half_its_side():
    n = 30_000
    params = draw_strong(np.random.default_rng(0), n, size=(32, 48), flip=True)
    np.testing.assert_allclose(np.bincount(params.cutout_side) / n, np.full(17, 1 / 17), atol=0.01)
    np.testing.assert_allclose(np.bincount(params.cutout_y) / n, np.full(32, 1 / 32), atol=0.01)
    np.testing.assert_allclose(np.bincount(params.cutout_x) / n, np.full(48, 1 / 48), atol=0.01)
    assert params.cutout_apply.all()
    without = draw_strong(np.random.default_rng(0), n, size=(32, 48), flip=True, cutout=0.0)
    assert not without.cutout_side.any()
    half = draw_strong(np.random.default_rng(0), n, size=(32, 48), flip=True, cutout_prob=0.5)
    assert half.cutout_apply.mean() == pytest.approx(0.5, abs=0.02)


def test_a_box_that_is_not_applied_is_not_painted():
    images = sample_images(20, 3, SIZE)
    params = draw_strong(np.random.default_rng(0), 20, size=SIZE, flip=True, num_ops=0)
    off = params._replace(cutout_apply=np.zeros(20, dtype=bool))
    assert torch.equal(strong_view(images, off), weak_view(images, params.weak))
    assert not torch.equal(strong_view(images, params), weak_view(images, params.weak))


def test_draws_take_the_same_random_numbers_whatever_the_options():
    """So that no option, and no value drawn, shifts what is drawn afterwards."""

    def state_after(**options):
        rng = np.random.default_rng(0)
        settings = {"size": SIZE, "flip": True, "num_ops": 2} | options
        draw_strong(rng, 100, **settings)
        return rng.bit_generator.state

    state = state_after()
    plain = np.random.default_rng(0)
    plain.random((7 + 3 * 2) * 100)
    assert state == plain.bit_generator.state
    assert state == state_after(flip=False, shift=0.0)
    assert state == state_after(size=(64, 50), prob=0.0, cutout=0.0, cutout_prob=0.0)
    assert state == state_after(ops=("invert",))


def test_same_generator_same_parameters():
    def draw(seed):
        return draw_strong(np.random.default_rng(seed), 50, size=SIZE, flip=True)

    assert same(draw(0), draw(0))
    assert not same(draw(0), draw(1))


def test_ops_can_be_chosen():
    ops = ("invert", "rotate")
    params = draw_strong(np.random.default_rng(0), 500, size=SIZE, flip=True, ops=ops, num_ops=3)
    assert params.op.shape == (500, 3)
    assert set(np.unique(params.op)) == {NAMES.index(name) for name in ops}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shift": 1.0}, "shift = 1.0"),
        ({"shift": -0.1}, "shift = -0.1"),
        ({"prob": 1.5}, "prob = 1.5"),
        ({"cutout": -1.0}, "cutout = -1"),
        ({"cutout_prob": 2.0}, "cutout_prob = 2"),
        ({"num_ops": -1}, "num_ops = -1"),
        ({"ops": ("rotate", "blur")}, "blur"),
        ({"ops": ()}, "choose from"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_strong(np.random.default_rng(0), 5, size=SIZE, flip=True, **options)


def test_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="unknown operation 'blur'"):
        apply_op(sample_images(1, 3, SIZE), "blur", 0.5)


# Speed and devices


def test_throughput_is_not_absurd():
    """A very loose bound, which a loop over images would miss."""
    images = sample_images(448, 3, SIZE)
    params = draw_strong(np.random.default_rng(0), 448, size=SIZE, flip=True)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        strong_view(images, params)
        seconds.append(time.perf_counter() - start)
    assert 448 / min(seconds) > 3000


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("channels", [1, 3])
def test_cuda_equals_cpu(channels):
    images = sample_images(450, channels, SIZE)
    params = draw_strong(np.random.default_rng(0), 450, size=SIZE, flip=True, prob=1.0, num_ops=3)
    views = strong_view(images.cuda(), params)
    assert views.is_cuda
    assert torch.equal(views.cpu(), strong_view(images, params))
