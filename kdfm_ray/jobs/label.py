"""Pseudo labels: one pass of the outer EMA network over every unlabeled image.

Training workers that wait do it where there are some; elsewhere it is a Ray Data job.

Each shard of images becomes a Parquet file when it is done, in a folder of its own beside the
states of trainings; an interrupted pass goes on with the shards that are missing.

An artifact holds Parquet files with one row per unlabeled image:

    index         int64            position in the split's ``unlabeled_index``
    pseudo_label  int64            most likely class
    confidence    float32          its probability
    probs         list<float32>    K probabilities
    embedding     list<float32>    D pooled features
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from kdfm_ray.data.split import Split
from kdfm_ray.jobs.crew import Crew
from kdfm_ray.jobs.label_files import PARTS
from kdfm_ray.jobs.prepare import Prepared, load_images
from kdfm_ray.jobs.session import Session, goes_on_later, prepare_data_job
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.remote import open_files
from kdfm_ray.store import Draft, Store
from kdfm_ray.types import Emit, RunFailed, UserError

SHARD_IMAGES = 16_384  # at most in one file
SHARDS = 16  # at least, where batches are small enough for it
ROW_GROUP_BATCHES = 4  # forward passes whose rows are written together
DICTIONARIES = ["pseudo_label"]  # of numbers that do not come again they take longer than all else
ONE_CLASS = 0.98  # share of all pseudo labels from which they say nothing


@dataclass(frozen=True)
class LabelTask:
    """What a labeling actor needs to know to find the rest in the store."""

    store: str
    folder: str  # of finished shards
    outer: str
    dataset: str
    split: str
    numerics: Numerics
    batch_size: int
    use_gpu: bool
    threads: int
    run: str  # tells the tries of one pass from those of another
    max_failures: int


def label(
    session: Session,
    store: Store,
    prepared: Prepared,
    outer: str,
    key: str,
    *,
    numerics: Numerics,
    batch_size: int,
    num_actors: int | None,
    gpus_per_actor: float = 1.0,
    max_failures: int = 3,
    crew: Crew | None = None,
) -> None:
    """Label every unlabeled image once, with the network under key ``outer``.

    An actor that dies is started again. Workers of ``crew`` are the actors where they may be and
    are as many.

    Raises:
        RunFailed: actors died on the same images more than ``max_failures`` times.
    """
    started = time.perf_counter()
    count = prepared.facts["num_unlabeled"]
    actors = num_actors or default_actors(session, gpus_per_actor)
    bounds = shards(count, batch_size)
    task = LabelTask(
        store=store.root,
        folder=f"{store.root}/states/labels/{key}-{batch_size}",
        outer=outer,
        dataset=prepared.dataset.key,
        split=prepared.split.key,
        numerics=numerics,
        batch_size=batch_size,
        use_gpu=session.use_gpu,
        threads=session.cpus_per_worker,
        run=uuid.uuid4().hex[:8],
        max_failures=max_failures,
    )
    files, folder = open_files(task.folder)
    files.makedirs(folder, exist_ok=True)
    missing = [shard for shard in bounds if not _is_done(files, folder, shard)]
    advance = count - sum(shard["stop"] - shard["start"] for shard in missing)
    if advance:
        session.emit({"stage": "label", "advance": advance, "total": count})
    if missing and session.in_process:
        _label_here(task, missing, session.emit)
        missing = []
    if missing and crew is not None and actors == session.scale.num_workers:
        _label_by_crew(task, missing, session, crew)
        missing = [shard for shard in missing if not _is_done(files, folder, shard)]
    if missing:
        _label_by_job(task, missing, session, actors, gpus_per_actor)
    with store.writing("labels", key) as draft:
        _collect(files, folder, bounds, draft)
        class_counts = _check_complete(draft, count, len(prepared.facts["classes"]))
        draft.write_record(
            {
                "count": count,
                "seconds": time.perf_counter() - started,
                "numerics": asdict(numerics),
                "class_counts": class_counts,
                "warnings": _label_warnings(class_counts, prepared.facts["classes"]),
            }
        )
    with contextlib.suppress(OSError):
        files.rm(folder, recursive=True)


def _label_here(task: LabelTask, shards: list[dict[str, int]], emit: Emit) -> None:
    """In this process, which gives back the memory that it took."""
    import torch

    from kdfm_ray.training.runtime import keeping_memory

    with keeping_memory(torch.device("cuda" if task.use_gpu else "cpu")):
        labeler = Labeler(task, emit)
        for shard in shards:
            labeler({name: np.array([bound]) for name, bound in shard.items()})


def _label_by_crew(
    task: LabelTask, shards: list[dict[str, int]], session: Session, crew: Crew
) -> None:
    """By training workers, each its share; some shards stay where they cannot, or died too often.

    A job that goes on with those counts the tries so far.
    """
    try:
        crew.share(_label_share, task, shards, session.emit)
    except (UserError, RunFailed):
        raise
    except Exception as error:
        raise goes_on_later(error) from error


def _label_share(
    task: LabelTask, shards: list[dict[str, int]], emit: Emit, *, rank: int, world_size: int
) -> None:
    """Label every ``world_size``-th shard, but for those that a worker before this one has done."""
    files, folder = open_files(task.folder)
    files.invalidate_cache()
    mine = [shard for shard in shards[rank::world_size] if not _is_done(files, folder, shard)]
    if mine:
        _label_here(task, mine, emit)


class Labeler:
    """The actor: loads the network once, then turns shards of indices into Parquet files."""

    def __init__(self, task: LabelTask, emit: Emit) -> None:
        """Read the network and map the images."""
        import torch

        from kdfm_ray.models.backbone import load_network
        from kdfm_ray.training.batches import ImageSource
        from kdfm_ray.training.runtime import keep_freed_memory

        torch.set_num_threads(task.threads)
        store = Store(task.store)
        outer = store.get("outer", task.outer)
        dataset = store.get("dataset", task.dataset)
        split = store.get("split", task.split)
        device = torch.device("cuda" if task.use_gpu else "cpu")
        if device.type == "cpu":
            keep_freed_memory()
        self._network = task.numerics.place(load_network(outer.path), device)
        images = load_images(dataset, "train")
        assert images is not None
        # An image is read once: a GPU that kept them all would win nothing.
        self._source = ImageSource(images.images, device, keep="host")
        self._position = Split.load(split.path / "split.npz").unlabeled_index
        self._task, self._emit = task, emit

    def __call__(self, shards: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Label the images of some shards (``start`` and ``stop`` int64 ``[s]``).

        A shard's file appears whole; one that is done twice, because an actor died, is the same.
        """
        for start, stop in zip(shards["start"], shards["stop"], strict=True):
            self._count_try(start)
            self._label_shard(int(start), int(stop))
            advance = int(stop - start)
            self._emit({"stage": "label", "advance": advance, "total": len(self._position)})
        return shards

    def _label_shard(self, start: int, stop: int) -> None:
        """A thread writes rows while the next ones are computed."""
        step = ROW_GROUP_BATCHES * self._task.batch_size
        url = f"{self._task.folder}/{_part(start, stop)}"
        with _whole_file(url) as file, ThreadPoolExecutor(1, "kdfm-write") as thread:
            writing: Future[None] | None = None
            for first in range(start, stop, step):
                rows = self.rows(np.arange(first, min(first + step, stop), dtype=np.int64))
                if writing is not None:
                    writing.result()
                writing = thread.submit(file.write, rows)
            if writing is not None:
                writing.result()

    def _count_try(self, start: int) -> None:
        """Ray starts actors that die again without end; the folder knows how often that was."""
        folder = f"{self._task.folder}/tries"
        files, path = open_files(folder)
        files.makedirs(path, exist_ok=True)
        files.invalidate_cache()
        name = f"{self._task.run}-{start:012d}-"
        try:
            entries = files.ls(path, detail=False)
        except FileNotFoundError:  # an empty folder of an object store
            entries = []
        tries = sum(name in str(entry) for entry in entries)
        if tries > self._task.max_failures:
            raise RunFailed(
                f"labeling died {tries} times on the images from {start} on, perhaps for want of "
                "memory: try a smaller label.batch_size"
            )
        files.touch(f"{path}/{name}{tries}")

    def rows(self, index: np.ndarray) -> pa.Table:
        """The rows of images at ``index`` (int64 ``[n]``)."""
        from kdfm_ray.training.evaluate import predict

        probs, embeddings = predict(
            self._network,
            self._source,
            self._position[index],
            batch_size=self._task.batch_size,
            numerics=self._task.numerics,
        )
        found = probs.numpy()
        columns = {
            "index": pa.array(index),
            "pseudo_label": pa.array(found.argmax(axis=1)),  # of equal ones the first
            "confidence": pa.array(found.max(axis=1)),
            "probs": _lists(found),
            "embedding": _lists(embeddings.numpy()),
        }
        return pa.table(columns)


