"""What a report shows of the images themselves, as one Ray task: a map, and examples of each fate.

The fate of an image is ``labeled``, ``trusted``, ``unsure`` (its confidence is below
``tau_select``) or ``disagreeing`` (confident, but its cluster is of another class); where no subset
was chosen, ``confident`` stands for the last two but ``unsure``. ``overridden`` are trusted images
whose label the inner network, in its final state, replaces by its own.

Legend: n images of the unlabeled set, m of them looked at.
"""

from __future__ import annotations

import base64
import io
import json
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from kdfm_ray.data.split import Split
from kdfm_ray.jobs.crew import Crew
from kdfm_ray.jobs.label_files import LabelFiles
from kdfm_ray.jobs.prepare import Prepared, load_images
from kdfm_ray.jobs.session import Session
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Artifact, Store
from kdfm_ray.types import UNKNOWN, Emit

FILE = "pictures.json"
FATES = ("labeled", "trusted", "unsure", "disagreeing", "confident")
MAP_POINTS = 800  # more make the map slower, not clearer
MAP_ITERATIONS = 500  # of t-SNE
FEWEST_FOR_TSNE = 60
COMPONENTS = 50  # principal ones that t-SNE sees
SAME = 1e-5  # of the largest number: a spread below it is rounding
EXAMPLES = 16  # of each fate
SIDE = 48  # pixels of an example, at most
LOOKED_AT = 2000  # trusted images that are searched for overridden ones


@dataclass(frozen=True)
class PicturesTask:
    """What the task reads: keys in the store, ``None`` for stages that were not reached.

    Attributes:
        tau_select: confidence from which an image could be trusted.
        tau_inner: confidence from which the inner network's own label counts.
        threads: of torch.
    """

    store: str
    dataset: str
    split: str
    labels: str
    trusted: str | None
    inner: str | None
    key: str
    tau_select: float
    tau_inner: float
    seed: int
    numerics: Numerics
    batch_size: int
    use_gpu: bool
    threads: int


def make_pictures(
    session: Session,
    store: Store,
    prepared: Prepared,
    *,
    key: str,
    labels: str,
    trusted: str | None,
    inner: str | None,
    tau_select: float,
    tau_inner: float,
    seed: int,
    numerics: Numerics,
    batch_size: int,
    crew: Crew | None = None,
) -> None:
    """Write ``pictures.json`` under ``key``; ``batch_size`` is of the inner network's pass.

    ``crew`` may help.

    It holds ``labeled_per_class``; ``map`` (``method``, and of each point ``x``, ``y`` in [0, 1],
    ``predicted``, ``fate``); ``examples`` by fate (``count`` of all, and ``images``: PNG in base64,
    ``predicted``, ``confidence``, ``truth`` or -1, ``own`` of overridden ones); ``overridden``
    (``looked_at``, ``count``, and the shares in which either label is right, ``None`` if unknown).
    """
    task = PicturesTask(
        store=store.root,
        dataset=prepared.dataset.key,
        split=prepared.split.key,
        labels=labels,
        trusted=trusted,
        inner=inner,
        key=key,
        tau_select=tau_select,
        tau_inner=tau_inner,
        seed=seed,
        numerics=numerics,
        batch_size=batch_size,
        use_gpu=session.use_gpu,
        threads=session.cpus_per_worker,
    )
    (crew or session).call(_make, task, session.emit, gpu=True)


def _make(task: PicturesTask, emit: Emit) -> None:
    store, started = Store(task.store), time.perf_counter()
    looking = _Looking(task, store)
    found: dict[str, Any] = {
        "labeled_per_class": looking.labeled_per_class(),
        "map": looking.map(),
        "examples": looking.examples(),
        "overridden": None,
    }
    emit({"stage": "pictures", "step": 1, "total": 2})
    if task.trusted is not None and task.inner is not None:
        found["overridden"], shown = looking.overridden(store.get("inner", task.inner))
        found["examples"]["overridden"] = shown
    emit({"stage": "pictures", "step": 2, "total": 2})
    with store.writing("pictures", task.key) as draft:
        (draft.path / FILE).write_text(json.dumps(found))
        draft.write_record(
            {"overridden": found["overridden"], "seconds": time.perf_counter() - started}
        )


