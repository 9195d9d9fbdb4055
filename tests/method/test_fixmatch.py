"""The step against a plain reference of a few lines, on the same batch."""

import copy

import pytest
import torch
import torch.nn.functional as F

from kdfm_ray.method.fixmatch import fixmatch_step, supervised_step
from kdfm_ray.method.losses import cross_entropy
from kdfm_ray.models.backbone import create_network

NUM_CLASSES = 4


def make_batch(b=3, u=10, size=12):
    generator = torch.Generator().manual_seed(0)

    def images(n):
        return torch.randint(0, 256, (n, 1, size, size), dtype=torch.uint8, generator=generator)

    labels = torch.randint(0, NUM_CLASSES, (b,), generator=generator)
    return images(b), labels, images(u), images(u)


def make_network(norm="batch", seed=0):
    return create_network(
        "wrn_10_2", num_classes=NUM_CLASSES, image_channels=1, image_size=12, norm=norm, seed=seed
    )


def middle_tau(network, weak_u):
    """A threshold that half of the images pass."""
    network = copy.deepcopy(network)  # train mode moves batch-norm statistics
    with torch.no_grad():
        confidence = network(weak_u).logits.softmax(1).max(1).values.sort().values
    return ((confidence[4] + confidence[5]) / 2).item()


def step(network, batch, trusted=None, tau=0.3, lambda_u=1.0, truth=None):
    images_x, label_x, weak_u, strong_u = batch
    none = torch.full((len(weak_u),), -1)
    return fixmatch_step(
        network,
        images_x,
        label_x,
        weak_u,
        strong_u,
        none if trusted is None else trusted,
        none if truth is None else truth,
        torch.arange(len(weak_u)) != 3,
        tau=tau,
        lambda_u=lambda_u,
        unlabeled_loss=cross_entropy,
        denom_x=float(len(images_x)),
        denom_u=float(len(weak_u)),
    )


def reference_loss(network, batch, tau, lambda_u):
    """FixMatch as its paper states it."""
    images_x, label_x, weak_u, strong_u = batch
    with torch.no_grad():
        q = network(weak_u).logits.softmax(1)
    mask = q.max(1).values >= tau
    logits = network(torch.cat([images_x, strong_u])).logits
    loss_x = F.cross_entropy(logits[: len(images_x)], label_x)
    per_image = F.cross_entropy(logits[len(images_x) :], q.argmax(1), reduction="none")
    return loss_x + lambda_u * (per_image * mask).sum() / len(weak_u), mask


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("lambda_u", [1.0, 2.5])
def test_loss_gradients_and_statistics_equal_the_reference(norm, lambda_u):
    batch, ours, theirs = make_batch(), make_network(norm), make_network(norm)
    tau = middle_tau(ours, batch[2])
    expected, mask = reference_loss(theirs, batch, tau, lambda_u)
    assert mask.sum() == 5
    expected.backward()
    output = step(ours, batch, lambda_u=lambda_u, tau=tau)
    output.loss.backward()

    assert output.loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert output.sums["mask"].item() == mask.sum()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-5, rtol=1e-4, msg=name)
    for mine, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, other)


def test_unlabeled_loss_divides_by_all_unlabeled_images():
    batch, network = make_batch(), make_network("group")
    output = step(network, batch)
    loss_x = output.sums["loss_x"] / len(batch[0])
    loss_u = output.sums["loss_u"] / len(batch[2])
    assert output.loss.item() == pytest.approx((loss_x + loss_u).item(), abs=1e-6)


def test_no_gradient_where_the_mask_is_zero():
    batch = make_batch()
    closed, labeled_only = make_network("group"), make_network("group")
    output = step(closed, batch, tau=1.01)
    output.loss.backward()
    supervised_step(labeled_only, batch[0], batch[1], denom_x=float(len(batch[0]))).loss.backward()

    assert output.sums["loss_u"].item() == 0
    for mine, other in zip(closed.parameters(), labeled_only.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_each_image_has_gradient_only_if_it_passes_the_mask():
    images_x, label_x, weak_u, strong_u = make_batch()
    network = make_network("group")
    tau = middle_tau(network, weak_u)
    with torch.no_grad():
        mask = network(weak_u).logits.softmax(1).max(1).values >= tau
    seen = []

    def forward(images):
        output = network(images)
        if output.logits.requires_grad:
            output.logits.retain_grad()
            seen.append(output.logits)
        return output

    step(forward, (images_x, label_x, weak_u, strong_u), tau=tau).loss.backward()
    (logits,) = seen  # one pass with a graph, the weak pass has none
    norms = logits.grad[len(images_x) :].abs().sum(1)
    assert torch.equal(norms > 0, mask)


def test_trusted_labels_fill_in_where_the_network_is_not_confident():
    batch, network = make_batch(), make_network("group")
    trusted = torch.full((10,), -1)
    trusted[:4] = 2
    truth = torch.full((10,), -1)
    truth[:2] = 2
    truth[2] = 1
    output = step(network, batch, trusted=trusted, truth=truth, tau=1.01)
    assert output.sums["mask"].item() == 4
    assert output.sums["trusted"].item() == 3, "one of the four is not counted"
    assert output.sums["counted"].item() == 9
    assert output.sums["override"].item() == 0
    assert (output.sums["known"].item(), output.sums["correct"].item()) == (3, 2)
    logits = network(torch.cat([batch[0], batch[3]])).logits[len(batch[0]) :]
    expected = F.cross_entropy(logits[:4], trusted[:4], reduction="sum")
    assert output.sums["loss_u"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_autocast_entered_per_pass_keeps_weight_gradients():
    """A shared autocast region would reuse weights cast without a graph, and lose gradients."""
    batch, exact, mixed = make_batch(), make_network("group"), make_network("group")

    def forward(images):
        with torch.autocast("cpu", torch.bfloat16):
            return mixed(images)

    step(exact, batch, tau=0.0).loss.backward()
    step(forward, batch, tau=0.0).loss.backward()
    for (name, mine), other in zip(mixed.named_parameters(), exact.parameters(), strict=True):
        assert mine.grad is not None, name
        cosine = F.cosine_similarity(mine.grad.flatten(), other.grad.flatten(), dim=0)
        assert cosine > 0.9, (name, cosine)
