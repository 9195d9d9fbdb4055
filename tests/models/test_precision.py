import pytest
import torch
from torch import nn

from kdfm_ray.models.precision import autocast

CPU = torch.device("cpu")


def test_fp32_and_bf16():
    layer, x = nn.Linear(8, 4), torch.randn(2, 8)
    with autocast(CPU, "fp32"):
        assert layer(x).dtype == torch.float32
    with autocast(CPU, "bf16"):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_a_pass_without_a_graph_leaves_the_next_one_its_gradients():
    """Autocast keeps cast weights; those of a pass without a graph must not be used again."""
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 8)
    gradients = []
    for weak_pass_first in (False, True):
        net.zero_grad()
        with autocast(CPU, "bf16"):
            if weak_pass_first:
                with torch.no_grad():
                    net(x)
            loss = net(x).float().square().sum()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_unknown():
    with pytest.raises(ValueError, match=r"unknown precision 'fp16'; choose fp32 or bf16"):
        autocast(CPU, "fp16")
