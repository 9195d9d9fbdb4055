"""Adaptive thresholds against FreeMatch's equations, over batches and over workers."""

import numpy as np
import pytest
import torch

from kdfm_ray.method.merge import merge_targets
from kdfm_ray.method.thresholds import MOMENTUM, Thresholds


def alone(values):
    return values


def batch(n, seed, k=4):
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 2
    return (logits + torch.arange(k) * 0.7).softmax(dim=1)  # the last class is seen too often


def reference(batches, k, most):
    """Equations 5 to 8 in NumPy, batch by batch; the thresholds of classes after the last one."""
    t, p = 1 / k, np.full(k, 1 / k)
    for each in batches:
        probs = each.double().numpy()
        t = MOMENTUM * t + (1 - MOMENTUM) * probs.max(axis=1).mean()
        p = MOMENTUM * p + (1 - MOMENTUM) * probs.mean(axis=0)
    return np.minimum(p / p.max() * t, most)


@pytest.mark.parametrize("most", [0.95, 0.4])
def test_thresholds_are_those_of_the_paper(most):
    batches = [batch(16, seed) for seed in range(60)]
    thresholds = Thresholds(4, most, alone)
    for each in batches:
        found = thresholds(each)
    wanted = reference(batches, 4, most)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wanted[batches[-1].argmax(dim=1).numpy()], rtol=1e-5)


def test_a_class_that_is_predicted_less_has_a_lower_threshold_and_all_rise():
    thresholds = Thresholds(4, 1.0, alone)
    first = thresholds(batch(64, 0))
    for seed in range(1, 300):
        probs = batch(64, seed)
        last = thresholds(probs)
    rare, often = (last[probs.argmax(dim=1) == c][0] for c in (0, 3))
    assert rare < 0.5 * often
    assert first.max() < 0.3 < often


def test_the_bound_of_one_half_with_sure_predictions():
    sure = torch.eye(4).repeat(4, 1)
    thresholds = Thresholds(4, 0.5, alone)
    for _ in range(300):
        found = thresholds(sure)
    torch.testing.assert_close(found, torch.full((16,), 0.5))


def test_workers_share_the_means():
    """Two workers with unequal parts of a batch do what one does with all of it."""
    whole = Thresholds(4, 0.95, alone)
    parts = {10: slice(0, 10), 6: slice(10, 16)}
    for part in parts.values():
        mine = Thresholds(4, 0.95, alone)
        for seed in range(3):
            probs = batch(16, seed)
            sums = torch.cat(
                [probs.sum(dim=0), probs.amax(dim=1).sum()[None], torch.tensor([16.0])]
            )
            mine._sum = lambda _, sums=sums: sums
            found = mine(probs[part])
        for seed in range(3):
            wanted = whole(batch(16, seed))
        torch.testing.assert_close(found, wanted[part])
        whole = Thresholds(4, 0.95, alone)


def test_a_worker_without_images_takes_part():
    asked = []
    thresholds = Thresholds(4, 0.95, lambda values: asked.append(values) or values)
    assert thresholds(torch.empty(0, 4)).shape == (0,)
    assert torch.equal(asked[0], torch.zeros(6))
    assert bool(thresholds(batch(3, 0)).isfinite().all())


def test_a_threshold_for_each_image_masks_each_image():
    probs = torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.3, 0.7]])
    nobody = torch.full((3,), -1)
    found = merge_targets(probs, nobody, tau_inner=torch.tensor([0.5, 0.65, 0.65]))
    assert found.mask.tolist() == [True, False, True]
    assert found.target.tolist() == [0, 0, 1]
