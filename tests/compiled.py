"""Trains with compiled passes and with plain ones, and prints the losses of each as JSON.

    python tests/compiled.py cpu|cuda all|masked ...       (fixmatch.strong_views, one by one)

A script, as torch.compile cannot look through the checks of shapes that tests install.
"""

import json
import sys

import torch
from torch._dynamo.utils import counters

from kdfm_ray.bench.pictures import crops, training_data
from kdfm_ray.config import parse_config
from kdfm_ray.models.backbone import create_network
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.training.loop import train_network
from kdfm_ray.training.runtime import Runtime

STEPS = 4


def losses(device, strong_views, compile):
    config = parse_config(
        {
            "data": {"name": "digits"},
            "train": {"steps": STEPS, "batch_size": 8, "log_every": 1, "eval_every": STEPS},
            "fixmatch": {"mu": 3, "tau": 0.15, "strong_views": strong_views},
        }
    )
    network = create_network(
        "wrn_10_2", num_classes=10, image_channels=3, image_size=32, norm="group", seed=0
    )
    data = training_data(crops(400, 32), 80)
    numerics = Numerics("fp32", compile=compile)
    found = train_network(network, data, config, "outer", Runtime(device=device), numerics=numerics)
    return [line["loss"] for line in found.metrics if "loss" in line]


def main():
    device = torch.device(sys.argv[1])
    graphs, compiled = counters["stats"], []
    plain = losses(device, "all", False)
    assert not graphs["unique_graphs"]
    for strong_views in sys.argv[2:]:
        found = losses(device, strong_views, True)
        compiled.append({"losses": found, "graphs": graphs["unique_graphs"]})
    print(json.dumps({"plain": plain, "compiled": compiled}))


if __name__ == "__main__":
    main()
