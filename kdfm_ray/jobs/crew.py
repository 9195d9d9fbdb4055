"""Training workers, kept between the trainings of a run: DDP by Ray Train, over gloo or nccl.

Every ``fit()`` of Ray Train starts its processes anew (10 to 20 s). So a crew starts once, and its
workers take one list of networks after the other from a board. Where nobody else needs what they
hold they stay, and do the other stages too: they have imported torch, and a new process would have
to. Elsewhere they leave after each list.

This module is imported by the driver and by Ray Train's controller, which compute nothing; torch
comes in when a worker starts.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, TypeVar

from kdfm_ray.config import Config
from kdfm_ray.jobs.board import Board, Call, TrainTask, work
from kdfm_ray.jobs.interrupts import hear_interrupts
from kdfm_ray.jobs.room import room_now, wait_for_room
from kdfm_ray.jobs.session import Session, quiet_libraries, start_beside_driver
from kdfm_ray.remote import arrow_place, open_files
from kdfm_ray.store import Store
from kdfm_ray.types import Emit, RunFailed, Stopped, UserError

T = TypeVar("T")
POLL_SECONDS = 0.1  # between looks at whether the workers are done, at first
QUIET_SECONDS = 20.0  # without a question by a worker: it is not there, or evaluates
RESTART_SECONDS = 3.0  # no restart is faster: what fails again within them is the same failure


class Crew:
    """The training workers of one run; a context manager that ends them."""

    def __init__(
        self, session: Session, store: Store, config: Config, stop: Callable[[], bool] | None = None
    ) -> None:
        """Start nothing yet: a run whose networks are all there needs no workers.

        Args:
            session: where to start them.
            store: where networks go.
            config: the run's; ``config`` is set again when its open fields are filled, which is
                before anything trains.
            stop: asked about once a second while a network trains: whether to save its state and
                raise ``Stopped``, as after Ctrl-C.
        """
        self._session, self._store, self.config = session, store, config
        self._stop = stop or (lambda: False)
        self._board: Any = None
        self._fit: threading.Thread | None = None
        self._errors: list[BaseException] = []
        self._given = 0  # pieces of work so far
        self._told_of_silence = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and not self._session.keeps_workers:
            self.leave()
        elif kind is not None and issubclass(kind, Exception) and not issubclass(kind, RunFailed):
            with contextlib.suppress(Exception):
                self.leave()
        elif self._board is not None:  # our Ray ends with us; an interrupt waits for nobody
            with contextlib.suppress(Exception):
                self._board.close.remote()

    def train(self, tasks: list[TrainTask]) -> None:
        """Train the networks of ``tasks`` in their order; each lands in the store when it is done.

        Raises:
            Stopped: the user asked to stop; the state of the network is saved.
            UserError: a mistake that only a worker could see.
            FloatingPointError: the loss became NaN or infinite.
            RunFailed: workers failed more often than ``faults.max_failures``; the text has the
                traceback of the last one.
        """
        with hear_interrupts(self._say_stopping) as interrupt:
            if self._session.in_process:
                self._train_here(tasks, interrupt)
            else:
                self._train_by_workers(tasks, interrupt)
            if interrupt.is_set():  # too late for the last update
                raise Stopped(
                    "stopped; the networks of this stage are finished and stored, and the same "
                    "command goes on after them"
                )

    def call(self, function: Callable[..., T], *args: Any, gpu: bool = False) -> T:
        """As ``Session.call``; one of the workers does it where they wait with nothing to do."""
        if self._session.keeps_workers and self._alive():
            done, found = self._ask(Call(function, args))
            if done:
                result: T = found[0]
                return result
        return self._session.call(function, *args, gpu=gpu)

    def share(self, function: Callable[..., None], *args: Any) -> bool:
        """Have each worker run a function, which is also given ``rank`` and ``world_size``.

        Returns:
            Whether it is done. Not so where workers do not stay between stages, or died more often
            than ``faults.max_failures``.
        """
        if not self._session.keeps_workers:
            return False
        if not self._alive():  # the next network needs them anyhow
            self._start()
        done, _ = self._ask(Call(function, args, by_all=True))
        return done

    def _ask(self, call: Call) -> tuple[bool, list[Any]]:
        """Whether the workers did it (else: they are gone), and what they found, by rank."""
        import ray

        self._give(call)
        self._wait(lambda: False)
        if ray.get(self._board.count_done.remote()) < self._given:
            return False, []
        error, found = ray.get(self._board.outcome.remote())
        if error is not None:
            raise error
        return True, found

    def _train_by_workers(self, tasks: list[TrainTask], interrupt: threading.Event) -> None:
        import ray

        if not self._alive():  # not started yet, or ended by somebody else while it waited
            self._wait_for_nodes(interrupt)
            self._start()
        self._give(tasks)
        self._wait(lambda: interrupt.is_set() or self._stop(), watch=self._watch_silence)
        if ray.get(self._board.count_done.remote()) < self._given:
            raise self._why_not_done()
        if not self._session.keeps_workers:
            self.leave()

    def _give(self, piece: list[TrainTask] | Call) -> None:
        import ray

        ray.get(self._board.give.remote(piece))
        self._given += 1

    def _wait(self, stop: Callable[[], bool], watch: Callable[[], None] = lambda: None) -> None:
        """Until all that was given is done, or the workers are gone."""
        import ray

        started, asked = time.monotonic(), False
        while self._alive():
            if ray.get(self._board.count_done.remote()) == self._given:
                break
            watch()
            if not asked and stop():
                ray.get(self._board.ask_to_stop.remote())
                started, asked = time.monotonic(), True
            assert self._fit is not None
            # Each look costs the workers some of their processor: the longer, the rarer.
            elapsed = time.monotonic() - started
            self._fit.join(timeout=min(1.0, max(POLL_SECONDS, elapsed / 100)))

    def _wait_for_nodes(self, interrupt: threading.Event) -> None:
        if self._session.may_grow:
            wait_for_room(
                self._session.workers_need,
                self._session.emit,
                minutes=self.config.faults.wait_minutes,
                stop=lambda: interrupt.is_set() or self._stop(),
            )

    def _watch_silence(self) -> None:
        """Ray waits without a word for nodes, and without end where a few would be enough."""
        import ray

        silence = ray.get(self._board.silence.remote())
        if silence < QUIET_SECONDS:
            self._told_of_silence = False
            return
        minutes = self.config.faults.wait_minutes
        fewest = self._session.scale.min_workers
        if fewest is not None and silence > 60 * minutes:
            raise RunFailed(
                f"no training worker was heard of for {minutes:g} minutes: the cluster has no room "
                f"for scale.min_workers = {fewest}. Give it more nodes, or ask for fewer workers; "
                "the same command goes on from the last saved state"
            )
        if self._session.may_grow and not self._told_of_silence:
            now, need = room_now(), self._session.workers_need
            if not need.fits(now):
                self._told_of_silence = True
                text = f"waiting for nodes: {need} needed, the cluster has {now}"
                self._session.emit({"stage": "", "note": text})

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

    def _why_not_done(self) -> BaseException:
        """What the workers said themselves; else what Ray says of them."""
        import ray

        said: BaseException | None = ray.get(self._board.why_ended.remote())
        if said is not None:
            return said
        error = self._errors[0] if self._errors else RuntimeError("the workers left")
        cause = _first_cause(error, self.config.faults.max_failures)
        cause.__cause__ = error
        return cause

    def _say_stopping(self) -> None:
        text = "stopping after this update; Ctrl-C again stops at once, without saving"
        self._session.emit({"stage": "", "note": text})

    def _train_here(self, tasks: list[TrainTask], interrupt: threading.Event) -> None:
        """In this process, without Ray: to set breakpoints, and for small runs."""
        import torch

        from kdfm_ray.jobs.train import train_tasks
        from kdfm_ray.training.runtime import Runtime, Wish, keeping_memory

        device = torch.device("cuda" if self._session.use_gpu else "cpu")

        def wish(updates: int) -> Wish:
            return Wish.STOP if interrupt.is_set() or self._stop() else Wish.NONE

        runtime = Runtime(device=device, emit=self._session.emit, wish=wish)
        threads = self._session.cpus_per_worker
        with keeping_memory(device):
            train_tasks(tasks, self.config, self._store, runtime, threads=threads)

    def _start(self) -> None:
        quiet_libraries(self._session)
        self._errors, self._given = [], 0
        self._board = start_beside_driver(Board)
        self._fit = threading.Thread(target=self._run_fit, name="kdfm-fit", daemon=True)
        self._fit.start()

    def _run_fit(self) -> None:
        """In a thread of its own: in the main one ``fit()`` would replace Python's Ctrl-C."""
        try:
            self._fit_crew(f"crew-{uuid.uuid4().hex[:8]}")
        except BaseException as error:
            self._errors.append(error)

    def _fit_crew(self, name: str) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        session, storage = self._session, notes_folder(self._session, self._store)
        path, files = arrow_place(storage)
        trainer = TorchTrainer(
            work,
            train_loop_config={
                "store": self._store.root,
                "config": self.config,
                "board": self._board,
                "emit": session.emit,
                "threads": session.cpus_per_worker,
            },
            torch_config=TorchConfig(backend="nccl" if session.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=_how_many(session),
                use_gpu=session.use_gpu,
                resources_per_worker=(
                    None if session.use_gpu else {"CPU": session.cpus_per_worker}
                ),
                placement_strategy="PACK",  # on few nodes: gradients pass between fewer of them
            ),
            run_config=RunConfig(
                name=name,
                storage_path=path,
                storage_filesystem=files,
                # Workers that are started again go on from the network's saved state. Machines
                # that are taken away are nobody's fault, and counted apart (no limit).
                failure_config=FailureConfig(
                    max_failures=self.config.faults.max_failures,
                    controller_failure_limit=_patience(self.config.faults.wait_minutes),
                ),
                callbacks=[_tell_restarts(session.emit, self.config.faults.max_failures)],
            ),
        )
        try:
            trainer.fit()
        finally:
            with contextlib.suppress(Exception):  # what Ray keeps: nothing that the store lacks
                notes, folder = open_files(f"{storage}/{name}")
                notes.rm(folder, recursive=True)


