"""Millions of images on one machine: speed and memory of labeling and selection.

    python experiments/scale.py --data-root DIR     (DIR: the files of Fashion-MNIST)
    python experiments/scale.py --data-root DIR --images 200000 --workers 4 --labels-only --store S

An outer network is trained for some updates on Fashion-MNIST at 16 x 16 pixels. Then the training
images are repeated until there are enough, labeled by the Ray Data job and selected from, as in a
run. Memory is that of each process by itself (USS: without what it shares with others or maps from
files), the most that was seen.

The second labels only, to compare numbers of actors, which may be more than there are cores; with
one store S they share the network and the images.

What it gave for 2,000,000 images and for 1, 2 and 4 actors stands in docs/scaling.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from kdfm_ray.config import Config, DataConfig, LabelConfig, ModelConfig, SelectConfig, TrainConfig
from kdfm_ray.data.split import Split
from kdfm_ray.jobs.label import label
from kdfm_ray.jobs.prepare import Prepared
from kdfm_ray.jobs.select import select
from kdfm_ray.jobs.session import open_session
from kdfm_ray.pipeline import run
from kdfm_ray.store import Store
from kdfm_ray.types import Event

MIB = 2**20


def main() -> None:
    """Train, repeat, label, select; print one JSON object a line."""
    arguments = parse()
    if arguments.workers > (os.cpu_count() or 1):  # Ray counts one CPU for each
        os.environ["RAY_OVERRIDE_RESOURCES"] = json.dumps({"CPU": arguments.workers})
    with tempfile.TemporaryDirectory() as folder:
        config = config_of(arguments, arguments.store or folder)
        finished = run(config, ignore, until_trusted=True)
        store = Store(config.store or "")
        assert finished.prepared is not None
        prepared = repeated(store, finished.prepared, arguments.images)
        with open_session(config.scale, ignore) as session:
            print(
                json.dumps({"images": arguments.images, "workers": arguments.workers}), flush=True
            )
            key = f"{finished.plan.labels}-{arguments.images}-{time.time():.0f}"
            with measured("label", arguments.images):
                label(
                    session,
                    store,
                    prepared,
                    finished.plan.outer,
                    key,
                    numerics=finished.plan.numerics,
                    batch_size=config.label.batch_size,
                    num_actors=arguments.workers,
                )
            files = store.get("labels", key).path
            size = sum(file.stat().st_size for file in files.rglob("*.parquet"))
            print(json.dumps({"parquet_mib": round(size / MIB)}), flush=True)
            if arguments.labels_only:
                return
            with measured("select", arguments.images):
                select(session, store, config, prepared, key, key)
            record = store.get("trusted", key).record()
            filters = {name: figures["size"] for name, figures in record["filters"].items()}
            parts = record["part_seconds"]
            print(json.dumps({"kept": filters, "seconds": parts}), flush=True)


def parse() -> argparse.Namespace:
    """Flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=int, default=2_000_000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", type=int, default=100, help="updates of the outer network")
    parser.add_argument("--data-root", type=Path, default=None)
    parser.add_argument("--store", default=None, help="kept for another try; none: thrown away")
    parser.add_argument("--labels-only", action="store_true", help="no selection")
    return parser.parse_args()


def config_of(arguments: argparse.Namespace, store: str) -> Config:
    """A small network; every image passes the confidence filter, as selection is to have work."""
    data = DataConfig(name="fashion_mnist", num_labels=100, num_val=2000, image_size=16)
    if arguments.data_root:
        data = data.model_copy(update={"root": arguments.data_root})
    config = Config(
        baseline=False,
        data=data,
        store=store,
        model=ModelConfig(name="wrn_10_2"),
        train=TrainConfig(
            steps=arguments.steps,
            batch_size=16,
            eval_every=arguments.steps,
            precision="fp32",
            memory_format="channels_last",
        ),
        select=SelectConfig(tau_select=0.0),
        label=LabelConfig(num_actors=arguments.workers),
    )
    scale = config.scale.model_copy(update={"num_workers": arguments.workers, "cpus_per_worker": 1})
    return config.model_copy(update={"scale": scale})


def repeated(store: Store, prepared: Prepared, count: int) -> Prepared:
    """The unlabeled images again and again, ``count`` in all, as another data set."""
    key = f"repeated-{count}-{prepared.split.key}"
    split = Split.load(prepared.split.path / "split.npz")
    if store.find("dataset", key) is None:
        source = prepared.dataset.path
        images = np.load(source / "train_images.npy", mmap_mode="r")[split.unlabeled_index]
        labels = np.load(source / "train_labels.npy")[split.unlabeled_index]
        with store.writing("dataset", key) as draft:
            target = np.lib.format.open_memmap(
                draft.path / "train_images.npy", "w+", images.dtype, (count, *images.shape[1:])
            )
            for low in range(0, count, len(images)):
                part = target[low : low + len(images)]
                part[:] = images[: len(part)]
            target.flush()
            np.save(draft.path / "train_labels.npy", np.resize(labels, count))
            draft.write_record(prepared.dataset.record() | {"num_train": count})
    if store.find("split", key) is None:
        labeled = np.flatnonzero(np.isin(split.unlabeled_index, split.labeled_index))
        whole = Split(labeled, np.arange(count), np.empty(0, np.int64))
        with store.writing("split", key) as draft:
            whole.save(draft.path / "split.npz")
            draft.write_record({"num_unlabeled": count})
    dataset, found = store.get("dataset", key), store.get("split", key)
    facts = dataset.record() | found.record()
    return dataclasses.replace(prepared, dataset=dataset, split=found, facts=facts)


@dataclasses.dataclass
class Peaks:
    """Most memory of each kind of process, in MiB."""

    seen: dict[str, int] = dataclasses.field(default_factory=dict)

    def look(self) -> None:
        """At this process and all that it started."""
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                name = process.name() if process != me else "driver"
                used = process.memory_full_info().uss // MIB
            except psutil.Error:
                continue  # it has just ended
            self.seen[name] = max(self.seen.get(name, 0), used)


@contextmanager
def measured(stage: str, count: int) -> Iterator[None]:
    """Print how long the block took, and the most memory that its processes had."""
    peaks, over = Peaks(), threading.Event()

    def watch() -> None:
        while not over.wait(0.5):
            peaks.look()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    started = time.perf_counter()
    yield
    seconds = time.perf_counter() - started
    over.set()
    thread.join()
    most = sorted(peaks.seen.items(), key=lambda item: -item[1])[:6]
    line = {
        "stage": stage,
        "seconds": round(seconds, 1),
        "images_per_second": round(count / seconds),
    }
    print(json.dumps(line | {"peak_mib": dict(most)}), flush=True)


def ignore(event: Event) -> None:
    """Nobody watches."""


if __name__ == "__main__":
    main()
