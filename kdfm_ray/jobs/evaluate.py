"""The test set, read once, at the end, by the final EMA networks."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np

from kdfm_ray import keys
from kdfm_ray.jobs.prepare import Prepared, load_images
from kdfm_ray.jobs.session import Session
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Artifact, Store
from kdfm_ray.types import Emit, ImageSet


def evaluate(
    session: Session,
    store: Store,
    prepared: Prepared,
    networks: dict[str, str],
    key: str,
    *,
    numerics: Numerics,
    batch_size: int,
) -> None:
    """Test accuracy (fraction) of each network (role -> key); ``None`` without a test set."""
    session.call(
        _evaluate,
        store.root,
        prepared.dataset.key,
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
    networks: dict[str, str],
    key: str,
    numerics: Numerics,
    batch_size: int,
    use_gpu: bool,
    threads: int,
    emit: Emit,
) -> None:
    store, started = Store(store_root), time.perf_counter()
    accuracy: dict[str, float | None] = {}
    validation: dict[str, float | None] = {}
    for number, (role, network_key) in enumerate(networks.items()):
        artifact = store.get(role, network_key)
        validation[role] = artifact.record()["val_accuracy"]
        accuracy[role] = _tested(
            store, dataset_key, artifact, numerics, batch_size, use_gpu, threads
        )
        emit({"stage": "evaluate", "step": number + 1, "total": len(networks)})
    with store.writing("evaluation", key) as draft:
        draft.write_record(
            {
                "test_accuracy": accuracy,
                "warnings": verdict_warnings(accuracy, validation),
                "seconds": time.perf_counter() - started,
            }
        )


def _tested(
    store: Store,
    dataset_key: str,
    network: Artifact,
    numerics: Numerics,
    batch_size: int,
    use_gpu: bool,
    threads: int,
) -> float | None:
    """Test accuracy of one network, kept by itself: runs of a sweep have outer networks in common.

    ``None`` without a test set.
    """
    key = keys.tested_key(dataset_key, network.key, numerics)
    found = store.find("tested", key)
    if found is None:
        dataset = store.get("dataset", dataset_key)
        test = load_images(dataset, "test")
        accuracy = None
        if test is not None:
            accuracy = _accuracy(test, network, numerics, batch_size, use_gpu, threads)
        with store.writing("tested", key) as draft:
            draft.write_record({"test_accuracy": accuracy, "network": network.key})
        found = store.get("tested", key)
    kept: float | None = found.record()["test_accuracy"]
    return kept


def _accuracy(
    test: ImageSet,
    artifact: Artifact,
    numerics: Numerics,
    batch_size: int,
    use_gpu: bool,
    threads: int,
) -> float:
    import torch

    from kdfm_ray.models.backbone import load_network
    from kdfm_ray.training.batches import ImageSource
    from kdfm_ray.training.evaluate import count_correct

    torch.set_num_threads(threads)  # Ray sets one where a task asks for no CPUs
    device = torch.device("cuda" if use_gpu else "cpu")
    network = numerics.place(load_network(artifact.path), device)
    correct = count_correct(
        network,
        ImageSource(test.images, device),
        np.arange(len(test)),
        test.labels,
        batch_size=batch_size,
        numerics=numerics,
    )
    return correct / len(test)


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
            "trusted subset's precision, raise select.tau_select, or try inner.loss sce"
        )
    if inner is not None and base is not None and inner <= base:
        found.append(
            f"KD-FixMatch ({inner:.1%}) did not beat training on the labeled images alone "
            f"({base:.1%}): train for more steps, or check that the unlabeled images are of the "
            "same classes"
        )
    return found
