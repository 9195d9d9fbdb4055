import math
from itertools import pairwise

import pytest
import torch

from kdfm_ray.models.backbone import create_network
from kdfm_ray.training.optimizer import cosine_factor, make_optimizer, parameter_groups


def tiny(name="wrn_10_2"):
    return create_network(name, num_classes=3, image_channels=3, image_size=32, seed=0)


def settings(network, groups):
    """Parameter name -> its group, after a check that each is in exactly one."""
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert sorted(name for name, _ in found) == sorted(names.values())
    return dict(found)


def test_no_decay_on_norm_and_bias():
    network = tiny()
    of = settings(network, parameter_groups(network, 5e-4))
    decayed = {name for name, group in of.items() if group["weight_decay"] == 5e-4}
    spared = {name for name, group in of.items() if group["weight_decay"] == 0}
    assert decayed | spared == set(of)
    assert decayed == {name for name in of if "conv" in name or "shortcut" in name} | {
        "backbone.fc.weight"
    }
    assert "backbone.stages.0.0.norm1.weight" in spared
    assert "backbone.fc.bias" in spared


def test_no_decay_on_what_the_backbone_excludes():
    network = tiny("test_vit")
    of = settings(network, parameter_groups(network, 0.05))
    assert of["backbone.pos_embed"]["weight_decay"] == 0
    assert of["backbone.blocks.0.attn.qkv.weight"]["weight_decay"] == 0.05


@pytest.mark.parametrize("name", ["wrn_10_2", "test_vit", "test_efficientnet"])
def test_layer_decay_slows_the_layers_near_the_image(name):
    network = tiny(name)
    optimizer = make_optimizer(
        "adamw", network, learning_rate=0.1, momentum=0.9, weight_decay=0.05, layer_decay=0.5
    )
    of = settings(network, optimizer.param_groups)
    classifier = network.backbone.pretrained_cfg["classifier"]
    rates = {key: group["lr"] for key, group in of.items()}
    assert rates[f"backbone.{classifier}.weight"] == 0.1
    first = next(iter(rates))
    assert rates[first] == min(rates.values()) < 0.1 * 0.5
    assert of[f"backbone.{classifier}.bias"]["weight_decay"] == 0


def test_sgd_by_hand():
    """Two Nesterov updates of one weight against the formula."""
    network = tiny()
    optimizer = make_optimizer(
        "sgd", network, learning_rate=0.1, momentum=0.9, weight_decay=0.01, layer_decay=None
    )
    weight = network.backbone.fc.weight
    expected, velocity = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(2):
        gradient = torch.full_like(weight, 0.3)
        weight.grad = gradient.clone()
        optimizer.step()
        decayed = gradient + 0.01 * expected
        velocity = 0.9 * velocity + decayed
        expected = expected - 0.1 * (decayed + 0.9 * velocity)
    torch.testing.assert_close(weight.detach(), expected)


def test_optimizers_by_name():
    network, rest = tiny(), {"learning_rate": 0.03, "momentum": 0.9, "weight_decay": 5e-4}
    sgd = make_optimizer("sgd", network, **rest)
    assert isinstance(sgd, torch.optim.SGD)
    assert all(group["nesterov"] and group["lr"] == 0.03 for group in sgd.param_groups)
    assert isinstance(make_optimizer("adamw", network, **rest), torch.optim.AdamW)
    plain = make_optimizer("sgd", network, **{**rest, "momentum": 0.0})
    assert not plain.param_groups[0]["nesterov"]
    with pytest.raises(ValueError, match=r"unknown optimizer 'lion'; choose one of sgd, adamw"):
        make_optimizer("lion", network, **rest)


def test_schedule_values():
    assert cosine_factor(0, 1000) == 1.0
    assert cosine_factor(500, 1000) == pytest.approx(math.cos(7 * math.pi / 32))  # 0.7730
    assert cosine_factor(1000, 1000) == pytest.approx(0.195090, abs=1e-6)


def test_schedule_with_warm_up():
    factors = [cosine_factor(step, 20, warmup_steps=4) for step in range(20)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[5] == pytest.approx(math.cos(7 * math.pi / 16 / 16))
    assert all(a > b for a, b in pairwise(factors[4:]))
