"""The table of named data sets, digits for real, and Fashion-MNIST where Debian put it."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from kdfm_ray.data.catalog import CATALOG, check_name, load
from kdfm_ray.types import UserError

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_names_and_flips():
    assert list(CATALOG) == [
        *("digits", "fashion_mnist", "mnist", "cifar10", "cifar100", "svhn", "food101", "stl10")
    ]
    assert {name for name, entry in CATALOG.items() if not entry.flip} == {
        "digits",
        "mnist",
        "svhn",
    }
    grey = {name for name, entry in CATALOG.items() if entry.channels == 1}
    assert grey == {"digits", "mnist", "fashion_mnist"}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cifar-10", "cifar10"),
        ("Fashion-MNIST", "fashion_mnist"),
        ("digit", "digits"),
        ("qx", None),
    ],
)
def test_unknown_names_are_told(name, meant):
    with pytest.raises(UserError, match=re.escape(repr(name))) as caught:
        check_name(name)
    assert ("Did you mean" in str(caught.value)) == (meant is not None)
    assert meant is None or f"Did you mean {meant}?" in str(caught.value)
    assert ", ".join(CATALOG) in str(caught.value)
    with pytest.raises(UserError, match="there is no data set named"):
        load(name, Path())


def test_image_size_must_be_positive():
    with pytest.raises(ValueError, match="at least 1"):
        load("digits", Path(), 0)


def test_digits():
    data = load("digits", Path("/nowhere"))
    assert data.train.images.shape == (1438, 32, 32, 1)
    assert data.test is not None
    assert data.test.images.shape == (359, 32, 32, 1)
    assert data.classes == tuple("0123456789")
    assert not data.flip
    assert (data.train.images.min(), data.train.images.max()) == (0, 255)
    share = np.bincount(data.test.labels) / np.bincount(
        np.concatenate([data.train.labels, data.test.labels])
    )
    np.testing.assert_allclose(share, 0.2, atol=0.003)


def test_digits_are_scikit_learns():
    """At 8 pixels nothing is resized: the values are the original ones times 255 / 16."""
    from sklearn.datasets import load_digits

    data = load("digits", Path("/nowhere"), 8)
    assert data.test is not None
    found = np.concatenate([data.train.images, data.test.images])[..., 0]
    labels = np.concatenate([data.train.labels, data.test.labels])
    original = load_digits()

    def rows(images, labels):
        return sorted([int(y), *x.tolist()] for x, y in zip(images, labels, strict=True))

    sixteenths = np.rint(found.reshape(-1, 64) / 255 * 16).astype(int)
    assert rows(sixteenths, labels) == rows(original.data.astype(int), original.target)


def test_digits_test_set_is_fixed():
    first, second = (load("digits", Path("/nowhere"), 8).test for _ in range(2))
    assert first is not None
    assert second is not None
    np.testing.assert_array_equal(first.images, second.images)
    digest = hashlib.sha256(first.images.tobytes() + first.labels.astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == GOLDEN_TEST_SET


GOLDEN_TEST_SET = "9407c3959d104c2f"


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_debians_fashion_mnist():
    data = load("fashion_mnist", DEBIAN)
    assert data.test is not None
    assert data.train.images.shape == (60_000, 28, 28, 1)
    assert data.test.images.shape == (10_000, 28, 28, 1)
    assert np.bincount(data.train.labels).tolist() == [6000] * 10
    assert np.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.train.labels[:5].tolist() == [9, 0, 0, 3, 0]
    assert data.train.images.mean() == pytest.approx(72.94, abs=0.01)  # 0.2860 of 255
    with pytest.raises(UserError, match="those of FashionMNIST, not of MNIST"):
        load("mnist", DEBIAN)
