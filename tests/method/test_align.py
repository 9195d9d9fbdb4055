"""Distribution alignment against its formula, over batches and over workers."""

import itertools

import pytest
import torch

from kdfm_ray.method.align import MOMENTUM, Alignment, class_shares


def alone(values):
    return values


def batch(n, seed, k=4):
    logits = torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 2
    return (logits + torch.arange(k) * 0.7).softmax(dim=1)  # the last class is seen too often


def test_the_first_batch_by_hand():
    probs = torch.tensor([[0.9, 0.1], [0.7, 0.3]])
    aligned = Alignment(torch.tensor([1.0, 1.0]), alone)(probs)
    # The mean is (0.8, 0.2), so odds are multiplied by (0.5 / 0.8) / (0.5 / 0.2) = 1 / 4.
    odds = probs[:, 0] / probs[:, 1] / 4
    torch.testing.assert_close(aligned[:, 0], odds / (1 + odds))
    torch.testing.assert_close(aligned.sum(dim=1), torch.ones(2))


def test_the_mean_is_that_of_the_batches_so_far_the_later_ones_counting_more():
    alignment = Alignment(torch.ones(4), alone)
    batches = [batch(16, seed) for seed in range(5)]
    for each in batches:
        alignment(each)
    weights = torch.tensor([MOMENTUM ** (4 - i) for i in range(5)])
    means = torch.stack([each.mean(dim=0) for each in batches])
    wanted = (weights[:, None] * means).sum(dim=0) / weights.sum()
    torch.testing.assert_close(alignment.mean / alignment.weight, wanted)


def test_labels_come_in_the_wanted_proportions():
    target = torch.tensor([0.4, 0.3, 0.2, 0.1])
    alignment = Alignment(target, alone)
    for seed in range(200):
        before = batch(64, seed)
        after = alignment(before)
    far = (before.mean(dim=0) - target).abs().max()
    near = (after.mean(dim=0) - target).abs().max()
    assert near < far / 2


def adding(others):
    """The sum with a worker that has those images of batches 0, 1, 2 ..."""
    seeds = itertools.count()

    def add(values):
        other = batch(16, next(seeds))[others]
        return values + torch.cat([other.sum(dim=0), torch.full((1,), float(len(other)))])

    return add


def test_workers_share_one_mean():
    """Two workers with unequal parts of a batch do what one does with all of it."""
    whole, alignments = Alignment(torch.ones(4), alone), []
    for part in (slice(0, 10), slice(10, 16)):
        others = slice(10, 16) if part.start == 0 else slice(0, 10)
        alignments.append((part, Alignment(torch.ones(4), adding(others))))
    for seed in range(3):
        wanted = whole(batch(16, seed))
        for part, alignment in alignments:
            torch.testing.assert_close(alignment(batch(16, seed)[part]), wanted[part])


def test_a_worker_without_images_takes_part():
    alignment = Alignment(torch.ones(4), alone)
    assert alignment(torch.empty(0, 4)).shape == (0, 4)
    assert bool(alignment(batch(3, 0)).isfinite().all())


def test_a_class_that_is_never_predicted_divides_by_no_zero():
    probs = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    aligned = Alignment(torch.ones(2), alone)(probs)
    torch.testing.assert_close(aligned, probs)


def test_class_shares():
    labels = torch.tensor([0, 0, 0, 2])
    torch.testing.assert_close(class_shares(labels, 4), torch.tensor([0.75, 0.0, 0.25, 0.0]))


@pytest.mark.parametrize("target", [[0.0, 0.0], [1.0, -1.0]])
def test_shares_of_nothing_are_refused(target):
    with pytest.raises(ValueError, match="shares of classes"):
        Alignment(torch.tensor(target), alone)
