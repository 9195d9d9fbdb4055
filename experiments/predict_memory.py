"""Memory of `kdfm predict`: does it grow with the number of images?

    python experiments/predict_memory.py --counts 2000 20000 100000

A network is trained for some updates on scikit-learn's digits. Then folders with so many names
(hard links to the digits as PNG files of 8 x 8 pixels) are labeled into a Parquet file, each by a
process of its own. Memory is the most that this process had (resident set): with its programs
imported, with the names listed, and at its end. With --workers 1 it is the driver's alone. The
driver keeps each name twice (as written, and as an absolute path), so it has to grow somewhat.
Result: 1,074, 1,048 and 1,078 MiB at most for 2,000, 20,000 and 100,000 images in one process, of
which programs 733 and names 3, 14 and 58.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MIB = 2**10  # of the kilobytes that Linux counts
SETTINGS = {
    "scale.num_workers": 0,
    "train.steps": 40,
    "train.batch_size": 16,
    "train.ema_decay": 0.9,
    "train.precision": "fp32",
    "train.memory_format": "channels_last",
    "fixmatch.mu": 1,
    "data.image_size": 16,
    "select.tau_select": 0.0,
    "select.clusterer": "none",
    "baseline": False,
}


def main() -> None:
    """Train, then print one JSON object for each number of images."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--one", type=Path, nargs=2, help=argparse.SUPPRESS)  # run, images
    arguments = parser.parse_args()
    if arguments.one:
        run, images = arguments.one
        print(json.dumps(predict(run, images, arguments.workers)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        run = train(Path(folder))
        for count in arguments.counts:
            images = Path(folder, f"images-{count}")
            write(images, count)
            command = [sys.executable, __file__, "--workers", f"{arguments.workers}", "--one"]
            subprocess.run([*command, run, images], check=True)


def train(folder: Path) -> Path:
    """A run of seconds on digits; its folder."""
    import kdfm_ray as kdfm

    store = str(folder / "store")
    kdfm.train("digits", out=folder / "run", store=store, settings=SETTINGS, progress=False)
    return folder / "run"


def write(folder: Path, count: int) -> None:
    """``count`` names of PNG files, a thousand in a folder."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    pictures = load_digits().images
    for number in range(count):
        path = folder / f"{number // 1000:04d}" / f"picture-{number:07d}.png"
        if number % 1000 == 0:
            path.parent.mkdir(parents=True)
        if number < len(pictures):
            pixels = np.rint(pictures[number] * (255 / 16)).astype(np.uint8)
            Image.fromarray(pixels).save(path)
        else:
            first = number % len(pictures)
            os.link(folder / f"{first // 1000:04d}" / f"picture-{first:07d}.png", path)


def predict(run: Path, images: Path, workers: int) -> dict[str, float]:
    """Label the images, and measure."""
    import torch  # noqa: F401  what any process that predicts holds

    import kdfm_ray as kdfm
    from kdfm_ray.data.inputs import find_images
    from kdfm_ray.jobs import predict as job  # noqa: F401

    found: dict[str, float] = {"workers": workers, "mib_of_programs": peak()}
    listed = find_images(images)
    found |= {"images": len(listed), "mib_with_names": peak()}
    del listed
    started = time.perf_counter()
    done = kdfm.load(run).predict(images, images.with_suffix(".parquet"), workers=workers)
    assert done.count == found["images"]
    seconds = time.perf_counter() - started
    return found | {"mib_at_most": peak(), "seconds": round(seconds, 1)}


def peak() -> int:
    """The most memory that this program had so far, MiB.

    Not getrusage's: that is of the process, which was a copy of its parent before.
    """
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return round(int(line.split()[1]) / MIB)


if __name__ == "__main__":
    main()
