"""Training workers, kept between the trainings of a run: DDP by Ray Train, over gloo or nccl.

Every ``fit()`` of Ray Train starts its processes anew (10 to 20 s). So a crew starts once, and its
workers take one list of networks after the other from a board. While other stages run they wait,
where nobody else needs what they hold; elsewhere they leave after each list.

This module is imported by the driver and by Ray Train's controller, which compute nothing; torch
comes in when a worker starts.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdfm_ray.config import Config
from kdfm_ray.jobs.session import Session, quiet_libraries
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.store import Store
from kdfm_ray.types import Role, UserError

POLL_SECONDS = 0.1  # between a waiting worker's looks at the board


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


class Crew:
    """The training workers of one run; a context manager that ends them."""

    def __init__(self, session: Session, store: Store, config: Config) -> None:
        """Start nothing yet: a run whose networks are all there needs no workers."""
        self._session, self._store, self._config = session, store, config
        self._board: Any = None
        self._fit: threading.Thread | None = None
        self._errors: list[BaseException] = []
        self._given = 0  # lists of tasks so far

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None:
            self.leave()
        elif issubclass(kind, Exception):  # another stage's
            with contextlib.suppress(Exception):
                self.leave()
        elif self._board is not None:  # an interrupt waits for nobody, and nobody for it
            with contextlib.suppress(Exception):
                self._board.close.remote()

    def train(self, tasks: list[TrainTask]) -> None:
        """Train the networks of ``tasks`` in their order; each lands in the store when it is done.

        Raises:
            UserError: a mistake that only a worker could see.
            FloatingPointError: the loss became NaN or infinite.
            RuntimeError: a worker failed otherwise; the text has its traceback.
        """
        if self._session.in_process:
            self._train_here(tasks)
            return
        import ray

        if not self._alive():  # not started yet, or ended by somebody else while it waited
            self._start()
        ray.get(self._board.give.remote(tasks))
        self._given += 1
        started = time.monotonic()
        while self._alive():
            if ray.get(self._board.count_done.remote()) == self._given:
                break
            assert self._fit is not None
            # Each look costs the workers some of their processor: the longer, the rarer.
            elapsed = time.monotonic() - started
            self._fit.join(timeout=min(1.0, max(POLL_SECONDS, elapsed / 100)))
        if ray.get(self._board.count_done.remote()) < self._given:
            error = self._errors[0] if self._errors else RuntimeError("the workers left")
            raise _first_cause(error) from error
        if not self._session.keeps_workers:
            self.leave()

    def leave(self) -> None:
        """Have the workers end, and wait for it; how they end, once all is done, is no matter."""
        if self._fit is None:
            return
        import ray

        ray.get(self._board.close.remote())
        while self._alive():
            self._fit.join(timeout=0.2)  # in steps, so that a signal is handled in between
        ray.kill(self._board)
        self._board = self._fit = None

    def _alive(self) -> bool:
        return self._fit is not None and self._fit.is_alive()

    def _train_here(self, tasks: list[TrainTask]) -> None:
        """In this process, without Ray: to set breakpoints, and for small runs."""
        import torch

        from kdfm_ray.jobs.train import train_tasks
        from kdfm_ray.training.runtime import Runtime

        device = torch.device("cuda" if self._session.use_gpu else "cpu")
        runtime = Runtime(device=device, emit=self._session.emit)
        threads = self._session.cpus_per_worker
        train_tasks(tasks, self._config, self._store, runtime, threads=threads)

    def _start(self) -> None:
        import ray

        quiet_libraries(self._session)
        self._errors, self._given = [], 0
        self._board = ray.remote(Board).options(num_cpus=0).remote()
        self._fit = threading.Thread(target=self._run_fit, name="kdfm-fit", daemon=True)
        self._fit.start()

    def _run_fit(self) -> None:
        """In a thread of its own: in the main one ``fit()`` would replace Python's Ctrl-C."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        session, storage = self._session, f"{self._store.root}/ray_train"
        name = f"crew-{uuid.uuid4().hex[:8]}"
        trainer = TorchTrainer(
            _work,
            train_loop_config={
                "store": self._store.root,
                "config": self._config,
                "board": self._board,
                "emit": session.emit,
                "threads": session.cpus_per_worker,
            },
            torch_config=TorchConfig(backend="nccl" if session.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=session.scale.num_workers,
                use_gpu=session.use_gpu,
                resources_per_worker=(
                    None if session.use_gpu else {"CPU": session.cpus_per_worker}
                ),
            ),
            run_config=RunConfig(
                name=name,
                storage_path=storage,
                # A restart would begin the stage anew: until the loop saves its state inside a
                # stage, a failed worker ends the run, and the next one goes on at this stage.
                failure_config=FailureConfig(
                    max_failures=0, max_preemption_failures=0, controller_failure_limit=3
                ),
            ),
        )
        try:
            trainer.fit()
        except BaseException as error:
            self._errors.append(error)
        finally:
            if not self._store.remote:  # what Ray keeps of a run: nothing that the store lacks
                shutil.rmtree(Path(storage, name), ignore_errors=True)


