"""Time FixMatch of the PyPI package semilearn 0.3.2 on the CPU; prints one JSON object.

It runs in an environment of its own (requirements.txt beside it), by ``bench_peers.py``. All that
is timed is its own: the algorithm with its ``train_step``, its hooks for the parameter update
and the EMA, its network, optimizer, data set class, RandAugment and loader. Left out are the
``.cuda`` copies, for which it has no switch, and the hooks that evaluate, save and print.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import torch
from semilearn import get_algorithm, get_config
from semilearn.core.hooks import EMAHook, ParamUpdateHook
from semilearn.core.utils import get_data_loader, get_net_builder
from semilearn.datasets.augmentation import RandAugment
from semilearn.datasets.cv_datasets.datasetbase import BasicDataset
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # semilearn's for CIFAR-10


def main() -> None:
    """Train for some updates and say how long they took."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - semilearn draws from the global generator
    with np.load(arguments.images) as arrays:
        images, labels = arrays["images"], arrays["labels"]
    updates = arguments.warmup + arguments.steps
    config = get_config(
        {
            "algorithm": "fixmatch",
            "dataset": "none",
            "gpu": None,
            "rank": 0,
            "distributed": False,
            "world_size": 1,
            "net": arguments.model,
            "num_classes": int(labels.max()) + 1,
            "batch_size": arguments.global_batch,
            "uratio": arguments.mu,
            "num_train_iter": updates,
            "num_workers": arguments.loader_workers,
            "img_size": images.shape[1],
            "amp": arguments.amp,
        }
    )
    algorithm = get_algorithm(config, get_net_builder(config.net, from_name=False), None, None)
    algorithm.process_batch = lambda **batch: {
        name: value
        for name, value in batch.items()
        if name in ("x_lb", "y_lb", "x_ulb_w", "x_ulb_s")
    }
    loaders = _loaders(config, images, labels, arguments.labeled)
    update, ema = ParamUpdateHook(), EMAHook()
    algorithm.model.train()
    ema.before_run(algorithm)

    seconds = []
    before = time.perf_counter()
    started = before
    for labeled, unlabeled in zip(*loaders, strict=False):
        batch = algorithm.process_batch(**labeled, **unlabeled)
        algorithm.out_dict, algorithm.log_dict = algorithm.train_step(**batch)
        update.after_train_step(algorithm)
        ema.after_train_step(algorithm)
        algorithm.it += 1
        now = time.perf_counter()
        seconds.append(now - before)
        before = now
    assert len(seconds) == updates, (len(seconds), updates)
    measured = seconds[arguments.warmup :]
    views = arguments.global_batch * (1 + 2 * arguments.mu)
    per_step = sum(measured) / len(measured)
    print(
        json.dumps(
            {
                "seconds_per_step": per_step,
                "median_seconds_per_step": float(np.median(measured)),
                "images_per_second": views / per_step,
                "seconds_in_all": time.perf_counter() - started,
                "steps": len(measured),
                "threads": arguments.threads,
                "loader_workers": arguments.loader_workers,
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "torch": torch.__version__,
            }
        )
    )


def _loaders(
    config: argparse.Namespace, images: np.ndarray, labels: np.ndarray, labeled: int
) -> tuple:
    """The labeled and the unlabeled loader, with the views of semilearn's CIFAR."""
    size = images.shape[1]
    normalize = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    weak = [
        transforms.Resize(size),
        transforms.RandomCrop(
            size, padding=int(size * (1 - config.crop_ratio)), padding_mode="reflect"
        ),
        transforms.RandomHorizontalFlip(),
    ]
    weak_view = transforms.Compose([*weak, *normalize])
    strong_view = transforms.Compose([*weak, RandAugment(3, 5), *normalize])
    classes = config.num_classes
    data_x = BasicDataset("fixmatch", images[:labeled], labels[:labeled], classes, weak_view, False)
    data_u = BasicDataset("fixmatch", images, labels, classes, weak_view, True, strong_view)
    workers = config.num_workers
    return (
        get_data_loader(config, data_x, config.batch_size, num_workers=workers),
        get_data_loader(config, data_u, config.batch_size * config.uratio, num_workers=2 * workers),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", required=True, help=".npz with images [N,H,W,C] and labels [N]")
    parser.add_argument("--labeled", type=int, default=400, help="the first N images are labeled")
    parser.add_argument("--model", default="wrn_28_2")
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--mu", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--loader-workers", type=int, default=1, help="semilearn's default is 1")
    parser.add_argument("--amp", action="store_true", help="semilearn's mixed precision")
    return parser.parse_args()


if __name__ == "__main__":
    main()
