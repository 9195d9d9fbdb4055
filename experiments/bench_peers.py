"""Our FixMatch step against that of semilearn 0.3.2, taking turns on one machine's CPU.

    python experiments/bench_peers.py --peer-python peer/bin/python          # about 10 minutes
    python experiments/bench_peers.py --peer-python peer/bin/python --whole 60     # and whole runs

``peers/requirements.txt`` says how the peer's environment is made. Both get the same pictures, the
same network, batch and threads. What differs is what each of them offers: semilearn computes in
float32, as its mixed precision is CUDA's alone; ours in the precision and layout that are named, or
that are fastest in an update (``auto``: measured once, before the turns). bfloat16 that the machine
only emulates is refused: it would be measured at a tenth of its speed.
semilearn's strong views are its RandAugment(3, 5) on PIL, always three operations; ours are two of
probability 0.5 (in either, views are a few per cent of the time). Mask rates below 1 use
``fixmatch.strong_views = masked``, and images a second count all views of the batch, those that the
mask spared too. Each run is a process of its own; medians over runs, and ratios of medians.

``--whole STEPS`` also times KD-FixMatch from nothing to its report (images read, outer network,
labels, selection, inner network; no labeled-only network) against one semilearn FixMatch of as many
steps, processes and imports of both included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from kdfm_ray.bench.measuring import pick_numerics
from kdfm_ray.bench.pictures import crops
from kdfm_ray.jobs.session import cpu_name
from kdfm_ray.training.measure import computes_bf16

HERE = Path(__file__).parent
MASK_RATES = (1.0, 0.5, 0.1)
VERSIONS = """
import json, platform
from importlib.metadata import PackageNotFoundError, version
found = {"python": platform.python_version()}
for name in ("kdfm-ray", "semilearn", "torch", "torchvision", "timm", "numpy", "pillow"):
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""
NUM_IMAGES, NUM_WHOLE, NUM_LABELED = 20_000, 8_192, 400


def main() -> None:
    """Take turns, and print one JSON object."""
    arguments = _arguments()
    _resolve(arguments)
    found: dict[str, Any] = {
        "settings": vars(arguments) | {"images": "crops of photos"},
        "machine": _machine(),
        "versions": {"ours": _versions(sys.executable), "peer": _versions(arguments.peer_python)},
    }
    with tempfile.TemporaryDirectory() as folder:
        pictures = crops(NUM_IMAGES, arguments.size)
        images = Path(folder, "images.npz")
        np.savez(images, images=pictures.images, labels=pictures.labels)
        if arguments.runs:
            found |= _steps(arguments, images)
        if arguments.whole:
            found["whole"] = _whole(arguments, Path(folder))
    print(json.dumps(found, indent=1))


def _resolve(arguments: argparse.Namespace) -> None:
    """Put a precision and layout where ``auto`` stands, the same for all runs of this call."""
    cpu = torch.device("cpu")
    if arguments.precision == "bf16" and not computes_bf16(cpu):
        sys.exit(
            "--precision bf16, but this CPU has no bfloat16 arithmetic of its own: use auto or fp32"
        )
    torch.set_num_threads(arguments.threads)
    numerics = pick_numerics(
        arguments.model,
        arguments.size,
        arguments.precision,
        arguments.memory_format,
        cpu,
        batch_x=arguments.global_batch,
        mu=arguments.mu,
    )
    arguments.precision, arguments.memory_format = numerics.precision, numerics.memory_format


def _machine() -> dict[str, Any]:
    """The processor, and what it has beyond the common."""
    has = [name for name, there in torch.cpu.get_capabilities().items() if there is True]
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "flags": sorted(has)}


def _versions(python: str) -> dict[str, str]:
    """Of that interpreter and the packages in it that count."""
    return _json([python, "-c", VERSIONS])


