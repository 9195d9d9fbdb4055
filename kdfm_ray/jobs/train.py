"""Networks trained by Ray Train: DDP over gloo or nccl, one ``fit()`` for the networks of a stage.

Every ``fit()`` starts its processes anew (about 10 s), so networks that are trained one after the
other, as the labeled-only and the outer one, share one.
"""

from __future__ import annotations

import json
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from kdfm_ray.config import Config
from kdfm_ray.jobs.prepare import load_training_data, make_network
from kdfm_ray.jobs.session import Session, quiet_libraries
from kdfm_ray.models.backbone import Network, load_network, save_network
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Store
from kdfm_ray.training.loop import TrainResult, train_network
from kdfm_ray.training.runtime import Runtime, ignore, keep_freed_memory
from kdfm_ray.types import Role, UserError


@dataclass(frozen=True)
class TrainTask:
    """One network to train, as keys: a worker on any node finds the rest in the store.

    Attributes:
        role: which network.
        key: where the result goes.
        dataset, split: what it is trained on.
        numerics: as resolved, the same on all workers.
        trusted: the trusted subset, for the inner network.
        outer: the outer network, where the inner one starts from its weights.
    """

    role: Role
    key: str
    dataset: str
    split: str
    numerics: Numerics
    trusted: str | None = None
    outer: str | None = None


def train(session: Session, store: Store, config: Config, tasks: list[TrainTask]) -> None:
    """Train the networks of ``tasks`` in their order; each lands in the store when it is done.

    Raises:
        UserError: a mistake that only a worker could see.
        FloatingPointError: the loss became NaN or infinite.
        RuntimeError: a worker failed otherwise; the text has its traceback.
    """
    quiet_libraries(session)
    storage = f"{store.root}/ray_train"
    workers = session.scale.num_workers
    name = f"{'-'.join(task.role for task in tasks)}-{uuid.uuid4().hex[:8]}"
    trainer = TorchTrainer(
        _worker,
        train_loop_config={
            "store": store.root,
            "config": config,
            "tasks": tasks,
            "emit": session.emit,
            "threads": session.cpus_per_worker,
            "in_process": session.in_process,
        },
        torch_config=TorchConfig(backend="nccl" if session.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=session.use_gpu,
            resources_per_worker=_resources(session),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            # A restart would begin the stage anew: until the loop saves its state inside a
            # stage, a failed worker ends the run, and the next one goes on at this stage.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=3),
        ),
    )
    try:
        if session.in_process:
            trainer.fit()
        else:
            _beside(trainer.fit)
    except ray.train.WorkerGroupError as error:
        raise _first_cause(error) from error
    finally:
        if not store.remote:  # what Ray keeps of a run: nothing that the store does not have
            shutil.rmtree(Path(storage, name), ignore_errors=True)


def _beside(work: Callable[[], object]) -> None:
    """Call ``work`` in a thread and wait: Ctrl-C stays this process's own.

    In the main thread ``fit()`` would put its own handler in place of Python's, and leave it there.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="kdfm-fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(timeout=0.2)  # in steps, so that a signal is handled in between
    if errors:
        raise errors[0]


def _first_cause(error: ray.train.WorkerGroupError) -> Exception:
    """Why the workers failed: a cause that we know of any of them, else that of the first.

    When one worker fails, the others often report no more than that it has gone.
    """
    failures = sorted(error.worker_failures.items())
    for _, failure in failures:
        original = getattr(failure, "_base_exc", failure)  # Ray wraps it to carry its traceback
        if isinstance(original, UserError | FloatingPointError):
            return original
    if not failures:
        return RuntimeError(f"training failed: {error}")
    rank, failure = failures[0]
    return RuntimeError(f"training worker {rank} failed: {failure}")


def _resources(session: Session) -> dict[str, float] | None:
    if session.in_process or session.use_gpu:
        return None
    return {"CPU": session.cpus_per_worker}


def _worker(loop_config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    rank = context.get_world_rank()
    torch.set_num_threads(loop_config["threads"])
    if not loop_config["in_process"]:
        keep_freed_memory()
    runtime = Runtime(
        rank=rank,
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        emit=loop_config["emit"] if rank == 0 else ignore,
    )
    store = Store(loop_config["store"])
    for task in loop_config["tasks"]:
        train_and_store(task, loop_config["config"], store, runtime)


def train_and_store(task: TrainTask, config: Config, store: Store, runtime: Runtime) -> None:
    """Train one network and, on rank 0, write it to the store under its key."""
    data = load_training_data(store, config, task.dataset, task.split, task.trusted)
    network = _initial_network(task, config, store)
    result = train_network(network, data, config, task.role, runtime, numerics=task.numerics)
    if runtime.rank == 0:
        write_network(store, task, config, result, network.notes)


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
        outer = store.find("outer", task.outer)
        assert outer is not None
        return load_network(outer.path).train().requires_grad_(True)
    dataset = store.find("dataset", task.dataset)
    assert dataset is not None
    scratch = task.role == "inner" and config.inner.init == "scratch"
    return make_network(
        config,
        dataset.record(),
        # The inner network starts elsewhere than the outer one: their mistakes should differ.
        seed=config.seed + (1_000_003 if task.role == "inner" else 0),
        pretrained="no" if scratch else config.model.pretrained,
    )