def _label_by_job(
    task: LabelTask, shards: list[dict[str, int]], session: Session, actors: int, gpus: float
) -> None:
    import ray.data

    prepare_data_job(session)
    # Actors write their files themselves: nothing but shard bounds passes through Ray, and no
    # other task competes with actors that hold all CPUs.
    with warnings.catch_warnings():
        # That way to say where actors go ends with Ray 2.64, and 2.60 has no other.
        warnings.simplefilter("ignore")
        labeled = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            Labeler,
            fn_constructor_args=(task, session.emit),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(shards))),
            **actor_resources(session, gpus),
        )
    done = session.watching(session.actor_need, labeled.take_all)
    assert len(done) == len(shards), (len(done), len(shards))


def actor_resources(session: Session, gpus_per_actor: float) -> dict[str, Any]:
    """What Ray Data asks for an actor that computes; they are spread over the nodes, one after the
    other, as each reads images of its own.
    """
    where = {"scheduling_strategy": "SPREAD"}
    if session.use_gpu:
        # No CPU: Ray Data 2.60 would have each actor ask for one, and those that share a GPU of a
        # node with few CPUs would wait for each other.
        return {"num_gpus": gpus_per_actor, "num_cpus": 0} | where
    return {"num_cpus": session.cpus_to_ask(session.cpus_per_worker)} | where


