"""What a training worker does: one network trained and stored."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from kdfm_ray.checkpoints import Checkpoints
from kdfm_ray.config import Config
from kdfm_ray.jobs.board import TrainTask
from kdfm_ray.jobs.prepare import load_training_data, make_network
from kdfm_ray.models.backbone import Network, load_network, save_network
from kdfm_ray.store import Store
from kdfm_ray.training.loop import TrainResult, train_network
from kdfm_ray.training.runtime import Runtime


def train_tasks(
    tasks: list[TrainTask], config: Config, store: Store, runtime: Runtime, *, threads: int
) -> None:
    """Train the networks of ``tasks`` in their order, but for those that are there already.

    All workers have to agree on what is there: rank 0 looks.
    """
    torch.set_num_threads(threads)
    for task in tasks:
        missing = runtime.rank == 0 and store.find(task.role, task.key) is None
        if runtime.largest([int(missing)])[0]:
            train_and_store(task, config, store, runtime)


def train_and_store(task: TrainTask, config: Config, store: Store, runtime: Runtime) -> None:
    """Train one network, from its saved state if there is one; rank 0 writes it to the store."""
    config = config.trained_as(task.role)
    checkpoints = Checkpoints(store, task.role, task.key)
    data = load_training_data(store, config, task.dataset, task.split, task.trusted)
    network = _initial_network(task, config, store)
    result = train_network(
        network,
        data,
        config,
        task.role,
        runtime,
        numerics=task.numerics,
        checkpoints=checkpoints,
    )
    if runtime.rank == 0:
        write_network(store, task, config, result, network.notes)
        checkpoints.clear()
        # One job trains several networks, and the driver hears of its end alone.
        runtime.emit({"stage": task.role, "state": "trained"})


def write_network(
    store: Store, task: TrainTask, config: Config, result: TrainResult, notes: Sequence[str]
) -> None:
    """Store a trained network with its metrics and what made it."""
    with store.writing(task.role, task.key) as draft:
        save_network(result.network, draft.path)
        lines = "".join(json.dumps(line) + "\n" for line in result.metrics)
        (draft.path / "metrics.jsonl").write_text(lines)
        draft.write_record(
            {
                "role": task.role,
                "seconds": result.seconds,
                "resumed": result.resumed,
                "warnings": result.warnings,
                "val_accuracy": result.val_accuracy,
                "numerics": asdict(task.numerics),
                "steps": config.train.steps,
                "last": _last_metrics(result.metrics),
                "notes": list(notes),
                "config": config.model_dump(mode="json"),
            }
        )


def _last_metrics(metrics: list[dict[str, Any]]) -> dict[str, Any]:
    lines = [line for line in metrics if "loss" in line]
    return lines[-1] if lines else {}


def _initial_network(task: TrainTask, config: Config, store: Store) -> Network:
    """The starting weights: by seed, from a file, or from the outer network."""
    if task.outer is not None:
        outer = store.get("outer", task.outer)
        return load_network(outer.path).train().requires_grad_(True)
    dataset = store.get("dataset", task.dataset)
    scratch = task.role == "inner" and config.inner.init == "scratch"
    return make_network(
        config,
        dataset.record(),
        # The inner network starts elsewhere than the outer one: their mistakes should differ.
        seed=config.seed + (1_000_003 if task.role == "inner" else 0),
        pretrained="no" if scratch else config.model.pretrained,
    )
