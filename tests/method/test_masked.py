"""The strong pass only where it counts: the same loss, on fewer images."""

import pytest
import torch
from test_fixmatch import make_batch, make_network, middle_tau, step

from kdfm_ray.method.fixmatch import supervised_step


class Strong:
    """Strong views by position, and who was asked for."""

    def __init__(self, images):
        self.images, self.asked = images, None

    def __call__(self, position):
        self.asked = position.tolist()
        return self.images[position]


def masked(batch):
    images_x, label_x, weak_u, strong_u = batch
    return images_x, label_x, weak_u, Strong(strong_u)


@pytest.mark.parametrize("passing", [0, 5, 10])
def test_without_batch_norm_it_equals_the_whole_pass(passing):
    batch, whole, part = make_batch(), make_network("group"), make_network("group")
    tau = {0: 1.01, 5: middle_tau(whole, batch[2]), 10: 0.0}[passing]
    expected, found = step(whole, batch, tau=tau), step(part, masked(batch), tau=tau)
    expected.loss.backward()
    found.loss.backward()
    assert found.sums["mask"].item() == passing
    for name, value in expected.sums.items():
        torch.testing.assert_close(found.sums[name], value, msg=name, atol=1e-5, rtol=1e-5)
    assert found.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    for mine, other in zip(part.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4)


def test_only_images_that_pass_the_mask_are_augmented_and_passed():
    batch, network = masked(make_batch()), make_network()
    tau = middle_tau(network, batch[2])
    passed = []

    def forward(images):
        passed.append(len(images))
        return network(images)

    trusted = torch.full((10,), -1)
    output = step(forward, batch, tau=tau, trusted=trusted)
    kept = batch[3].asked
    assert len(kept) == 5 == output.sums["mask"].item()
    assert passed == [10, len(batch[0]) + 5]


def test_one_labeled_image_alone_gets_company_that_counts_nothing():
    images_x, label_x, weak_u, strong_u = make_batch(b=1)
    network, alone = make_network("group"), make_network("group")
    strong = Strong(strong_u)
    output = step(network, (images_x, label_x, weak_u, strong), tau=1.01)
    output.loss.backward()
    assert strong.asked == [0]
    assert output.sums["loss_u"].item() == 0
    supervised_step(alone, images_x, label_x, denom_x=1.0).loss.backward()
    for mine, other in zip(network.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-5)
