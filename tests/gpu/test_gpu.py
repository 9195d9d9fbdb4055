"""What only a GPU can show; skipped without one. `experiments/gpu_check.sh` runs it by itself."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kdfm_ray.augment import captured
from kdfm_ray.augment.captured import Recordings
from kdfm_ray.augment.params import draw_strong, draw_weak
from kdfm_ray.augment.views import grouped_view, strong_view, weak_view
from kdfm_ray.bench.pictures import crops, training_data
from kdfm_ray.config import TrainConfig, parse_config
from kdfm_ray.models.backbone import create_network
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.batches import ImageSource
from kdfm_ray.training.loop import train_network
from kdfm_ray.training.measure import Shape, candidates, measure
from kdfm_ray.training.runtime import Runtime
from kdfm_ray.trust.kmeans import fit_kmeans, nearest

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PICTURES = crops(400, 32)


def train(device, numerics=None, steps=4, keep="auto", strong_views="all", norm="batch", tau=0.15):
    config = parse_config(
        {
            "data": {"name": "digits", "device": keep},
            "model": {"name": "wrn_10_2", "norm": norm},
            "train": {"steps": steps, "batch_size": 8, "log_every": 1, "eval_every": steps},
            "fixmatch": {"mu": 3, "tau": tau, "strong_views": strong_views},
        }
    )
    network = create_network(
        "wrn_10_2", num_classes=10, image_channels=3, image_size=32, norm=norm, seed=0
    )
    data = training_data(PICTURES, 80)
    runtime = Runtime(device=device)
    return train_network(
        network, data, config, "outer", runtime, numerics=numerics or Numerics("fp32")
    )


def losses(result):
    return [line["loss"] for line in result.metrics if "loss" in line]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_updates_equal_the_cpus_in_float32(norm):
    assert losses(train(GPU, norm=norm)) == pytest.approx(losses(train(CPU, norm=norm)), rel=2e-3)


def test_float32_is_not_tensorfloat32():
    torch.backends.cudnn.conv.fp32_precision = "tf32"  # torch's own default
    train(GPU, steps=1)
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_masked_strong_views_equal_all_without_batch_norm():
    whole, masked = (train(GPU, norm="group", strong_views=v) for v in ("all", "masked"))
    assert losses(masked) == pytest.approx(losses(whole), rel=2e-3)


@pytest.mark.parametrize("memory_format", ["channels_last", "contiguous"])
def test_bfloat16_is_close_to_float32(memory_format):
    found = losses(train(GPU, Numerics("bf16", memory_format), tau=1.0))
    assert found == pytest.approx(losses(train(GPU, tau=1.0)), rel=0.05)


def test_compiled_passes_equal_plain_ones():
    """In a process without the checks of shapes, which torch.compile cannot look through."""
    script = Path(__file__).parents[1] / "compiled.py"
    done = subprocess.run(
        [sys.executable, str(script), "cuda", "all"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["compiled"][0]["graphs"] > 0
    assert found["compiled"][0]["losses"] == pytest.approx(found["plain"], rel=2e-3)


def test_resident_images_and_pinned_batches_are_the_same():
    index = np.random.default_rng(0).permutation(len(PICTURES.images))[:64]
    resident = ImageSource(PICTURES.images, GPU, "gpu")
    host = ImageSource(PICTURES.images, GPU, "host")
    assert host.reads_ahead
    assert not resident.reads_ahead
    host.ahead(index)
    expected = ImageSource(PICTURES.images, CPU)(index)
    for source in (resident, host, host):  # read ahead, then on the spot
        found = source(index)
        assert found.is_cuda
        assert torch.equal(found.cpu(), expected)
    first, second = losses(train(GPU, keep="gpu")), losses(train(GPU, keep="host"))
    assert first == pytest.approx(second, rel=1e-4)  # convolutions may sum in another order


def test_views_equal_the_cpus_bit_for_bit():
    images = torch.from_numpy(PICTURES.images).permute(0, 3, 1, 2)
    rng, n = np.random.default_rng(0), len(images)
    weak = draw_weak(rng, n, size=(32, 32), flip=True)
    strong = draw_strong(rng, n, size=(32, 32), flip=True, num_ops=3, prob=1.0)
    assert torch.equal(weak_view(images.to(GPU), weak).cpu(), weak_view(images, weak))
    for view in (strong_view, grouped_view):
        assert torch.equal(view(images.to(GPU), strong).cpu(), strong_view(images, strong))


@pytest.mark.parametrize("channels", [1, 3])
def test_recorded_views_equal_the_cpus_bit_for_bit(channels):
    """By CUDA graphs, which the first batch of a shape records and the others replay."""
    images = torch.from_numpy(PICTURES.images).permute(0, 3, 1, 2)[:, :channels].contiguous()
    there, rng = images.to(GPU), np.random.default_rng(0)
    recordings = Recordings()
    for n in (400, 400, 100, 400, 128, 1):
        params = draw_strong(rng, n, size=(32, 32), flip=True)
        views = recordings.view(there[:n], params)
        assert views is not None
        assert torch.equal(views.cpu(), strong_view(images[:n], params))
        assert torch.equal(strong_view(there[:n], params), views)
    assert not recordings.failed
    recordings.forget()


def test_a_recording_that_fails_leaves_the_gpu_as_it_was(monkeypatch):
    def looks(images, sent):
        return images + int(images.sum().item())

    monkeypatch.setattr(captured, "dense_view", looks)
    recordings, stream = Recordings(), torch.cuda.current_stream()
    images = torch.from_numpy(PICTURES.images).permute(0, 3, 1, 2)[:64]
    params = draw_strong(np.random.default_rng(0), 64, size=(32, 32), flip=True)
    with pytest.warns(UserWarning, match="kernel by kernel"):
        assert recordings.view(images.to(GPU), params) is None
    assert torch.cuda.current_stream() == stream
    assert torch.equal(grouped_view(images.to(GPU), params).cpu(), strong_view(images, params))
    torch.manual_seed(0)
    assert torch.rand(1000, device=GPU).sum().isfinite()


def test_numerics_are_measured():
    def network():
        return create_network("wrn_10_2", num_classes=10, image_channels=3, image_size=32, seed=0)

    choices = candidates(TrainConfig(), GPU)
    assert {choice.precision for choice in choices} >= {"fp32"}
    found = measure(network, choices, Shape(8, 56, (3, 32, 32), updates=0), GPU)
    assert all(seconds > 0 for seconds in found.values())


def test_faiss_finds_the_same_clusters_on_the_gpu():
    faiss = pytest.importorskip("faiss")
    if not getattr(faiss, "get_num_gpus", int)():
        pytest.skip("this FAISS has no GPU support: install faiss-gpu")
    rng = np.random.default_rng(0)
    centers = rng.normal(0, 10, (5, 16))
    points = (centers[rng.integers(0, 5, 5000)] + rng.normal(0, 1, (5000, 16))).astype(np.float32)

    def inertia(gpu):
        centroids, _ = fit_kmeans(points, 5, seed=0, restarts=3, gpu=gpu)
        return nearest(points, centroids)[1].sum()

    assert inertia(gpu=True) == pytest.approx(inertia(gpu=False), rel=1e-3)
