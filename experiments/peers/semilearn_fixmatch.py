"""FixMatch of the PyPI package semilearn 0.3.2 on the CPU; prints one JSON object.

It runs in an environment of its own (requirements.txt beside it), by ``bench_peers.py``, for its
time, and by ``peer_accuracy.py``. All that is timed is its own: the algorithm with its
``train_step``, its hooks for the parameter update and the EMA, its network, optimizer, data set
class, RandAugment and loader. Left out are the ``.cuda`` copies, for which it has no switch, and
the hooks that evaluate, save and print.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import resource
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL.Image import Image
from semilearn import get_algorithm, get_config
from semilearn.core.hooks import EMAHook, ParamUpdateHook
from semilearn.core.utils import get_data_loader, get_net_builder
from semilearn.datasets.augmentation import RandAugment
from semilearn.datasets.cv_datasets.datasetbase import BasicDataset
from semilearn.nets.wrn.wrn import WideResNet
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # semilearn's for CIFAR-10


def main() -> None:
    """Train for some updates and say how long they took."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    # semilearn draws from the global generators.
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    np.random.seed(arguments.seed)  # noqa: NPY002
    with np.load(arguments.images) as arrays:
        images, labels = arrays["images"], arrays["labels"]
        test = [(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in arguments.test]
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
    algorithm = get_algorithm(config, _builder(config.net), None, None)
    algorithm.process_batch = lambda **batch: {
        name: value
        for name, value in batch.items()
        if name in ("x_lb", "y_lb", "x_ulb_w", "x_ulb_s")
    }
    loaders = _loaders(config, images, labels, arguments)
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
    finished = time.perf_counter()
    networks = {"ema": algorithm.ema_model, "last": algorithm.model}
    if arguments.test:
        anew = {f"{name}, norms anew": _normed(each, images) for name, each in networks.items()}
        networks |= anew
    accuracy = {
        part: {name: _accuracy(network, *of_part) for name, network in networks.items()}
        for part, of_part in zip(arguments.test, test, strict=True)
    }
    print(
        json.dumps(
            {
                "accuracy": accuracy,
                "seconds_per_step": per_step,
                "median_seconds_per_step": float(np.median(measured)),
                "images_per_second": views / per_step,
                "seconds_in_all": finished - started,
                "steps": len(measured),
                "threads": arguments.threads,
                "loader_workers": arguments.loader_workers,
                "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "torch": torch.__version__,
            }
        )
    )


def _builder(net: str) -> Callable[..., torch.nn.Module]:
    """Maker of one of its networks, or of its Wide ResNet of another depth and width."""
    family, *numbers = net.split("_")
    if net == "wrn_28_2" or family != "wrn":
        return get_net_builder(net, from_name=False)
    depth, width = map(int, numbers)
    return lambda num_classes, **_: WideResNet(1, num_classes, depth=depth, widen_factor=width)


@torch.inference_mode()
def _normed(network: torch.nn.Module, images: np.ndarray) -> torch.nn.Module:
    """A copy whose batch norm has the mean statistics of some training images.

    Its own are running means of momentum 0.001, which some hundred updates leave far behind.
    """
    network = copy.deepcopy(network).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for first in range(0, min(len(images), 5000), 500):
        network(_prepared(images[first : first + 500]))
    return network


def _prepared(images: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std


@torch.inference_mode()
def _accuracy(network: torch.nn.Module, images: np.ndarray, labels: np.ndarray) -> float:
    network.eval()
    right = 0
    for first in range(0, len(images), 500):
        predicted = network(_prepared(images[first : first + 500]))["logits"].argmax(1).numpy()
        right += int((predicted == labels[first : first + 500]).sum())
    return right / len(images)


class _Weaker(RandAugment):
    """Each of its operations with a probability, as in the strong views of kdfm_ray."""

    def __init__(self, operations: int, probability: float) -> None:
        super().__init__(operations, 5)
        self.operations, self.probability = operations, probability

    def __call__(self, image: Image) -> Image:
        """A view; how many operations it has is drawn anew."""
        self.n = sum(random.random() < self.probability for _ in range(self.operations))
        return super().__call__(image)


def _loaders(
    config: argparse.Namespace,
    images: np.ndarray,
    labels: np.ndarray,
    arguments: argparse.Namespace,
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
    augment = (
        RandAugment(arguments.operations, 5)
        if arguments.probability == 1
        else _Weaker(arguments.operations, arguments.probability)
    )
    strong_view = transforms.Compose([*weak, augment, *normalize])
    classes, labeled = config.num_classes, arguments.labeled
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
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--operations", type=int, default=3, help="of a strong view; its own: 3")
    parser.add_argument("--probability", type=float, default=1, help="of each; its own: 1")
    parser.add_argument(
        "--test",
        nargs="*",
        default=[],
        help="sets to test on at the end: arrays NAME_images and NAME_labels of the file",
    )
    parser.add_argument("--amp", action="store_true", help="semilearn's mixed precision")
    return parser.parse_args()


if __name__ == "__main__":
    main()
