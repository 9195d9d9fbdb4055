"""Each benchmark in its smallest form: what it prints, and that its numbers hang together."""

import json
import sys

import numpy as np
import pytest
import torch

from kdfm_ray import cli
from kdfm_ray.bench.measuring import peak_memory_mb, reset_peak_memory
from kdfm_ray.bench.pictures import NUM_CLASSES, crops, training_data
from kdfm_ray.bench.select import SelectBench
from kdfm_ray.bench.step import StepBench
from kdfm_ray.types import UserError

TINY = {
    "model": "wrn_10_2",
    "global_batch": 4,
    "mu": 2,
    "size": 16,
    "steps": 2,
    "threads": 1,
    "device": "cpu",
}
PINNED = {"precision": "fp32", "memory_format": "channels_last"}


def test_pictures_are_real_and_always_the_same():
    first, again = crops(50, 32), crops(50, 32)
    assert np.array_equal(first.images, again.images)
    assert first.images.dtype == np.uint8
    assert first.images.shape == (50, 32, 32, 3)
    assert first.images.std(axis=(1, 2, 3)).min() > 1
    assert set(np.unique(first.labels)) <= set(range(NUM_CLASSES))
    data = training_data(first, 10)
    assert len(data.split.labeled_index) == 10
    assert len(data.split.unlabeled_index) == 50


@pytest.mark.parametrize(
    ("rate", "views", "share"), [(1.0, "all", 1.0), (0.5, "masked", 0.5), (0.0, "masked", 0.0)]
)
def test_a_step_at_a_mask_rate(rate, views, share):
    found = StepBench(**TINY, **PINNED, mask_rate=rate).run()
    assert found["strong_views"] == views
    assert found["mask_rate"] == share
    assert found["images_per_second"] * found["seconds_per_step"] == pytest.approx(4 * (1 + 2 * 2))
    assert sum(found["share"].values()) == pytest.approx(1)
    assert all(value > 0 for value in found["share"].values())
    assert found["peak_memory_mb"] > 100


@pytest.mark.skipif(sys.platform != "linux", reason="a process forgets its peak on Linux only")
def test_what_was_held_before_is_no_part_of_the_peak():
    cpu = torch.device("cpu")
    before = peak_memory_mb(cpu)
    held = np.ones(2**28, np.uint8)  # 256 MiB
    assert peak_memory_mb(cpu) > before + 100
    high = peak_memory_mb(cpu)
    del held
    reset_peak_memory(cpu)
    assert peak_memory_mb(cpu) < high - 100
    assert np.ones(2**28, np.uint8).any()
    assert peak_memory_mb(cpu) > high - 100


@pytest.mark.slow
def test_two_workers_share_the_batch():
    found = StepBench(**TINY, **PINNED, workers=2).run()
    assert found["workers"] == 2
    assert found["images_per_second"] * found["seconds_per_step"] == pytest.approx(4 * (1 + 2 * 2))


def test_the_command_prints_one_json_object(capsys):
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    assert cli.main(["bench", "step", *flags, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"seconds_per_step", "images_per_second", "precision", "memory_format"} <= set(found)
    assert {"peak_memory_mb", "share", "torch", "cpu", "device"} <= set(found)


@pytest.mark.parametrize(
    ("command", "keys"),
    [
        (
            ["augment", "--batch", "32", "--repeats", "2"],
            {"strong_views_per_second", "weak_views_per_second"},
        ),
        (
            [
                *("label", "--model", "wrn_10_2", "--count", "300", "--batch-size", "128"),
                *("--repeats", "1", "--size", "16", "--precision", "fp32"),
                *("--memory-format", "channels_last"),
            ],
            {"images_per_second", "bare_forward_images_per_second", "ratio"},
        ),
        (
            ["select", "--count", "3000", "--dim", "16", "--clusterer", "kmeans"],
            {"seconds", "trusted", "peak_memory_mb"},
        ),
    ],
)
def test_the_other_parts(capsys, command, keys):
    assert cli.main(["bench", *command, "--threads", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert keys <= set(found)
    assert found["benchmark"] == command[0]
    assert cli.main(["bench", *command, "--threads", "1"]) == 0  # for people
    assert command[0] in capsys.readouterr().out


def test_clusters_of_the_made_up_embeddings_are_found():
    found = SelectBench(count=4000, dim=16, classes=4, clusterer="kmeans", threads=1).run()
    assert found["precision"] > 0.99
    assert 0.3 < found["trusted"] / found["count"] < 0.7  # confidence is uniform in 0.6 to 1


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["bench"], "one of step, augment, label, select; got nothing"),
        (["bench", "stp"], "got 'stp'"),
        (["bench", "step", "--mask-rate", "2"], "--mask-rate 2.0 must be between 0 and 1"),
        (["bench", "step", "--global-batch", "0"], "--global-batch 0 must be 1 or more"),
        (["bench", "step", "--size", "4000"], "--size 4000 must be 8 to 426"),
        (["bench", "step", "--model", "wrn_11"], "unknown model 'wrn_11'"),
        (["bench", "step", "--stps", "4"], "does not take --stps"),
        (["bench", "step", "--device", "gpu"], "torch sees no GPU here"),
    ],
)
def test_bad_flags(capsys, command, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert cli.main(command) == cli.BAD_INPUT
    assert message in capsys.readouterr().err


def test_a_batch_must_feed_all_workers():
    with pytest.raises(UserError, match=r"scale.num_workers = 9"):
        StepBench(**TINY, **PINNED, workers=9).run()
