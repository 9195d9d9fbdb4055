import json

import pytest
import safetensors.torch
import torch

from kdfm_ray.models import factory
from kdfm_ray.models.backbone import (
    NetworkSpec,
    build,
    create_network,
    load_network,
    save_network,
)


def make(name="wrn_10_2", **changes):
    arguments = {"num_classes": 4, "image_channels": 3, "image_size": 32, "seed": 0}
    return create_network(name, **{**arguments, **changes})


def images(n=3, channels=3, size=32):
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)


def same_weights(a, b):
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("name", "size", "channels", "embedding"),
    [
        ("wrn_10_2", 28, 1, 128),
        ("efficientnet_b0", 32, 3, 1280),
        ("resnet18", 32, 1, 512),
        ("vit_tiny_patch16_224", 32, 3, 192),
        ("resnetv2_18", 32, 3, 512),  # classifies by a convolution
    ],
)
def test_logits_and_embeddings(name, size, channels, embedding):
    network = make(name, image_size=size, image_channels=channels).eval()
    batch = images(channels=channels, size=size)
    output = network(batch)
    assert output.logits.shape == (3, 4)
    assert output.embeddings.shape == (3, embedding)
    assert output.logits.dtype == output.embeddings.dtype == torch.float32
    direct = network.backbone(network.normalize(batch))
    torch.testing.assert_close(output.logits, direct)


def test_normalization_by_hand():
    network = make("test_efficientnet")
    batch = images(n=1)
    pixels = network.normalize(batch)
    mean, std = network.spec.mean[2], network.spec.std[2]
    assert pixels[0, 2, 5, 6].item() == pytest.approx(
        (batch[0, 2, 5, 6].item() / 255 - mean) / std, abs=1e-5
    )
    assert make(image_channels=1).spec.mean == (0.5,)


def test_outputs_are_float32_under_bfloat16():
    network = make()
    with torch.autocast("cpu", torch.bfloat16):
        output = network(images())
    assert output.logits.dtype == output.embeddings.dtype == torch.float32


def test_images_of_other_channels_are_a_programming_error():
    with pytest.raises(AssertionError):
        make(image_channels=1)(images(channels=3))


def test_dropout_lies_behind_the_embeddings_and_sleeps_in_eval_mode():
    network = make(drop_rate=0.5, norm="group")
    a, b = network(images()), network(images())
    assert torch.equal(a.embeddings, b.embeddings)
    assert not torch.equal(a.logits, b.logits)
    network.eval()
    assert torch.equal(network(images()).logits, network(images()).logits)


