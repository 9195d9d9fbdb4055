"""The test set, read once, at the end, by the final EMA networks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from kdfm_ray import keys
from kdfm_ray.data.split import Split
from kdfm_ray.jobs.crew import Crew
from kdfm_ray.jobs.prepare import Prepared, load_images
from kdfm_ray.jobs.session import Session
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Artifact, Store
from kdfm_ray.training.scores import compare, score, score_calibrated
from kdfm_ray.types import Emit


def evaluate(
    session: Session,
    store: Store,
    prepared: Prepared,
    networks: dict[str, str],
    key: str,
    *,
    numerics: Numerics,
    batch_size: int,
    crew: Crew | None = None,
) -> None:
    """Accuracies (fractions) and other figures of each network (role -> key), see ``score``.

    ``test_accuracy`` is ``None`` without a test set; the figures are of validation images then.
    ``crew`` may help.
    """
    (crew or session).call(
        _evaluate,
        store.root,
        prepared.dataset.key,
        prepared.split.key,
        networks,
        key,
        numerics,
        batch_size,
        session.use_gpu,
        session.cpus_per_worker,
        session.emit,
        gpu=True,
    )


def _evaluate(
    store_root: str,
    dataset_key: str,
    split_key: str,
    networks: dict[str, str],
    key: str,
    numerics: Numerics,
    batch_size: int,
    use_gpu: bool,
    threads: int,
    emit: Emit,
) -> None:
    store, started = Store(store_root), time.perf_counter()
    how = _How(store, dataset_key, split_key, numerics, batch_size, use_gpu, threads)
    tested: dict[str, Artifact] = {}
    for number, (role, network_key) in enumerate(networks.items()):
        tested[role] = _tested(how, store.get(role, network_key))
        emit({"stage": "evaluate", "step": number + 1, "total": len(networks)})
    records = {role: artifact.record() for role, artifact in tested.items()}
    accuracy = {role: record["test_accuracy"] for role, record in records.items()}
    validation = {
        role: store.get(role, network_key).record()["val_accuracy"]
        for role, network_key in networks.items()
    }
    with store.writing("evaluation", key) as draft:
        draft.write_record(
            {
                "test_accuracy": accuracy,
                "scored_on": next(iter(records.values()))["scored_on"],
                "scores": {role: record["scores"] for role, record in records.items()},
                "compared": _compared(tested),
                "warnings": verdict_warnings(accuracy, validation),
                "seconds": time.perf_counter() - started,
            }
        )


@dataclass(frozen=True)
class _How:
    """With what a network is tested; ``threads`` of torch."""

    store: Store
    dataset_key: str
    split_key: str
    numerics: Numerics
    batch_size: int
    use_gpu: bool
    threads: int


def _tested(how: _How, network: Artifact) -> Artifact:
    """Figures of one network, kept by themselves: runs of a sweep have outer networks in common.

    They are of the test set; without one of the validation images, and ``test_accuracy`` is
    ``None``; with neither, there are none. ``right.npy`` says of each image whether its class was
    found.
    """
    key = keys.tested_key(how.dataset_key, network.key, how.numerics)
    found = how.store.find("tested", key)
    if found is not None:
        return found
    scored_on, images, labels = _images_to_score(how)
    scores, right = None, np.empty(0, bool)
    if len(labels):
        probs = _probs(how, images, network)
        scores, right = score(probs, labels), probs.argmax(axis=1) == labels
        val_images, val_labels = _val_images(how)
        if len(val_labels):
            val_probs = probs if scored_on == "val" else _probs(how, val_images, network)
            scores["calibrated"] = score_calibrated(val_probs, val_labels, probs, labels)
    with how.store.writing("tested", key) as draft:
        np.save(draft.path / "right.npy", right)
        accuracy = scores["accuracy"] if scores and scored_on == "test" else None
        draft.write_record(
            {
                "test_accuracy": accuracy,
                "scored_on": scored_on,
                "scores": scores,
                "network": network.key,
            }
        )
    return how.store.get("tested", key)


def _images_to_score(how: _How) -> tuple[str | None, np.ndarray, np.ndarray]:
    """``test``, ``val`` or ``None``; images uint8 ``[n, H, W, C]``; their classes int64 ``[n]``."""
    dataset = how.store.get("dataset", how.dataset_key)
    test = load_images(dataset, "test")
    if test is not None and len(test):
        return "test", test.images, test.labels
    images, labels = _val_images(how)
    return ("val" if len(labels) else None), images, labels


def _val_images(how: _How) -> tuple[np.ndarray, np.ndarray]:
    """Validation images uint8 ``[n, H, W, C]`` and their classes int64 ``[n]``."""
    train = load_images(how.store.get("dataset", how.dataset_key), "train")
    assert train is not None
    index = Split.load(how.store.get("split", how.split_key).path / "split.npz").val_index
    return train.images[index], train.labels[index]


def _probs(how: _How, images: np.ndarray, artifact: Artifact) -> np.ndarray:
    import torch

    from kdfm_ray.models.backbone import load_network
    from kdfm_ray.training.batches import ImageSource
    from kdfm_ray.training.evaluate import predict

    torch.set_num_threads(how.threads)  # Ray sets one where a task asks for no CPUs
    device = torch.device("cuda" if how.use_gpu else "cpu")
    network = how.numerics.place(load_network(artifact.path), device)
    probs, _ = predict(
        network,
        ImageSource(images, device, keep="host"),  # each is read once
        np.arange(len(images)),
        batch_size=how.batch_size,
        numerics=how.numerics,
    )
    return probs.numpy()


def _compared(tested: Mapping[str, Artifact]) -> dict[str, Any]:
    """The inner network against each other one on the same images; nothing where there are none."""
    if "inner" not in tested:
        return {}
    right = {role: np.load(artifact.path / "right.npy") for role, artifact in tested.items()}
    ours = right.pop("inner")
    return {role: compare(ours, theirs) for role, theirs in right.items()} if len(ours) else {}


def verdict_warnings(
    test: Mapping[str, float | None], val: Mapping[str, float | None]
) -> list[str]:
    """Plain words where a training was not worth it.

    Args:
        test: role -> test accuracy (fraction), ``None`` without a test set.
        val: role -> validation accuracy, which counts then.
    """
    scores = {role: test[role] if test[role] is not None else val[role] for role in test}
    outer, inner, base = (scores.get(role) for role in ("outer", "inner", "baseline"))
    found = []
    if inner is not None and outer is not None and inner < outer:
        found.append(
            f"the inner network ({inner:.1%}) is below the outer one ({outer:.1%}): look at the "
            "trusted subset's precision, raise select.tau_select or lower select.share, or try "
            "inner.loss sce"
        )
    if inner is not None and base is not None and inner <= base:
        found.append(
            f"KD-FixMatch ({inner:.1%}) did not beat training on the labeled images alone "
            f"({base:.1%}): train for more steps, or check that the unlabeled images are of the "
            "same classes"
        )
    return found