class Board:
    """The actor where the driver puts lists of tasks, and workers look for them."""

    def __init__(self) -> None:
        """Start empty."""
        self._lists: list[list[TrainTask]] = []
        self._done = 0
        self._closed = False

    def give(self, tasks: list[TrainTask]) -> None:
        """Add a list for all workers."""
        self._lists.append(tasks)

    def close(self) -> None:
        """There will be no more."""
        self._closed = True

    def look(self, number: int) -> tuple[list[TrainTask] | None, bool]:
        """List ``number`` (from 0) if it is there, and whether it may yet come."""
        if number < len(self._lists):
            return self._lists[number], True
        return None, not self._closed

    def note_done(self, number: int) -> None:
        """List ``number`` is in the store."""
        self._done = max(self._done, number + 1)

    def count_done(self) -> int:
        """How many lists are."""
        return self._done


def _work(loop_config: dict[str, Any]) -> None:
    """The function that Ray Train runs on each worker: one list of tasks after the other."""
    import ray
    import ray.train
    import ray.train.torch

    from kdfm_ray.jobs.train import train_tasks
    from kdfm_ray.training.runtime import (
        Runtime,
        give_back_memory,
        ignore,
        keep_freed_memory,
    )

    keep_freed_memory()
    context = ray.train.get_context()
    rank = context.get_world_rank()
    runtime = Runtime(
        rank=rank,
        world_size=context.get_world_size(),
        device=ray.train.torch.get_device(),
        emit=loop_config["emit"] if rank == 0 else ignore,
    )
    store, config, board = Store(loop_config["store"]), loop_config["config"], loop_config["board"]
    number = ray.get(board.count_done.remote())
    while True:
        tasks, may_come = ray.get(board.look.remote(number))
        if tasks is not None:
            train_tasks(tasks, config, store, runtime, threads=loop_config["threads"])
            if rank == 0:
                ray.get(board.note_done.remote(number))
            number += 1
            give_back_memory()
        elif may_come:
            time.sleep(POLL_SECONDS)
        else:
            return


def _first_cause(error: BaseException) -> BaseException:
    """Why the workers failed: a cause that we know of any of them, else that of the first.

    When one worker fails, the others often report no more than that it has gone.
    """
    failures = sorted(getattr(error, "worker_failures", {}).items())
    for _, failure in failures:
        original = getattr(failure, "_base_exc", failure)  # Ray wraps it to carry its traceback
        if isinstance(original, UserError | FloatingPointError):
            return original
    if failures:
        rank, failure = failures[0]
        return RuntimeError(f"training worker {rank} failed: {failure}")
    if isinstance(error, Exception):
        return RuntimeError(f"training failed: {error}")
    return error
