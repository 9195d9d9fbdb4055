"""Wrong labels on purpose."""

import numpy as np
import pytest

from kdfm_ray.trust.noise import corrupt

LABELS = np.random.default_rng(0).integers(0, 10, 5000)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 1.0])
def test_that_share_is_wrong_and_stays_in_range(share):
    before = LABELS.copy()
    noisy = corrupt(LABELS, share, num_classes=10, seed=0)
    assert (noisy != LABELS).sum() == round(share * len(LABELS))
    assert noisy.min() >= 0
    assert noisy.max() < 10
    np.testing.assert_array_equal(LABELS, before)


def test_every_wrong_class_is_as_likely():
    noisy = corrupt(LABELS, 1.0, num_classes=10, seed=0)
    offsets = np.bincount((noisy - LABELS) % 10, minlength=10)
    assert offsets[0] == 0
    assert offsets[1:].min() > 0.8 * len(LABELS) / 9


def test_more_noise_spoils_more_of_the_same_and_seeds_differ():
    little, much = (corrupt(LABELS, share, num_classes=10, seed=0) for share in (0.2, 0.4))
    spoiled = little != LABELS
    np.testing.assert_array_equal(much[spoiled], little[spoiled])
    other = corrupt(LABELS, 0.2, num_classes=10, seed=1)
    assert (other != little).mean() > 0.2
