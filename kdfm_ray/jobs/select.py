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
from kdfm_ray.trust.balance import class_weights, relabel
from kdfm_ray.types import Emit, UserError


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
    weights: np.ndarray | None = None
    if settings.align != "none":
        classes = len(dataset.record()["classes"])
        shares = np.full(classes, 1 / classes)
        if settings.align == "labeled":
            shares = np.bincount(truth[labeled], minlength=classes) / len(labeled)
        predicted, confidence, weights = _in_proportion(rows, shares, settings.sample_size)
    try:
        selection = select_trusted(
            rows,
            predicted,
            confidence,
            num_classes=len(dataset.record()["classes"]),
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
        if weights is not None:
            found["class_weights"] = weights.tolist()
        draft.write_record(selection.record | found)


def _in_proportion(
    rows: LabelFiles, shares: np.ndarray, sample_size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and confidence of all images so that classes have those shares, and the weights.

    The weights are found on every so many-th image where there are more than ``sample_size``.
    """
    every = -(-len(rows) // sample_size)
    sample = [probs[index % every == 0] for index, probs in rows.probabilities()]
    weights = class_weights(np.concatenate(sample), shares)
    predicted = np.empty(len(rows), np.int64)
    confidence = np.empty(len(rows), np.float32)
    for index, probs in rows.probabilities():
        predicted[index], confidence[index] = relabel(probs, weights)
    return predicted, confidence, weights


def clusterer_options(settings: SelectConfig) -> dict[str, object]:
    """Settings of the clusterers: all of the section that is not an argument of its own."""
    named = {
        *("tau_select", "clusterer", "num_clusters", "labeled_weight", "sample_size"),
        *("allowed_fall", "max_per_class", "align"),
    }
    return settings.model_dump(exclude=named)
