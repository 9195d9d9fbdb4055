"""How well semilearn 0.3.2's FixMatch does on the splits of ``evidence.py``, with as many updates.

    python experiments/peer_accuracy.py --peer-python peer/bin/python --labels 100 --seeds 0

``peers/requirements.txt`` says how the peer's environment is made. Same labeled, unlabeled,
validation and test images, network, batch, mu, learning rate, schedule, weight decay and number of
updates (T and 2 T); the strong views have two RandAugment operations of probability 0.5, as ours,
unless ``--own-strength`` keeps the peer's three. What stays different is what each of them is: the
peer computes in float32, shows the weak views to the network in training mode together with the
others, and its EMA (0.999) and the statistics of its batch norm (momentum 0.001) start from the
initial ones without a warm-up, which after some hundred updates are still half of them. So the last
weights are tested too, and either with the batch norm's statistics measured anew on 5,000 training
images (no part of semilearn). One JSON line a run; our figures
of the same cells are those that ``evidence.py --table`` prints.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from experiments.sweeps import evidence
from kdfm_ray.data.catalog import load
from kdfm_ray.data.split import Split, make_split
from kdfm_ray.types import Dataset

PEER = Path(__file__).parent / "peers" / "semilearn_fixmatch.py"


def main() -> None:
    """Train and test what is asked for, a line each."""
    arguments = _arguments()
    base = evidence().base
    dataset = load("fashion_mnist", arguments.data_root)
    for labels in arguments.labels:
        for seed in arguments.seeds:
            split = make_split(
                dataset.train.labels,
                len(dataset.classes),
                num_labels=labels,
                num_val=base.data.num_val,
                split_seed=seed,
            )
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "images.npz")
                np.savez(file, **_arrays(dataset, split))
                for times in arguments.times:
                    found = _peer(arguments, file, labels, seed, times * base.train.steps)
                    line = {"labels": labels, "seed": seed, "split_hash": split.hash()}
                    print(json.dumps(line | found), flush=True)


def _arrays(dataset: Dataset, split: Split) -> dict[str, Any]:
    """What the peer reads: the labeled images first, then the unlabeled ones; and two sets to test.

    Validation and test images are only looked at when the training is over.
    """
    assert dataset.test is not None
    train = dataset.train
    rest = np.setdiff1d(split.unlabeled_index, split.labeled_index)
    order = np.concatenate([split.labeled_index, rest])
    parts = {
        "": (train.images[order], train.labels[order]),
        "val_": (train.images[split.val_index], train.labels[split.val_index]),
        "test_": (dataset.test.images, dataset.test.labels),
    }
    return {
        f"{part}{name}": np.repeat(array, 3, axis=3) if name == "images" else array
        for part, arrays in parts.items()
        for name, array in zip(("images", "labels"), arrays, strict=True)
    }


def _peer(
    arguments: argparse.Namespace, file: Path, labels: int, seed: int, steps: int
) -> dict[str, Any]:
    base = evidence().base
    views = ("--operations", "3", "--probability", "1")
    if not arguments.own_strength:
        operations, probability = base.augment.num_ops, base.augment.op_prob
        views = ("--operations", str(operations), "--probability", str(probability))
    command = [
        *(arguments.peer_python, str(PEER), "--images", str(file), "--labeled", str(labels)),
        *("--model", base.model.name, "--global-batch", str(base.train.batch_size)),
        *("--mu", str(base.fixmatch.mu), "--steps", str(steps), "--warmup", "0"),
        *("--threads", str(arguments.threads), "--loader-workers", "0"),
        *("--seed", str(seed), "--test", "val", "test", *views),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--peer-python", required=True, help="Python of the peer's environment")
    parser.add_argument("--labels", type=int, nargs="+", default=[100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument(
        "--times", type=int, nargs="+", default=[1, 2], help="trainings of so many T updates"
    )
    parser.add_argument(
        "--own-strength", action="store_true", help="strong views of semilearn's strength"
    )
    parser.add_argument("--threads", type=int, default=1)
    root = os.environ.get("KDFM_DATA_ROOT", "/usr/share/datasets/fashion-mnist")
    parser.add_argument("--data-root", type=Path, default=Path(root))
    return parser.parse_args()


if __name__ == "__main__":
    main()
