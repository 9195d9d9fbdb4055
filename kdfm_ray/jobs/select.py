"""The trusted subset, as one Ray task that has a GPU where the cluster has one."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from kdfm_ray.config import Config, SelectConfig
from kdfm_ray.data.split import Split
from kdfm_ray.jobs.crew import Crew
from kdfm_ray.jobs.label_files import LabelFiles
from kdfm_ray.jobs.prepare import Prepared
from kdfm_ray.jobs.session import Session
from kdfm_ray.store import Store
from kdfm_ray.trust.relabel import Relabeled, relabel_all
from kdfm_ray.types import UNKNOWN, Emit, UserError


def select(
    session: Session,
    store: Store,
    config: Config,
    prepared: Prepared,
    labels: str,
    key: str,
    *,
    crew: Crew | None = None,
) -> None:
    """Choose the trusted subset from the pseudo labels under key ``labels``; ``crew`` may help.

    Raises:
        UserError: no image can be trusted; says which thresholds to try.
    """
    (crew or session).call(
        _select,
        store.root,
        config,
        prepared.dataset.key,
        prepared.split.key,
        labels,
        key,
        session.use_gpu,
        session.cpus_per_worker,
        session.emit,
        gpu=True,
    )


def _select(
    store_root: str,
    config: Config,
    dataset_key: str,
    split_key: str,
    labels_key: str,
    key: str,
    use_gpu: bool,
    threads: int,
    emit: Emit,
) -> None:
    import faiss
    import torch

    from kdfm_ray.trust.select import select_trusted

    torch.set_num_threads(threads)  # Ray sets one where a task asks for no CPUs
    faiss.omp_set_num_threads(threads)
    store, started = Store(store_root), time.perf_counter()
    dataset, split_artifact = store.get("dataset", dataset_key), store.get("split", split_key)
    labels = store.get("labels", labels_key)
    split = Split.load(split_artifact.path / "split.npz")
    with dataset.open("train_labels.npy") as file:
        true_label = np.load(file)
    rows = LabelFiles(labels)
    predicted, confidence = rows.pseudo_labels()
    truth = true_label[split.unlabeled_index]
    labeled = np.flatnonzero(np.isin(split.unlabeled_index, split.labeled_index))
    settings = config.select
    classes = len(dataset.record()["classes"])
    relabeled = None
    if settings.labels != "network" or settings.align != "none":
        relabeled = _relabel(rows, settings, truth, labeled, classes, config.seed)
        predicted, confidence = relabeled.predicted, relabeled.confidence
    try:
        selection = select_trusted(
            rows,
            predicted,
            confidence,
            num_classes=classes,
            tau=settings.tau_select,
            clusterer=settings.clusterer,
            num_clusters=settings.num_clusters,
            labeled_index=labeled,
            labeled_class=truth[labeled],
            labeled_weight=settings.labeled_weight,
            truth=truth,
            sample_size=settings.sample_size,
            seed=config.seed,
            device="cuda" if use_gpu else "cpu",
            gpu=use_gpu,
            options=clusterer_options(settings),
            allowed_fall=settings.allowed_fall,
            max_per_class=settings.max_per_class,
            share=settings.share,
            share_of_each=settings.share_of_each,
            class_names=dataset.record()["classes"],
            emit=lambda event: emit({"stage": "select"} | event),
        )
    except ValueError as error:  # an empty subset, or settings that do not fit these images
        raise UserError(str(error)) from error
    with store.writing("trusted", key) as draft:
        np.savez_compressed(
            draft.path / "trusted.npz",
            trusted_index=selection.trusted_index,
            trusted_label=selection.trusted_label,
            cluster=selection.cluster,
            cluster_to_class=selection.cluster_to_class,
        )
        found: dict[str, Any] = {"seconds": time.perf_counter() - started}
        if relabeled is not None:
            found["relabeled"] = {
                "source": settings.labels,
                "class_weights": None if relabeled.weights is None else relabeled.weights.tolist(),
                "fitted_on": relabeled.fitted_on,
            }
        draft.write_record(selection.record | found)


def _relabel(
    rows: LabelFiles,
    settings: SelectConfig,
    truth: np.ndarray,
    labeled: np.ndarray,
    classes: int,
    seed: int,
) -> Relabeled:
    """Labels other than the network's own: of its neighbors, in proportion, or both."""
    known = np.full(len(rows), UNKNOWN, np.int64)
    known[labeled] = truth[labeled]
    shares = None
    if settings.align == "uniform":
        shares = np.full(classes, 1 / classes)
    elif settings.align == "labeled":
        shares = np.bincount(truth[labeled], minlength=classes) / len(labeled)
    return relabel_all(
        rows,
        source=settings.labels,
        shares=shares,
        strength=settings.align_strength,
        known=known,
        neighbors=settings.spread_neighbors,
        alpha=settings.graph_alpha,
        sample_size=settings.sample_size,
        seed=seed,
    )


def clusterer_options(settings: SelectConfig) -> dict[str, object]:
    """Settings of the clusterers: all of the section that is not an argument of its own."""
    named = {
        *("tau_select", "clusterer", "num_clusters", "labeled_weight", "sample_size"),
        *("allowed_fall", "max_per_class", "labels", "graph_alpha", "align", "align_strength"),
        *("share", "share_of_each"),
    }
    return settings.model_dump(exclude=named)