def _steps(arguments: argparse.Namespace, images: Path) -> dict[str, Any]:
    ours = {
        f"{rate}{' compiled' if compile == 'on' else ''}": (rate, compile)
        for rate in MASK_RATES
        for compile in arguments.compile
    }
    rates: dict[str, list[float]] = {name: [] for name in ("peer", *ours)}
    for turn in range(arguments.runs):
        peer = _peer(arguments, images, arguments.steps)
        rates["peer"].append(peer["images_per_step"] / peer["median_seconds_per_step"])
        for name, (rate, compile) in ours.items():
            found = _json(
                [
                    *(sys.executable, "-m", "kdfm_ray", "bench", "step", "--json"),
                    *("--model", arguments.model, "--mask-rate", str(rate)),
                    *("--global-batch", str(arguments.global_batch), "--mu", str(arguments.mu)),
                    *("--size", str(arguments.size), "--steps", str(arguments.steps)),
                    *("--threads", str(arguments.threads), "--precision", arguments.precision),
                    *("--memory-format", arguments.memory_format, "--compile", compile),
                ]
            )
            rates[name].append(found["images_per_second"])
        print(f"turn {turn + 1} of {arguments.runs}: {_last(rates)}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratios = {f"mask rate {name}": round(medians[name] / medians["peer"], 2) for name in ours}
    of_turns = {
        f"mask rate {name}": [
            round(own / peer, 2) for own, peer in zip(rates[name], rates["peer"], strict=True)
        ]
        for name in ours
    }
    return {
        "images_per_second": rates,
        "medians": medians,
        "ratio": ratios,
        "ratio_of_each_turn": of_turns,
    }


def _whole(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Both from files on disk, as a user has them: ours PNG in folders, the peer's one array."""
    size = arguments.size
    pictures = crops(NUM_WHOLE, size)
    images = folder / "whole.npz"
    np.savez(images, images=pictures.images, labels=pictures.labels)
    for k, (image, label) in enumerate(zip(pictures.images, pictures.labels, strict=True)):
        part = f"labeled/{label}" if k < NUM_LABELED else "unlabeled"
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / part / f"{k:05d}.png")
    ours = {
        f"{way}, {workers} workers": (way, workers)
        for way in arguments.strong_views
        for workers in arguments.workers
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("peer", *ours)}
    for turn in range(arguments.whole_runs):
        started = time.perf_counter()
        _peer(arguments, images, arguments.whole, warmup=0)
        seconds["peer"].append(time.perf_counter() - started)
        for name, (way, workers) in ours.items():
            place = f"{way}{workers}{turn}"
            seconds[name].append(_our_whole(arguments, folder, place, way, workers))
        print(f"whole run {turn + 1}: {_last(seconds)}", file=sys.stderr)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: round(medians[name] / medians["peer"], 3) for name in ours}
    return {"seconds": seconds, "ours_over_peer": ratios}


def _our_whole(
    arguments: argparse.Namespace, folder: Path, name: str, strong_views: str, workers: int
) -> float:
    started = time.perf_counter()
    subprocess.run(
        [
            *(sys.executable, "-m", "kdfm_ray", "train", "--baseline", "no"),
            *("--data.labeled", str(folder / "labeled"), "--data.num-val", "0"),
            *("--data.unlabeled", str(folder / "unlabeled")),
            *("--data.image-size", str(arguments.size)),
            *("--out", str(folder / f"run_{name}"), "--store", str(folder / f"store_{name}")),
            *("--model.name", arguments.model, "--train.steps", str(arguments.whole)),
            *("--train.batch-size", str(arguments.global_batch)),
            *("--fixmatch.mu", str(arguments.mu), "--scale.num-workers", str(workers)),
            *("--scale.cpus-per-worker", str(arguments.threads)),
            *("--train.precision", arguments.precision),
            *("--train.memory-format", arguments.memory_format),
            *("--fixmatch.strong-views", strong_views),
            *("--select.tau-select", "0"),  # so short a training is sure of nothing
        ],
        check=True,
        stdout=sys.stderr,
    )
    return time.perf_counter() - started


def _peer(
    arguments: argparse.Namespace, images: Path, steps: int, warmup: int = 2
) -> dict[str, Any]:
    found = _json(
        [
            *(arguments.peer_python, str(HERE / "peers" / "semilearn_fixmatch.py")),
            *("--images", str(images), "--labeled", str(NUM_LABELED)),
            *("--model", arguments.model, "--global-batch", str(arguments.global_batch)),
            *("--mu", str(arguments.mu), "--steps", str(steps), "--warmup", str(warmup)),
            *("--threads", str(arguments.threads)),
            *("--loader-workers", str(arguments.peer_loader_workers)),
        ]
    )
    return found | {"images_per_step": arguments.global_batch * (1 + 2 * arguments.mu)}


def _json(command: list[str]) -> dict[str, Any]:
    """The JSON object in the last line of what the command prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _last(values: dict[str, list[float]]) -> str:
    return ", ".join(f"{name} {numbers[-1]:.1f}" for name, numbers in values.items())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="Python of the peer's environment")
    parser.add_argument("--runs", type=int, default=5, help="turns of single steps; 0: none")
    parser.add_argument("--steps", type=int, default=8, help="timed updates of a run")
    parser.add_argument("--model", default="wrn_28_2")
    parser.add_argument("--global-batch", type=int, default=16)
    parser.add_argument("--mu", type=int, default=7)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument(
        "--memory-format", default="auto", choices=("auto", "channels_last", "contiguous")
    )
    parser.add_argument(
        "--compile",
        nargs="+",
        choices=("off", "on"),
        default=["off"],
        help="torch.compile in our single steps; both take turns",
    )
    parser.add_argument(
        "--peer-loader-workers", type=int, default=0, help="semilearn's default is 1"
    )
    parser.add_argument("--whole", type=int, default=0, help="steps of whole runs; 0: none")
    parser.add_argument(
        "--strong-views",
        nargs="+",
        choices=("all", "masked"),
        default=["all"],
        help="of our whole runs; both take turns",
    )
    parser.add_argument(
        "--workers",
        nargs="+",
        type=int,
        default=[1],
        help="scale.num_workers of our whole runs: 1 trains in a worker of Ray, 0 without Ray",
    )
    parser.add_argument("--whole-runs", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
