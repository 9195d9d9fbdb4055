import pytest
import timm
import torch

import kdfm_ray.models.wide_resnet  # noqa: F401  (registers the names)


def make(name="wrn_10_2", **kwargs):
    return timm.create_model(name, **kwargs)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "num_classes", "parameters"),
    [
        ("wrn_28_2", 10, 1_467_610),  # 1.5 million in FixMatch's paper
        ("wrn_28_8", 100, 23_401_012),  # 23.4 million
        ("wrn_16_2", 10, 691_674),
        ("wrn_10_2", 10, 303_706),
    ],
)
def test_parameter_counts_of_the_literature(name, num_classes, parameters):
    assert count(make(name, num_classes=num_classes)) == parameters


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "reduced"), [(28, 7), (32, 8), (33, 9), (96, 24)])
def test_shapes(size, reduced, channels):
    model = make(num_classes=5, in_chans=channels)
    features = model.forward_features(torch.randn(2, channels, size, size))
    assert features.shape == (2, 128, reduced, reduced)
    assert model.forward_head(features, pre_logits=True).shape == (2, 128)
    assert model.forward_head(features).shape == (2, 5)


def test_timm_conventions():
    model = make(num_classes=5)
    assert model.num_features == 128
    assert model.get_classifier().out_features == 5
    model.reset_classifier(7)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    model.reset_classifier(0, global_pool="")
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 128, 8, 8)
    assert "wrn_28_2" in timm.list_models("wrn_*")
    assert not timm.is_model_pretrained("wrn_28_2")


def test_the_first_block_only_has_an_activated_shortcut():
    blocks = [block for stage in make("wrn_16_2").stages for block in stage]
    assert [block.activate_shortcut for block in blocks] == [True] + [False] * 5
    strides = [block.conv1.stride[0] for block in blocks]
    assert strides == [1, 1, 2, 1, 2, 1]


def test_a_block_by_hand():
    """The block written out in functions, with weights from the module."""
    block = make("wrn_16_2").stages[1][0].eval()
    torch.nn.init.normal_(block.norm1.weight, 1.0, 0.3)
    x = torch.randn(2, 32, 8, 8)

    def norm_act(x, norm):
        scaled = x / (1 + 1e-5) ** 0.5 * norm.weight[:, None, None]
        return torch.where(scaled > 0, scaled, 0.1 * scaled)

    conv = torch.nn.functional.conv2d
    inside = conv(norm_act(x, block.norm1), block.conv1.weight, stride=2, padding=1)
    inside = conv(norm_act(inside, block.norm2), block.conv2.weight, padding=1)
    expected = inside + conv(x, block.shortcut.weight, stride=2)
    torch.testing.assert_close(block(x.clone()), expected)


def test_group_norm_makes_images_independent_of_their_batch():
    x = torch.randn(6, 3, 16, 16)
    grouped, batched = make(norm="group").train(), make(norm="batch").train()
    torch.testing.assert_close(grouped(x)[:2], grouped(x[:2]))
    assert not torch.allclose(batched(x)[:2], batched(x[:2]), atol=1e-3)
    assert not dict(grouped.named_buffers())


def test_batch_norm_momentum_is_an_argument():
    assert make().norm.momentum == 0.1
    assert make(bn_momentum=0.001).norm.momentum == 0.001


def test_initialization():
    torch.manual_seed(0)
    model = make("wrn_28_2")
    weight = model.stages[2][0].conv1.weight  # 128 x 64 x 3 x 3
    assert weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.02)
    assert model.fc.bias.abs().max() == 0


def test_activations_neither_vanish_nor_explode():
    torch.manual_seed(0)
    features = make("wrn_28_2").train().forward_features(torch.randn(8, 3, 32, 32))
    assert 0.3 < features.std().item() < 3
