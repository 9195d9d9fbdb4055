import math

import pytest
import torch

from kdfm_ray.method.losses import (
    cross_entropy,
    generalized_cross_entropy,
    make_loss,
    reverse_cross_entropy,
    symmetric_cross_entropy,
)

PARAMETERS = {"alpha": 0.3, "beta": 1.5, "q": 0.7}
NAMES = ["ce", "sce", "gce"]

# softmax of these is exactly (1/2, 1/4, 1/4)
HAND = torch.tensor([[math.log(2.0), 0.0, 0.0]])


def at(target: int) -> torch.Tensor:
    return torch.tensor([target])


def test_by_hand():
    assert cross_entropy(HAND, at(0)).item() == pytest.approx(0.693147)
    assert cross_entropy(HAND, at(1)).item() == pytest.approx(1.386294)
    # -log(1e-4) = 9.210340, times the probability that lies off the target
    assert reverse_cross_entropy(HAND, at(0)).item() == pytest.approx(4.605170)
    assert reverse_cross_entropy(HAND, at(1)).item() == pytest.approx(6.907755)
    symmetric = symmetric_cross_entropy(HAND, at(1), alpha=0.1, beta=1.0)
    assert symmetric.item() == pytest.approx(7.046385)
    # (1 - sqrt(1/4)) / 0.5 = 1
    assert generalized_cross_entropy(HAND, at(1), q=0.5).item() == pytest.approx(1.0)


def direct(name: str, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The papers' formulas as written: sums over classes, float64."""
    probs = logits.double().softmax(1)
    onehot = torch.nn.functional.one_hot(target, logits.shape[1]).double()
    forward = -(onehot * probs.log()).sum(1)
    if name == "ce":
        return forward
    if name == "sce":
        log_onehot = torch.where(onehot > 0, 0.0, math.log(1e-4))
        return 0.3 * forward + 1.5 * -(probs * log_onehot).sum(1)
    return (1 - (onehot * probs).sum(1) ** 0.7) / 0.7


@pytest.mark.parametrize("name", NAMES)
def test_against_the_direct_formula(name):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(64, 10, generator=generator) * 5
    target = torch.randint(10, (64,), generator=generator)
    loss = make_loss(name, **PARAMETERS)(logits, target)
    assert loss.shape == (64,)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), direct(name, logits, target), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gap", [-1e4, -200.0, 200.0, 1e4])
def test_extreme_logits_give_finite_values_and_gradients(name, gap):
    logits = torch.tensor([[gap, 0.0, 0.0]], requires_grad=True)
    loss = make_loss(name, **PARAMETERS)(logits, at(0))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    ce = -gap + math.log(2)  # two other classes share the probability
    limit = {"ce": ce, "sce": 0.3 * ce + 1.5 * 9.210340, "gce": 1 / 0.7}[name]
    assert loss.item() == pytest.approx(limit if gap < 0 else 0.0, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_in_float64(name):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(4, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 4, 2, 2])
    loss = make_loss(name, **PARAMETERS)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_logits_are_computed_in_float32(name):
    logits = (torch.randn(8, 10, generator=torch.Generator().manual_seed(3)) * 4).bfloat16()
    target = torch.arange(8)
    loss = make_loss(name, **PARAMETERS)
    assert torch.equal(loss(logits, target), loss(logits.float(), target))


def test_generalized_cross_entropy_lies_between_its_two_ends():
    ce = cross_entropy(HAND, at(1))
    assert generalized_cross_entropy(HAND, at(1), q=1e-5).item() == pytest.approx(ce.item(), 1e-3)
    assert generalized_cross_entropy(HAND, at(1), q=1.0).item() == pytest.approx(0.75)


def test_an_empty_batch():
    for name in NAMES:
        loss = make_loss(name, **PARAMETERS)
        assert loss(torch.empty(0, 3), torch.empty(0, dtype=torch.int64)).shape == (0,)


def test_an_unknown_name_and_a_bad_exponent():
    with pytest.raises(ValueError, match=r"unknown loss 'mse'; choose one of ce, sce, gce"):
        make_loss("mse", **PARAMETERS)
    with pytest.raises(ValueError, match=r"q=0.0; q must lie in \(0, 1\]"):
        make_loss("gce", alpha=1.0, beta=1.0, q=0.0)
