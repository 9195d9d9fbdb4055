from dataclasses import replace

import pytest
import torch
from torch import nn

from kdfm_ray.config import TrainConfig, parse_config
from kdfm_ray.models.numerics import (
    Numerics,
    allowed_numerics,
    compile_is_open,
    possible_numerics,
)

CPU = torch.device("cpu")


def test_fp32_and_bf16():
    layer, x = nn.Linear(8, 4), torch.randn(2, 8)
    with Numerics("fp32").autocast(CPU):
        assert layer(x).dtype == torch.float32
    with Numerics("bf16").autocast(CPU):
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


def test_a_pass_without_a_graph_leaves_the_next_one_its_gradients():
    """Autocast keeps cast weights; those of a pass without a graph must not be used again."""
    net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 8)
    gradients = []
    for weak_pass_first in (False, True):
        net.zero_grad()
        with Numerics("bf16").autocast(CPU):
            if weak_pass_first:
                with torch.no_grad():
                    net(x)
            loss = net(x).float().square().sum()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("train", "allowed"),
    [
        ({}, ["bf16 channels_last", "fp32 channels_last", "bf16 contiguous", "fp32 contiguous"]),
        ({"precision": "fp32"}, ["fp32 channels_last", "fp32 contiguous"]),
        ({"memory_format": "contiguous"}, ["bf16 contiguous", "fp32 contiguous"]),
        (
            {"precision": "bf16", "memory_format": "contiguous", "compile": "on"},
            ["bf16 contiguous compiled"],
        ),
    ],
)
def test_what_a_config_leaves_open(train, allowed):
    assert [str(choice) for choice in allowed_numerics(TrainConfig(**train))] == allowed


@pytest.mark.parametrize(
    ("settings", "is_open"),
    [
        ({}, True),
        ({"train": {"precision": "bf16"}}, True),
        ({"train": {"precision": "bf16", "memory_format": "contiguous"}}, False),
        ({"train": {"compile": "off"}}, False),
        ({"train": {"compile": "on"}}, False),
        ({"fixmatch": {"strong_views": "masked"}}, True),
        ({"train": {"norm_sync": "global"}}, False),
    ],
)
def test_compiling_is_open_where_numerics_are(settings, is_open):
    config = parse_config({"data": {"name": "digits"}} | settings)
    assert compile_is_open(config) is is_open
    allowed = allowed_numerics(config.train)
    compiled = [replace(choice, compile=True) for choice in allowed] if is_open else []
    assert possible_numerics(config) == allowed + compiled


@pytest.mark.parametrize(("same_shapes", "dynamic"), [(True, False), (False, None)])
def test_batches_of_a_few_sizes_have_kernels_of_their_own(monkeypatch, same_shapes, dynamic):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda module, dynamic: seen.append(dynamic) or module)
    try:
        for optional in (True, False):
            Numerics(compile=True).compiled(
                nn.Linear(4, 2), same_shapes=same_shapes, optional=optional
            )
            assert torch._dynamo.config.suppress_errors is optional
    finally:
        torch._dynamo.config.suppress_errors = False
    assert seen == [dynamic] * 2


def test_compiled_is_the_same_network():
    layer = nn.Linear(4, 2)
    assert Numerics().compiled(layer) is layer
    compiled = Numerics(compile=True).compiled(layer)
    assert compiled is not layer
    assert next(compiled.parameters()) is next(layer.parameters())


def test_float32_on_a_gpu_is_not_tensorfloat32(monkeypatch):
    """By the settings alone, which are there without a GPU too."""
    convolutions = torch.backends.cudnn.conv
    layer = nn.Conv2d(1, 1, 1)
    monkeypatch.setattr(layer, "to", lambda *args, **kwargs: layer)  # no GPU needed
    before = convolutions.fp32_precision
    try:
        convolutions.fp32_precision = "tf32"  # torch's own default
        Numerics("fp32").place(layer, CPU)
        assert convolutions.fp32_precision == "tf32", "a CPU has none"
        Numerics("fp32").place(layer, torch.device("cuda"))
        assert convolutions.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        convolutions.fp32_precision = torch.backends.cudnn.rnn.fp32_precision = before
        torch.backends.cuda.matmul.fp32_precision = "none"