def test_initialization_is_a_function_of_the_seed_alone():
    torch.manual_seed(1)
    first = make(seed=5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = make(seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert same_weights(first, second)
    assert not same_weights(first, make(seed=6))


def test_a_new_network_is_in_train_mode_with_untouched_statistics():
    network = make()
    assert network.training
    assert network.backbone.norm.num_batches_tracked == 0


# Saving and loading


@pytest.mark.parametrize("name", ["wrn_10_2", "test_efficientnet", "test_vit"])
def test_round_trip_is_bit_equal(name, tmp_path):
    network = make(name, image_channels=1, drop_rate=0.1).to(memory_format=torch.channels_last)
    network(images(channels=1))  # moves the statistics
    save_network(network.eval(), tmp_path, extra={"classes": ["a", "b", "c", "d"]})
    loaded = load_network(tmp_path)
    assert loaded.spec == network.spec
    assert not loaded.training
    assert same_weights(loaded, network)
    network.to(memory_format=torch.contiguous_format)
    batch = images(channels=1)
    assert torch.equal(loaded(batch).logits, network(batch).logits)
    assert json.loads((tmp_path / "model.json").read_text())["classes"] == ["a", "b", "c", "d"]


def test_build_from_memory():
    network = make(norm="group")
    assert same_weights(build(network.spec, network.state_dict()), network)
    other = make(norm="group", num_classes=5)
    with pytest.raises(ValueError, match=r"(?s)not those of this wrn_10_2.*fc\.weight"):
        build(network.spec, other.state_dict())


def test_loading_errors(tmp_path):
    with pytest.raises(ValueError, match=r"no model\.json in .*finished run"):
        load_network(tmp_path)
    save_network(make(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_network(tmp_path)
    (tmp_path / "model.json").write_text('{"network": {"name": "wrn_10_2"}}')
    with pytest.raises(ValueError, match=r"model\.json does not describe a network"):
        load_network(tmp_path)


def test_spec_goes_through_json():
    spec = make("test_efficientnet").spec
    text = json.dumps({field: getattr(spec, field) for field in spec.__dataclass_fields__})
    assert NetworkSpec.from_json(json.loads(text)) == spec


# Mistakes of users


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("efficientnet_b9", {}, r"unknown model 'efficientnet_b9'; did you mean efficientnet_b8"),
        ("wrn_28_3", {}, r"did you mean wrn_28_"),
        ("resnet18.nobody", {}, r"unknown model 'resnet18.nobody'"),
        ("wrn_10_2", {"norm": "layer"}, r"unknown norm 'layer'; choose batch or group"),
        ("resnet18", {"norm": "group"}, r"norm group is for wrn_10_2.*set norm to batch"),
        ("test_vit", {"image_size": 28}, r"28x28 \(it cuts them into patches of 16\).* to 32"),
        ("inception_v3", {}, r"inception_v3 cannot take images of 32x32 .*data.image_size to 299"),
        ("levit_128s", {"image_size": 64}, r"levit_128s does not classify by one layer"),
        ("wrn_10_2", {"pretrained": "yes"}, r"no pretrained weights for wrn_10_2"),
        ("wrn_10_2", {"pretrained": "nowhere.pth"}, r"no weights file at nowhere.pth"),
    ],
)
def test_mistakes(name, changes, message):
    with pytest.raises(ValueError, match=message):
        make(name, **changes)


def test_weights_that_cannot_be_fetched(monkeypatch):
    def offline(spec, seed, *, pretrained):
        raise OSError("connection refused\nand a long story")

    monkeypatch.setattr(factory, "make_backbone", offline)
    with pytest.raises(ValueError, match=r"resnet18 \(connection refused\); download them") as info:
        make("resnet18", pretrained="yes")
    assert "long story" not in str(info.value)


# Weights from a file


def test_own_weights_as_a_start(tmp_path):
    source = make(image_channels=1, seed=3)
    save_network(source, tmp_path)
    file = str(tmp_path / "model.safetensors")
    loaded = make(image_channels=1, pretrained=file)
    assert loaded.spec.in_channels == 1
    assert same_weights(loaded, source)
    assert loaded.notes == ()


def test_a_grey_image_is_repeated_for_weights_made_for_color(tmp_path):
    source = make("test_efficientnet", seed=3)
    safetensors.torch.save_file(source.backbone.state_dict(), tmp_path / "w.safetensors")
    network = make(
        "test_efficientnet", image_channels=1, pretrained=str(tmp_path / "w.safetensors")
    )
    assert (network.spec.image_channels, network.spec.in_channels) == (1, 3)
    grey = images(channels=1)
    expected = source.eval()(grey.expand(-1, 3, -1, -1)).logits
    assert torch.equal(network.eval()(grey).logits, expected)


def test_a_classifier_of_other_classes_starts_at_random(tmp_path):
    source = make("test_efficientnet", num_classes=9, seed=3)
    file = str(tmp_path / "w.pth")
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in source.backbone.state_dict().items()}}, file
    )
    network = make("test_efficientnet", pretrained=file)
    assert network.backbone.classifier.out_features == 4
    assert torch.equal(network.backbone.conv_stem.weight, source.backbone.conv_stem.weight)
    assert network.notes == (
        f"{file}: its classifier was for other classes, so this one starts at random: as it "
        "should, unless those weights were of your classes",
    )
    same = make("test_efficientnet", pretrained=file)
    assert same_weights(network, same)


def test_position_embeddings_fit_another_image_size(tmp_path):
    source = make("test_vit", image_size=160)
    file = str(tmp_path / "w.pth")
    torch.save({"model": source.backbone.state_dict()}, file)
    network = make("test_vit", image_size=64, pretrained=file)
    assert network.backbone.pos_embed.shape[1] < source.backbone.pos_embed.shape[1]
    assert torch.equal(
        network.backbone.blocks[0].mlp.fc1.weight, source.backbone.blocks[0].mlp.fc1.weight
    )


class Harmful:
    def __reduce__(self):
        return (print, ("code ran",))


def test_files_that_are_no_weights(tmp_path, capsys):
    def refused(name, message):
        with pytest.raises(ValueError, match=message):
            make(pretrained=str(tmp_path / name))

    (tmp_path / "text.pth").write_text("not weights at all")
    refused("text.pth", r"cannot read weights from .*text.pth")
    (tmp_path / "text.safetensors").write_text("not weights at all")
    refused("text.safetensors", r"cannot read weights from .*text.safetensors")
    torch.save(Harmful(), tmp_path / "harmful.pth")
    refused("harmful.pth", r"cannot read weights from .*harmful.pth")
    assert "code ran" not in capsys.readouterr().out
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    refused("numbers.pth", r"holds no weights")
    torch.save(make("wrn_16_2").state_dict(), tmp_path / "deeper.pth")
    refused("deeper.pth", r"do not fit wrn_10_2: the file has an unknown stages.*more")
    torch.save(make(norm="group").state_dict(), tmp_path / "group.pth")
    refused("group.pth", r"the file lacks stages.0.0.norm1.running_mean")
    wide = {k: torch.cat([v, v]) for k, v in make().backbone.state_dict().items() if v.ndim == 4}
    torch.save(make().backbone.state_dict() | wide, tmp_path / "wide.pth")
    refused("wide.pth", r"has conv_stem.weight as \(32, 3, 3, 3\) instead of \(16, 3, 3, 3\)")