class _Looking:
    """The unlabeled set with what became of each image."""

    def __init__(self, task: PicturesTask, store: Store) -> None:
        dataset, split = store.get("dataset", task.dataset), store.get("split", task.split)
        parts = Split.load(split.path / "split.npz")
        train = load_images(dataset, "train")
        assert train is not None
        self._task, self._random = task, np.random.default_rng([task.seed, 7])
        self._images, self._position = train.images, parts.unlabeled_index
        self._rows = LabelFiles(store.get("labels", task.labels))
        self._predicted, self._confidence = self._rows.pseudo_labels()
        self._labeled = np.isin(self._position, parts.labeled_index)
        truth = train.labels[self._position]
        self._truth = truth
        self._classes = len(dataset.record()["classes"])
        self._trusted = None if task.trusted is None else store.get("trusted", task.trusted)
        self._fate = self._fates()

    def _fates(self) -> np.ndarray:
        fate = np.where(self._confidence >= np.float32(self._task.tau_select), 3, 2)
        if self._trusted is None:
            fate[fate == 3] = FATES.index("confident")
        else:
            with np.load(self._trusted.path / "trusted.npz") as arrays:
                self._trusted_index = arrays["trusted_index"]
            fate[self._trusted_index] = FATES.index("trusted")
        fate[self._labeled] = FATES.index("labeled")
        return fate

    def labeled_per_class(self) -> list[int]:
        counts = np.bincount(self._truth[self._labeled], minlength=self._classes)
        return [int(count) for count in counts]

    def map(self) -> dict[str, Any]:
        index = self._sample(np.arange(len(self._predicted)), MAP_POINTS)
        place, method = flat_map(self._rows.take(index), seed=self._task.seed)
        return {
            "method": method,
            "of": len(self._predicted),
            "x": place[:, 0].round(4).tolist(),
            "y": place[:, 1].round(4).tolist(),
            "predicted": self._predicted[index].tolist(),
            "fate": [FATES[number] for number in self._fate[index]],
        }

    def examples(self) -> dict[str, Any]:
        found = {}
        for number, name in enumerate(FATES):
            index = np.flatnonzero(self._fate == number)
            if name != "labeled":
                shown = [self._example(i) for i in self._sample(index, EXAMPLES)]
                found[name] = {"count": len(index), "images": shown}
        return found

    def overridden(self, inner: Artifact) -> tuple[dict[str, Any], dict[str, Any]]:
        """How often the inner network's own label replaces the trusted one, and examples."""
        index = self._sample(self._trusted_index, LOOKED_AT)
        own, confidence = self._predict(inner, index)
        replaced = (confidence >= self._task.tau_inner) & (own != self._predicted[index])
        at, own, confidence = index[replaced], own[replaced], confidence[replaced]
        known = self._truth[at] != UNKNOWN
        facts = {
            "looked_at": len(index),
            "count": len(at),
            "trusted_right": _share(self._predicted[at] == self._truth[at], known),
            "own_right": _share(own == self._truth[at], known),
        }
        chosen = self._sample(np.arange(len(at)), EXAMPLES)
        shown = [
            self._example(at[i]) | {"own": int(own[i]), "own_confidence": float(confidence[i])}
            for i in chosen
        ]
        return facts, {"count": len(at), "images": shown}

    def _predict(self, inner: Artifact, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        from kdfm_ray.models.backbone import load_network
        from kdfm_ray.training.batches import ImageSource
        from kdfm_ray.training.evaluate import predict

        task = self._task
        torch.set_num_threads(task.threads)  # Ray sets one where a task asks for no CPUs
        device = torch.device("cuda" if task.use_gpu else "cpu")
        probs, _ = predict(
            task.numerics.place(load_network(inner.path), device),
            ImageSource(self._images, device, keep="host"),
            self._position[index],
            batch_size=task.batch_size,
            numerics=task.numerics,
        )
        return probs.argmax(dim=1).numpy(), probs.max(dim=1).values.numpy()

    def _example(self, i: np.int64) -> dict[str, Any]:
        return {
            "png": thumbnail(self._images[self._position[i]]),
            "predicted": int(self._predicted[i]),
            "confidence": float(self._confidence[i]),
            "truth": int(self._truth[i]),
        }

    def _sample(self, index: np.ndarray, most: int) -> np.ndarray:
        """At most so many of ``index``, ascending."""
        if len(index) <= most:
            return index
        return np.sort(self._random.choice(index, most, replace=False))


def flat_map(embeddings: np.ndarray, *, seed: int) -> tuple[np.ndarray, str]:
    """Places in the unit square, float32 ``[m, 2]``, and how they came about.

    Args:
        embeddings: float32 ``[m, d]``.
        seed: of t-SNE.

    t-SNE of the first principal components; of few images, these themselves. On one thread: so few
    points gain nothing from more, and where the cores are shared they wait for each other (50 s
    instead of 7 were measured).
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    rows = embeddings.astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("the embeddings are not all finite numbers")
    largest = max(np.abs(rows).max(), 1e-30)
    rows = (rows - rows.mean(axis=0)) / largest
    with threadpool_limits(1):
        left, sizes, _ = np.linalg.svd(rows, full_matrices=False)
        place = (left * sizes)[:, :COMPONENTS]
        widest = float(place[:, 0].std())
        # Points that are all the same become NaN in t-SNE, and end its process.
        by_tsne = len(place) >= FEWEST_FOR_TSNE and widest > SAME
        if by_tsne:
            tool = TSNE(init="pca", random_state=seed, max_iter=MAP_ITERATIONS, n_jobs=1)
            place = tool.fit_transform((place / widest).astype(np.float32))
    place = np.pad(place[:, :2], ((0, 0), (0, max(0, 2 - place.shape[1]))))
    low, high = place.min(axis=0), place.max(axis=0)
    width = np.maximum((high - low).max(), 1e-12)
    place = (0.5 + (place - (low + high) / 2) / width).astype(np.float32)
    return place, "t-SNE" if by_tsne else "PCA"


def thumbnail(image: np.ndarray) -> str:
    """An image uint8 ``[H, W, C]`` as a small PNG in base64."""
    picture = Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)
    if max(picture.size) > SIDE:
        picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()


def _share(right: np.ndarray, known: np.ndarray) -> float | None:
    return float(right[known].mean()) if known.any() else None
