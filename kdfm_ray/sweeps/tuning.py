"""Ray Tune runs jobs side by side, starts the next when one ends, and tells what becomes of each.

Import this once Ray's environment is prepared.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator

from kdfm_ray.remote import arrow_place, open_files
from kdfm_ray.sweeps.asha import SCORE, STEP, GroupedScheduler
from kdfm_ray.sweeps.ledger import Status
from kdfm_ray.sweeps.slots import Slots
from kdfm_ray.sweeps.trial import Job, run_job
from kdfm_ray.types import Emit, RunFailed

ERROR = "ERROR"  # Tune's status of a trial that it has given up


class Listener(Protocol):
    """What is told of jobs, from Tune's thread; ids are those of ``Job``."""

    def started(self, job: str) -> None:
        """A process has begun with it, or begun again."""

    def reported(self, job: str, step: int, accuracy: float, seconds: float) -> None:
        """The inner network was validated."""

    def died(self, job: str, why: str) -> None:
        """Its process is gone, and another goes on."""

    def ended(self, job: str, status: Status, facts: dict[str, Any]) -> None:
        """It is over. ``facts``: ``row`` and ``seconds``, or ``why``."""


def run_jobs(
    jobs: Sequence[Job],
    slots: Slots,
    scheduler: GroupedScheduler,
    listener: Listener,
    *,
    bell: Any,
    over: threading.Event,
    emit: Emit,
    storage: str,
    max_failures: int,
) -> None:
    """Run all jobs and return when none is left, or when ``over`` is set and none runs any more.

    Tune gives up a trial whose process dies while it is taken over from the trial before it; such
    jobs are given to Tune once more.

    Args:
        jobs: what to do, in this order.
        slots: how many at once, on what.
        scheduler: which ones to stop early.
        listener: is told.
        bell: the actor ``Bell``, to be rung when ``over`` is set.
        over: no more jobs are begun.
        emit: takes events of the jobs' pipelines.
        storage: folder or URI for Tune's notes, which are deleted afterwards.
        max_failures: times that a job whose process died is begun again.
    """
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    left = list(jobs)
    for _ in range(max_failures + 1):
        ended = _run_once(
            left,
            slots,
            scheduler,
            listener,
            bell=bell,
            over=over,
            emit=emit,
            storage=storage,
            max_failures=max_failures,
        )
        left = [job for job in left if job.id not in ended]
        if not left or over.is_set():
            return
    for job in left:
        listener.ended(job.id, "failed", {"why": "its process died again and again at its start"})


def _run_once(
    jobs: Sequence[Job],
    slots: Slots,
    scheduler: GroupedScheduler,
    listener: Listener,
    *,
    bell: Any,
    over: threading.Event,
    emit: Emit,
    storage: str,
    max_failures: int,
) -> set[str]:
    """Have Tune run the jobs; returns those that have ended, in whatever way."""
    name = f"sweep-{uuid.uuid4().hex[:8]}"
    path, files = arrow_place(storage)
    search = BasicVariantGenerator(max_concurrent=slots.concurrent)
    relay = _Relay(listener, search)
    function = tune.with_parameters(run_job, jobs=list(jobs), bell=bell, emit=emit)
    numbered = [{"number": number, "id": job.id} for number, job in enumerate(jobs)]
    tuner = tune.Tuner(
        tune.with_resources(function, slots.request()),
        param_space={"job": tune.grid_search(numbered)},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            search_alg=search,
            # One process after the other costs seconds each; workers of Ray Train end with it.
            reuse_actors=not slots.nested,
            trial_name_creator=_job_of,
            trial_dirname_creator=_job_of,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=path,
            storage_filesystem=files,
            stop=_StopAll(over, relay, search),
            callbacks=[relay],
            failure_config=tune.FailureConfig(max_failures=max_failures),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except Exception as error:
        if relay.trouble is not None:
            raise relay.trouble from error
        raise RunFailed(
            f"Ray Tune failed: {_last_line(str(error))}. What is finished or saved is kept, and "
            "the same command goes on"
        ) from error
    finally:
        with contextlib.suppress(Exception):
            notes, folder = open_files(f"{storage}/{name}")
            notes.rm(folder, recursive=True)
    return relay.over


class _Unkept:
    """Tune pickles itself for ``Tuner.restore``, which is not used here: this leaves no trace."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return object, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> _Unkept:
        return self


class _Relay(_Unkept, tune.Callback):
    """Tells the listener of jobs in its words."""

    def __init__(self, listener: Listener, search: BasicVariantGenerator) -> None:
        self._listener, self._search = listener, search
        self._given_up: set[str] = set()
        self.running: set[str] = set()
        self.over: set[str] = set()
        self.trouble: Exception | None = None  # of the listener, as a full disk

    def _tell(self, what: Callable[..., None], *facts: Any) -> None:
        try:
            what(*facts)
        except Exception as error:
            self.trouble = error
            raise

    def _end(self, job: str, status: Status, facts: dict[str, Any]) -> None:
        self.running.discard(job)
        self.over.add(job)
        self._tell(self._listener.ended, job, status, facts)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.add(_job_of(trial))
        self.over.discard(_job_of(trial))
        self._tell(self._listener.started, _job_of(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        job = _job_of(trial)
        if "ended" not in result:
            facts = result[STEP], result[SCORE], result["seconds"]
            self._tell(self._listener.reported, job, *facts)
        elif job in self.running:  # Tune repeats the last result when the function returns
            ended = dict(result["ended"])
            status = ended.pop("status")
            self._end(job, "waiting" if status == "interrupted" else status, ended)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if (job := _job_of(trial)) in self.running:
            self._end(job, "stopped", {})

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.running.discard(_job_of(trial))  # until another process takes it
        self._tell(self._listener.died, _job_of(trial), _why(trial))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # It may have finished before its process died, or not begun.
        if _job_of(trial) in self.running:
            self._end(_job_of(trial), "failed", {"why": _why(trial)})

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        # Tune forgets to tell its own search of a trial that it gave up before its start, and
        # would wait for the end of it before it begins another.
        for trial in trials:
            job = _job_of(trial)
            if trial.status == ERROR and job not in self.over and job not in self._given_up:
                self._given_up.add(job)
                self._search.on_trial_complete(trial.trial_id, error=True)


class _StopAll(_Unkept, tune.Stopper):
    """Ends Tune once the sweep is over and all jobs have saved their state."""

    def __init__(self, over: threading.Event, relay: _Relay, search: BasicVariantGenerator) -> None:
        self._over, self._relay, self._search = over, relay, search

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if not self._over.is_set():
            return False
        self._search.set_finished()  # begin no more
        return not self._relay.running


def _job_of(trial: Any) -> str:
    job: str = trial.config["job"]["id"]
    return job


def _why(trial: Any) -> str:
    """From the file that Tune keeps on the driver's node."""
    try:
        return _last_line(Path(trial.error_file or "").read_text()).partition(". ")[0][:300]
    except OSError:
        return "its process ended"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