def _how_many(session: Session) -> int | tuple[int, int]:
    """Workers, or the fewest and the most where a run goes on with fewer."""
    scale = session.scale
    if scale.min_workers is None or scale.min_workers == scale.num_workers:
        return scale.num_workers
    return scale.min_workers, scale.num_workers


def _tell_restarts(emit: Emit, limit: int) -> Any:
    """A callback of Ray Train, in its controller's process, that says when workers have failed."""
    from ray.train import UserCallback

    class TellRestarts(UserCallback):
        def __init__(self) -> None:
            self.seen, self.count = -RESTART_SECONDS, 0

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Any]) -> None:
            rank, error = _culprit(worker_exceptions)
            # Ray calls this at each look at the same failure.
            before, self.seen = self.seen, time.monotonic()
            if self.seen - before < RESTART_SECONDS or isinstance(error, UserError):
                return
            self.count += 1
            next_step = "starting the workers again from the last saved state"
            if self.count > limit:
                next_step = f"it was the failure number {self.count}"
            emit({"note": f"training worker {rank} failed ({_in_short(error)}): {next_step}"})

    return TellRestarts()


def notes_folder(session: Session, store: Store) -> str:
    """Where Ray Train and Tune keep their notes of a run: nothing that the store lacks."""
    if not session.keeps_workers:
        return f"{store.root}/ray_train"
    import ray

    return f"{ray._private.worker._global_node.get_session_dir_path()}/train"


