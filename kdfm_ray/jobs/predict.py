"""Predictions for images wherever they lie, as a Ray Data job; memory does not grow with them.

Lists of files go out to actors, which read the images, and a few numbers an image come back. Rows
arrive in the order of the images.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from kdfm_ray.data.images import MISSING, Unreadable, suffixes
from kdfm_ray.data.inputs import Images, read_image
from kdfm_ray.jobs.finished import FinishedRun, load_model
from kdfm_ray.jobs.label import actor_resources, default_actors
from kdfm_ray.jobs.session import Session, prepare_data_job
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.types import RunFailed, UserError

TOP = 3  # classes of an image that are told
SHARD_BATCHES = 4  # that go to an actor at once: the next is read while one is computed
RETRIES = 3  # of a shard whose actor died, and starts of an actor


@dataclass(frozen=True)
class PredictTask:
    """What an actor needs to know beside the network and the names of images.

    Attributes:
        size: pixels a side.
        channels: of the images, 1 or 3.
        temperature: of the logits.
        batch_size: images of a forward pass.
        embeddings: whether embeddings are wanted too.
        use_gpu, threads: what to compute on; threads also read images.
    """

    size: int
    channels: int
    temperature: float
    batch_size: int
    embeddings: bool
    use_gpu: bool
    threads: int


@dataclass(frozen=True)
class Predicted:
    """What the network says of some images that follow each other; K classes, ``t <= TOP``.

    Attributes:
        start: number of the first.
        top: int64 ``[n, t]`` classes, likeliest first; -1 of images that cannot be read.
        probs: float32 ``[n, t]``, theirs.
        embeddings: float32 ``[n, D]``; ``None`` where they are not wanted.
        reasons: why an image cannot be read; ``None`` of all others.
    """

    start: int
    top: np.ndarray
    probs: np.ndarray
    embeddings: np.ndarray | None
    reasons: list[str | None]

    def __len__(self) -> int:
        return len(self.reasons)


def predict_images(
    session: Session,
    run: FinishedRun,
    images: Images,
    *,
    temperature: float,
    batch_size: int,
    embeddings: bool = False,
    gpus_per_actor: float = 1.0,
) -> Iterator[Predicted]:
    """Predict all images, in their order, some at a time.

    Raises:
        UserError: actors on other nodes do not see files that lie here.
        RunFailed: actors died again and again.
    """
    size, _, channels = run.image_shape
    task = PredictTask(
        size=size,
        channels=channels,
        temperature=temperature,
        batch_size=batch_size,
        embeddings=embeddings,
        use_gpu=session.use_gpu,
        threads=session.cpus_per_worker,
    )
    step = batch_size * SHARD_BATCHES
    starts = range(0, len(images), step)
    items: list[dict[str, Any]] = [
        # As JSON: names that are no UTF-8 pass through too.
        {"start": start, "places": json.dumps(images.places[start : start + step])}
        for start in starts
    ]
    parts: Iterator[Predicted]
    if session.in_process:
        predictor = Predictor(task, run.model)
        parts = (predictor.predict(item["start"], json.loads(item["places"])) for item in items)
    else:
        parts = _by_job(session, task, run.model, items, gpus_per_actor)
    return _in_order(parts, session, images)


class Predictor:
    """Reads images and says what they are."""

    def __init__(self, task: PredictTask, model: Mapping[str, bytes]) -> None:
        """Build the network."""
        import torch

        torch.set_num_threads(task.threads)
        device = torch.device("cuda" if task.use_gpu else "cpu")
        self._numerics = Numerics()  # float32: the exported network says the same
        self._network = self._numerics.place(load_model(model), device)
        self._task, self._device = task, device
        self._readers = ThreadPoolExecutor(task.threads, "kdfm-read")
        suffixes()  # registers Pillow's plugins before threads ask for them

    def predict(self, start: int, places: Sequence[str]) -> Predicted:
        """Predict images at ``places``, the first of which has the number ``start``."""
        size = self._task.batch_size
        batches = [places[low : low + size] for low in range(0, len(places), size)]
        found: list[Predicted] = []
        coming = self._read(batches[0])
        for number, batch in enumerate(batches):
            reads = coming
            if number + 1 < len(batches):
                coming = self._read(batches[number + 1])
            found.append(self._predict(start + number * size, len(batch), reads))
        return _joined(found)

    def _read(self, places: Sequence[str]) -> list[Future[np.ndarray]]:
        task = self._task
        return [
            self._readers.submit(read_image, place, task.size, task.channels) for place in places
        ]

    def _predict(self, start: int, count: int, reads: list[Future[np.ndarray]]) -> Predicted:
        """A batch; an image that cannot be read is a black one, so that it moves no other."""
        from kdfm_ray.training.batches import ImageSource
        from kdfm_ray.training.evaluate import predict

        task = self._task
        pixels = np.zeros((count, task.size, task.size, task.channels), np.uint8)
        reasons: list[str | None] = [None] * count
        for number, read in enumerate(reads):
            try:
                pixels[number] = read.result()
            except Unreadable as error:  # told to the user
                reasons[number] = str(error)
        probs, embeddings = predict(
            self._network,
            ImageSource(pixels, self._device, keep="host"),
            np.arange(count),
            batch_size=count,
            numerics=self._numerics,
            temperature=task.temperature,
        )
        values = probs.numpy()
        top = np.argsort(-values, axis=1, kind="stable")[:, :TOP]  # of equal ones the first
        best = np.take_along_axis(values, top, axis=1)
        top[[reason is not None for reason in reasons]] = -1
        kept = embeddings.numpy() if task.embeddings else None
        return Predicted(start, top, best, kept, reasons)


class PredictActor:
    """A ``Predictor`` in a process of Ray Data's; gives one row a shard."""

    def __init__(self, task: PredictTask, model: Sequence[Any]) -> None:
        """Fetch the network's files, a reference in a list."""
        import ray

        self._predictor = Predictor(task, ray.get(model[0]))

    def __call__(self, shards: dict[str, np.ndarray]) -> pa.Table:
        """Predict the images of shards: ``start`` int64 ``[s]``, ``places`` JSON lists ``[s]``."""
        parts = [
            self._predictor.predict(int(start), json.loads(places))
            for start, places in zip(shards["start"], shards["places"], strict=True)
        ]
        return pa.table(
            {
                "start": pa.array([part.start for part in parts], pa.int64()),
                "count": pa.array([len(part) for part in parts], pa.int64()),
                "top": pa.array([part.top.astype("<i8").tobytes() for part in parts], pa.binary()),
                "probs": pa.array([part.probs.tobytes() for part in parts], pa.binary()),
                "embeddings": pa.array([_bytes(part.embeddings) for part in parts], pa.binary()),
                "reasons": pa.array([json.dumps(part.reasons) for part in parts], pa.string()),
            }
        )


