"""Pretrained weights: found in the cache, or not to be had in a sentence; and the image sizes."""

import time

import pytest
import timm
import torch
from safetensors.torch import save_file

from kdfm_ray.models import pretrained
from kdfm_ray.models.pretrained import fetch_pretrained, has_pretrained, size_limits

SMALL = "mobilenetv3_small_050"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache of the hub, and no connection."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_weights_in_the_cache_are_found_without_asking(cache, monkeypatch):
    model = timm.create_model(SMALL)
    folder = cache / f"models--{timm.get_pretrained_cfg(SMALL).hf_hub_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(model.state_dict(), snapshot / "model.safetensors")
    monkeypatch.setattr(pretrained, "_ask", lambda *_: pytest.fail("asked"))
    assert fetch_pretrained(SMALL) == ""
    loaded = timm.create_model(SMALL, pretrained=True)
    assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    (snapshot / "model.safetensors").write_bytes(b"cut short")
    assert fetch_pretrained(SMALL) != ""


def test_weights_that_are_out_of_reach_are_told_in_a_line(cache):
    said = fetch_pretrained(SMALL)
    assert said
    assert "\n" not in said


def test_a_place_that_does_not_answer_is_given_up(cache, monkeypatch):
    monkeypatch.setattr(pretrained, "_ask", lambda *_: time.sleep(60))
    started = time.perf_counter()
    assert fetch_pretrained(SMALL, seconds=0.2) == "no answer within 0.2 s"
    assert time.perf_counter() - started < 5


def test_which_backbones_have_weights():
    assert has_pretrained("efficientnet_b0")
    assert not has_pretrained("wrn_28_2")


@pytest.mark.parametrize(
    ("name", "weights", "gpu", "sizes"),
    [
        ("wrn_28_2", False, True, (32, 64, 8)),
        ("wrn_28_2", True, True, (32, 64, 8)),
        ("efficientnet_b0", False, True, (32, 64, 32)),
        ("efficientnet_b0", True, True, (32, 224, 32)),
        ("efficientnet_b0", True, False, (32, 96, 32)),
        ("efficientnet_b1", True, True, (32, 224, 32)),  # its own 240 is no multiple of 32
        ("vit_tiny_patch16_224", True, False, (224, 224, 1)),
        ("vit_small_patch14_dinov2", True, True, (518, 518, 1)),
    ],
)
def test_image_sizes(name, weights, gpu, sizes):
    limits = size_limits(name, pretrained=weights, gpu=gpu)
    assert (limits.least, limits.most, limits.multiple) == sizes
    assert name in limits.why or not weights