def _first_cause(error: BaseException, restarts: int) -> BaseException:
    """Why the workers failed, with Ray's report of all of them."""
    failures = dict(getattr(error, "worker_failures", {}))
    if not failures:
        if isinstance(error, Exception):
            return RunFailed(f"training failed: {_in_short(error)}\nRay's report:\n{error}")
        return error
    rank, failure = _culprit(failures)
    if isinstance(failure, UserError | FloatingPointError):
        return failure
    again = f" (after {restarts} restarts)" if restarts else ""
    return RunFailed(
        f"training worker {rank} failed{again}: {_in_short(failure)}\nRay's report:\n{error}"
    )


def _culprit(failures: dict[int, Any]) -> tuple[int, BaseException]:
    """The worker that failed first, by what it said, and its failure.

    When one worker is gone, the others often report no more than a lost connection.
    """

    def likely(item: tuple[int, Any]) -> tuple[bool, bool, bool, int]:
        rank, failure = item
        known = isinstance(failure, UserError | FloatingPointError)
        gone = type(failure).__name__ == "WorkerHealthCheckFailedError"
        lost_another = "gloo" in str(failure) or "NCCL" in str(failure)
        return not known, not gone, lost_another, rank

    rank, failure = min(failures.items(), key=likely)
    return rank, getattr(failure, "_base_exc", failure)  # Ray wraps it to carry its traceback


def _in_short(error: BaseException) -> str:
    """Type and text, cut to one sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[-1].partition(". ")[0][:300] if lines else ""
    return f"{type(error).__name__}: {text}"


def _patience(minutes: float) -> int:
    """Starts of workers that may fail: each waits so long for the nodes that it needs."""
    seconds = float(os.environ.get("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60"))
    return math.ceil(60 * minutes / seconds)
