import pytest
import torch
from torch import nn

from kdfm_ray.models.ema import Ema


class Counter(nn.Module):
    """One weight, one floating-point buffer, one integer buffer."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.register_buffer("mean", torch.tensor([value]))
        self.register_buffer("count", torch.tensor(int(value)))

    def become(self, value: float) -> None:
        with torch.no_grad():
            self.weight.fill_(value)
            self.mean.fill_(value)
            self.count.fill_(int(value))


VALUES = [10.0, 20.0, -7.0, 4.0, 4.0]


def follow(decay, *, warmup, values=VALUES):
    network = Counter()
    ema = Ema(network, decay, warmup=warmup)
    for step, value in enumerate(values):
        network.become(value)
        ema.update(network, step)
    return ema


def test_by_hand_without_warm_up():
    ema = follow(0.9, warmup=False, values=[10.0, 20.0, -7.0])
    # the first update copies; 0.9 * 10 + 0.1 * 20 = 11; 0.9 * 11 - 0.1 * 7 = 9.2
    assert ema.network.weight.item() == pytest.approx(9.2)
    assert ema.network.mean.item() == pytest.approx(9.2)
    assert ema.network.count.item() == -7


def test_warm_up_follows_its_formula():
    average = 0.0
    for step, value in enumerate(VALUES):
        decay = min(0.6, 1 - (step + 1) ** -0.75)
        average = decay * average + (1 - decay) * value
    assert follow(0.6, warmup=True).network.weight.item() == pytest.approx(average)
    assert 1 - 3**-0.75 < 0.6 < 1 - 4**-0.75  # the cap is met in the middle of the sequence


@pytest.mark.parametrize("warmup", [True, False])
def test_a_resume_needs_the_weights_and_the_step_only(warmup):
    whole = follow(0.9, warmup=warmup)
    first = follow(0.9, warmup=warmup, values=VALUES[:3])
    network = Counter()
    second = Ema(network, 0.9, warmup=warmup)
    second.network.load_state_dict(first.network.state_dict())
    for step in (3, 4):
        network.become(VALUES[step])
        second.update(network, step)
    assert second.network.weight.item() == whole.network.weight.item()


def test_the_average_is_a_separate_network_in_eval_mode_without_gradients():
    network = Counter().train()
    ema = Ema(network, 0.9, warmup=True)
    assert not ema.network.training
    assert not any(parameter.requires_grad for parameter in ema.network.parameters())
    network.become(5.0)
    assert ema.network.weight.item() == 0.0
    assert network.weight.requires_grad
    assert network.training


def test_batch_norm_statistics_are_averaged_and_counters_copied():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    ema = Ema(network, 0.5, warmup=False)
    means = []
    for step in range(2):
        network(torch.randn(4, 1, 3, 3) + step)
        ema.update(network, step)
        means.append(network[1].running_mean.clone())
    torch.testing.assert_close(ema.network[1].running_mean, (means[0] + means[1]) / 2)
    assert ema.network[1].num_batches_tracked == 2