def _by_job(
    session: Session,
    task: PredictTask,
    model: Mapping[str, bytes],
    items: list[dict[str, Any]],
    gpus: float,
) -> Iterator[Predicted]:
    import ray
    import ray.data
    from ray.exceptions import RayActorError

    context = prepare_data_job(session)
    context.execution_options.preserve_order = True  # few parts wait for an earlier one
    actors = min(default_actors(session, gpus), len(items))
    session.wait_for(session.actor_need)
    reference = ray.put(dict(model))
    with warnings.catch_warnings():
        # These ways to limit restarts and to spread actors go with Ray 2.64, and 2.60 has no other.
        warnings.simplefilter("ignore")
        predicted = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            PredictActor,
            fn_constructor_args=(task, [reference]),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=actors),
            ray_remote_args_fn=_limits,
            **actor_resources(session, gpus),
        )
    blocks = predicted.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    try:
        for block in blocks:
            for row in block.to_pylist():
                count = row["count"]
                yield Predicted(
                    start=row["start"],
                    top=np.frombuffer(row["top"], "<i8").reshape(count, -1),
                    probs=np.frombuffer(row["probs"], np.float32).reshape(count, -1),
                    embeddings=None
                    if row["embeddings"] is None
                    else np.frombuffer(row["embeddings"], np.float32).reshape(count, -1),
                    reasons=json.loads(row["reasons"]),
                )
    except RayActorError as error:
        raise RunFailed(
            "predicting died again and again on the same images, perhaps for want of memory, and "
            "nothing was written: try a smaller --batch-size"
        ) from error


def _limits() -> dict[str, int]:
    """Ray Data would start actors again without end that die on the same image."""
    return {"max_restarts": RETRIES, "max_task_retries": RETRIES}


def _in_order(parts: Iterator[Predicted], session: Session, images: Images) -> Iterator[Predicted]:
    """Each part when all before it have been given."""
    waiting: dict[int, Predicted] = {}
    told, done, total = 0, 0, len(images)
    for part in parts:
        waiting[part.start] = part
        done += len(part)
        session.emit({"stage": "predict", "step": done, "total": total})
        while told in waiting:
            ready = waiting.pop(told)
            _check_seen(ready, images)
            told += len(ready)
            yield ready
    assert told == total, (told, total)


def _check_seen(part: Predicted, images: Images) -> None:
    """A file that lies here and is missing there is no unreadable image."""
    for number, reason in enumerate(part.reasons, part.start):
        place = images.places[number]
        if reason == MISSING and "://" not in place and os.path.exists(place):
            raise UserError(
                f"{Path(place)} is not seen by all nodes of the cluster: give images in a folder "
                "that all of them see, or a URI"
            )


def _joined(parts: list[Predicted]) -> Predicted:
    embeddings = [part.embeddings for part in parts if part.embeddings is not None]
    return Predicted(
        start=parts[0].start,
        top=np.concatenate([part.top for part in parts]),
        probs=np.concatenate([part.probs for part in parts]),
        embeddings=np.concatenate(embeddings) if embeddings else None,
        reasons=[reason for part in parts for reason in part.reasons],
    )


def _bytes(values: np.ndarray | None) -> bytes | None:
    return None if values is None else np.ascontiguousarray(values, np.float32).tobytes()
