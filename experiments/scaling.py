"""The same training on 1, 2, 3 and 4 workers of one machine: equal losses, throughput, overhead.

    python experiments/scaling.py

FixMatch's outer network on scikit-learn's digits, each worker on one thread, in float32 and without
batch norm, so that nothing but the order of sums may differ. A line of JSON for each number of
workers:

    first_difference     of the loss of the first updates from that of one worker, relative
    loss_difference      the largest of all logged ones: rounding grows with each update
    seconds_per_update   median over the logged intervals, without the first
    predicted            by the model of docs/scaling.md, which knows the times of 1 and 2 workers
    overhead_ms          of an update, beside the arithmetic: measured - (one worker's time / cores)
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from typing import Any

from kdfm_ray.config import (
    Config,
    DataConfig,
    FixMatchConfig,
    ModelConfig,
    ScaleConfig,
    SelectConfig,
    TrainConfig,
)
from kdfm_ray.pipeline import run
from kdfm_ray.types import Event

LOG_EVERY = 5


def main() -> None:
    """Train with each number of workers, and compare."""
    arguments = parse()
    cores = os.cpu_count() or 1
    first: dict[str, Any] = {}
    second: dict[str, Any] = {}
    for workers in arguments.workers:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(config_of(arguments, workers, folder))
        first = first or found
        second = found if workers == 2 else second
        measured = found["seconds_per_update"]
        ideal = first["seconds_per_update"] / min(workers, cores)
        line = {
            "workers": workers,
            "first_difference": f"{difference(found['losses'][:1], first['losses'][:1]):.1e}",
            "loss_difference": f"{difference(found['losses'], first['losses']):.1e}",
            "seconds_per_update": round(measured, 4),
            "images_per_second": round(found["images"] / measured),
            "overhead_ms": round(1000 * (measured - ideal), 1),
            "val_accuracy": round(found["val_accuracy"], 4),
        }
        if second:
            exchange = second["seconds_per_update"] - first["seconds_per_update"] / min(2, cores)
            line["predicted"] = round(ideal + exchange * 2 * (workers - 1) / workers, 4)
        print(json.dumps(line), flush=True)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3, 4], help="1 first")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--model", default="wrn_10_2")
    parser.add_argument("--image-size", type=int, default=28)
    return parser.parse_args()


def config_of(arguments: argparse.Namespace, workers: int, folder: str) -> Config:
    """Everything equal but the number of workers."""
    return Config(
        baseline=False,
        store=folder,
        data=DataConfig(name="digits", num_labels=100, image_size=arguments.image_size),
        model=ModelConfig(name=arguments.model, norm="group"),
        fixmatch=FixMatchConfig(mu=6),  # 24 x (1 + 2 x 6) images can be shared by 1, 2, 3 and 4
        train=TrainConfig(
            steps=arguments.steps,
            batch_size=24,
            eval_every=arguments.steps,
            log_every=LOG_EVERY,
            precision="fp32",
            memory_format="channels_last",
        ),
        select=SelectConfig(clusterer="none", tau_select=0.0),
        scale=ScaleConfig(num_workers=workers, cpus_per_worker=1),
    )


def measure(config: Config) -> dict[str, Any]:
    """Run up to the labels."""

    def tell(event: Event) -> None:
        if "warning" in event:
            print(event["warning"], file=sys.stderr)

    cores = os.cpu_count() or 1
    if config.scale.num_workers > cores:  # Ray counts one CPU for each, and there are fewer
        os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": config.scale.num_workers})
    finished = run(config, tell, until_trusted=True)
    lines = [
        json.loads(line)
        for line in (finished.artifacts["outer"].path / "metrics.jsonl").read_text().splitlines()
    ]
    logged = [line for line in lines if "loss" in line]
    images = config.train.batch_size * (1 + 2 * config.fixmatch.mu)
    return {
        "losses": [line["loss"] for line in logged],
        "images": images,
        "seconds_per_update": statistics.median(
            images / line["images_per_second"] for line in logged[1:]
        ),
        "val_accuracy": finished.artifacts["outer"].record()["val_accuracy"],
    }


def difference(found: list[float], wanted: list[float]) -> float:
    """The largest, relative."""
    assert len(found) == len(wanted), (found, wanted)
    return max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))


if __name__ == "__main__":
    main()