def default_actors(session: Session, gpus_per_actor: float) -> int:
    """As many as training workers, or as many as share their GPUs."""
    workers = max(1, session.scale.num_workers)
    return workers * int(1 / gpus_per_actor + 1e-9) if session.use_gpu else workers


def shards(count: int, batch_size: int) -> list[dict[str, int]]:
    """Bounds of shards: at least some for each actor, and all of whole batches but the last.

    So an image has the same companions in its forward pass however many actors there are, and a
    pass can go on with another number of them.
    """
    wanted = min(SHARD_IMAGES, -(-count // SHARDS))
    size = batch_size * max(1, wanted // batch_size)
    return [{"start": start, "stop": min(start + size, count)} for start in range(0, count, size)]


def _part(start: int, stop: int) -> str:
    return f"part-{start:012d}-{stop:012d}.parquet"


class _Rows:
    """A Parquet file under way, a row group at a time."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self._writer: pq.ParquetWriter | None = None

    def write(self, rows: pa.Table) -> None:
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._sink, rows.schema, use_dictionary=DICTIONARIES)
        self._writer.write_table(rows)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@contextlib.contextmanager
def _whole_file(url: str) -> Iterator[_Rows]:
    """A file that appears in one step, when all of its rows are written, and not without them."""
    files, path = open_files(url)
    local = isinstance(files, LocalFileSystem)  # object stores do so by themselves
    buffer, target = io.BytesIO(), f"{path}.{uuid.uuid4().hex}"
    rows = _Rows(target if local else buffer)
    try:
        yield rows
    except BaseException:
        rows.close()
        if local:
            Path(target).unlink(missing_ok=True)
        raise
    rows.close()
    if local:
        Path(target).replace(path)
    else:
        files.pipe_file(path, buffer.getvalue())


def _is_done(files: fsspec.AbstractFileSystem, folder: str, shard: dict[str, int]) -> bool:
    """Whether an earlier try has left the shard's file, whole."""
    path = f"{folder}/{_part(**shard)}"
    if not files.exists(path):
        return False
    try:
        with files.open(path, "rb") as file:
            rows: int = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowInvalid):
        return False
    return rows == shard["stop"] - shard["start"]


def _collect(
    files: fsspec.AbstractFileSystem, folder: str, shards: list[dict[str, int]], draft: Draft
) -> None:
    """Put the files of all shards into the artifact; they stay until it is complete."""
    _, target = open_files(f"{draft.url}/{PARTS}")
    files.makedirs(target, exist_ok=True)
    for shard in shards:
        source, copy = f"{folder}/{_part(**shard)}", f"{target}/{_part(**shard)}"
        try:
            if not isinstance(files, LocalFileSystem):
                raise OSError  # no second names there
            os.link(source, copy)
        except OSError:
            files.cp_file(source, copy)


def _lists(values: np.ndarray) -> pa.Array:
    """A float32 matrix as lists of numbers: any Parquet reader reads them."""
    flat = pa.array(np.ascontiguousarray(values, dtype=np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _check_complete(draft: Draft, count: int, num_classes: int) -> list[int]:
    """Every image once: checked before the artifact counts. Returns images per pseudo label."""
    folder = f"{draft.url}/{PARTS}"
    filesystem, root = open_files(folder)
    seen, class_counts, rows = np.zeros(count, dtype=bool), np.zeros(num_classes, np.int64), 0
    for name in filesystem.ls(root, detail=False):
        with filesystem.open(name, "rb") as file:
            table = pq.read_table(file, columns=["index", "pseudo_label"])
        seen[table["index"].to_numpy()] = True
        class_counts += np.bincount(table["pseudo_label"].to_numpy(), minlength=num_classes)
        rows += len(table)
    if rows != count or not seen.all():
        raise RuntimeError(
            f"labeling gave {rows} rows, {seen.sum()} of them distinct, for {count} images: run "
            "again; if it happens again, please report it"
        )
    return [int(number) for number in class_counts]


def _label_warnings(class_counts: list[int], classes: Sequence[str]) -> list[str]:
    """Where the outer network sees one class everywhere, or some nowhere."""
    total, largest = sum(class_counts), int(np.argmax(class_counts))
    if len(classes) > 1 and class_counts[largest] > ONE_CLASS * total:
        return [
            f"{class_counts[largest]:,} of {total:,} pseudo labels are {classes[largest]}: the "
            "outer network has not learned to tell the classes apart, and selection can only keep "
            "that; train for more steps, lower train.learning_rate, or give more labeled images"
        ]
    missing = [name for name, number in zip(classes, class_counts, strict=True) if number == 0]
    if not missing:
        return []
    names = ", ".join(missing[:10]) + (" and others" if len(missing) > 10 else "")
    return [
        f"no image was labeled {names}: train the outer network for more steps, or give those "
        "classes more labeled images"
    ]
