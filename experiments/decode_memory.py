"""Memory of decoding 100,000 photos of 500 x 500 pixels, in one process and by tasks of Ray.

    python experiments/decode_memory.py

makes 200 JPEGs and links them to 100,000 names in a temporary folder, has the data stage list,
decode and split them with each number of workers, and prints the most memory that the processes
took together, sampled once a second: USS (theirs alone) and PSS (with their part of what they
share). Takes 7 minutes on 2 cores, and 5 GB of disk, mostly for what is decoded.
Result: 997 MiB (USS) at most in one process, 1,669 MiB in all with two workers.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from kdfm_ray.config import Config, DataConfig, ModelConfig, ScaleConfig
from kdfm_ray.jobs.prepare import prepare
from kdfm_ray.jobs.session import open_session
from kdfm_ray.store import Store
from kdfm_ray.types import Event

PIXELS = 500  # a side
PICTURES = 200  # that differ
LABELED = 20  # of each of two classes
SAMPLE_SECONDS = 1.0
MIB = 2**20


def main() -> None:
    """Make the files, then measure each number of workers in a process of its own."""
    arguments = parse()
    if arguments.measure is not None:
        print(json.dumps(measure(arguments.measure, arguments.workers[0], arguments.size)))
        return
    with tempfile.TemporaryDirectory(prefix="decode-memory-") as folder:
        started = time.perf_counter()
        make_files(Path(folder), arguments.images)
        print(f"{arguments.images:,} files in {time.perf_counter() - started:.0f} s", flush=True)
        for workers in arguments.workers:
            flags = ["--measure", folder, "--workers", str(workers), "--size", str(arguments.size)]
            done = subprocess.run(
                [sys.executable, __file__, *flags], stdout=subprocess.PIPE, text=True, check=True
            )
            print(done.stdout.strip().splitlines()[-1], flush=True)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="0: one process")
    parser.add_argument("--size", type=int, default=64, help="pixels a side, decoded")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def make_files(folder: Path, images: int) -> None:
    """Photos of smooth noise; the unlabeled ones are hard links, the labeled ones differ."""
    rng = np.random.default_rng(0)

    def save(path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        photo = np.asarray(coarse.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC))
        grain = rng.integers(-12, 13, photo.shape)
        pixels = (photo + grain).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path, quality=90)
        return path

    for kind in ("one", "two"):
        for i in range(LABELED):
            save(folder / "labeled" / kind / f"{i}.jpg")
    pictures = [save(folder / "pictures" / f"{i}.jpg") for i in range(PICTURES)]
    for i in range(images):
        link = folder / "unlabeled" / f"{i // 1000:03d}" / f"{i:06d}.jpg"
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(pictures[i % PICTURES], link)


def measure(folder: Path, workers: int, size: int) -> dict[str, object]:
    """Decode with so many workers; memory is of this process and all that it started."""
    config = Config(
        data=DataConfig(
            labeled=str(folder / "labeled"), unlabeled=str(folder / "unlabeled"), image_size=size
        ),
        model=ModelConfig(name="wrn_10_2", pretrained="no"),
        scale=ScaleConfig(num_workers=workers, cpus_per_worker=1 if workers else None),
    )
    store = Store(str(folder / f"store-{workers}"))
    with Peaks() as peaks, open_session(config.scale, ignore) as session:
        before = dict(peaks.look())
        started = time.perf_counter()
        prepared = prepare(session, store, config)
        seconds = time.perf_counter() - started
    assert not prepared.facts["skipped"]
    images = prepared.facts["num_files"]
    return {
        "workers": workers,
        "images": images,
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "before_mib": before,
        "peak_mib": peaks.most,
        "decoded_mib": round(images * size**2 * 3 / MIB),
    }


class Peaks:
    """Most memory at once, in MiB; a context manager that samples in a thread."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self.most: dict[str, int] = {"uss": 0, "pss": 0, "largest_uss": 0}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Peaks:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            for name, value in self.look().items():
                self.most[name] = max(self.most[name], value)

    def look(self) -> dict[str, int]:
        """What all processes take now, and the largest of them alone."""
        uss, pss = [], 0
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                found = process.memory_full_info()
            except psutil.Error:  # it ended just now
                continue
            uss.append(found.uss)
            pss += found.pss
        sizes = {"uss": sum(uss), "pss": pss, "largest_uss": max(uss, default=0)}
        return {name: round(value / MIB) for name, value in sizes.items()}


def ignore(event: Event) -> None:
    """Progress is of no interest here."""


if __name__ == "__main__":
    main()
