"""A sweep from its first line to its page: plan, outer networks, trials, tables.

Outer networks, their labels and trusted subsets come first, each once, and inner networks after
them: so no trial waits for another while it holds a GPU.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdfm_ray.config import Config, absolute_paths, content_hash
from kdfm_ray.jobs.crew import notes_folder
from kdfm_ray.jobs.interrupts import noting_interrupts
from kdfm_ray.jobs.placement import remove_orphaned_groups
from kdfm_ray.jobs.session import Session, open_session, quiet_libraries, start_beside_driver
from kdfm_ray.jobs.shared import check_shared
from kdfm_ray.report.facts import hardware, versions
from kdfm_ray.report.place import default_place, folder_at
from kdfm_ray.report.table import percent
from kdfm_ray.resolve import Found, read_found
from kdfm_ray.store import Store, default_root
from kdfm_ray.sweeps import words
from kdfm_ray.sweeps.beside import run_beside
from kdfm_ray.sweeps.folder import NOW, SWEEP, check_folder, locked, write_json
from kdfm_ray.sweeps.ledger import ENDED, Cells, Ledger, Status, give_cells, take_cells
from kdfm_ray.sweeps.page import write_page
from kdfm_ray.sweeps.plan import Planned, Planner, filled, missing_work
from kdfm_ray.sweeps.results import Setting, summarize, trial_rows, write_tables
from kdfm_ray.sweeps.savings import Savings, describe, savings, to_json
from kdfm_ray.sweeps.slots import Slots, find_slots
from kdfm_ray.sweeps.space import Sweep, Trial, make_trials, total_trials, unranked
from kdfm_ray.sweeps.view import SweepView
from kdfm_ray.types import Event, RunFailed, Stopped, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from kdfm_ray.sweeps.trial import Job

FOUND = "found.json"  # what open fields are filled from, by kind of trials
NOW_SECONDS = 2.0  # between notes of where things are, for `kdfm sweep --status`
PAGE_SECONDS = 20.0  # between pages while trials run
IDLE_SECONDS = 60.0  # without a process of any trial: a cluster that is busy, which is said
PREPARING = "outer-"  # begins the name of a job that is no trial


@dataclass(frozen=True)
class SweepResult:
    """A sweep that has ended.

    Attributes:
        path: its folder; of one behind a URI the copy on this machine.
        place: the folder or URI, as it was given.
        rows: one a trial, as in ``trials.parquet``.
        settings: best first.
        savings: of sharing and stopping.
    """

    path: Path
    place: str
    rows: list[dict[str, Any]]
    settings: list[Setting]
    savings: Savings


def run_sweep(
    sweep: Sweep, out: str | None, console: Console, *, verbose: bool = False
) -> SweepResult:
    """Run what is missing of a sweep.

    Args:
        sweep: what to run.
        out: its folder or URI; none: see ``default_folder``.
        console: where to write.
        verbose: let Ray's own logs through.

    Raises:
        UserError: something that the user can mend; nothing is lost.
        RunFailed: every trial failed, or Ray ended.
        Stopped: by Ctrl-C; running trials have saved their state.
    """
    sweep = sweep.model_copy(update={"base": absolute_paths(sweep.base)})
    place = out or default_folder(sweep)
    if sweep.search == "optuna":
        from kdfm_ray.sweeps.optuna_search import check_optuna, check_values

        check_optuna()
        check_values(sweep)
        trials = []
    else:
        trials = make_trials(sweep, sweep.settings())  # all mistakes before anything is written
    with folder_at(place, lambda event: console.print(event["note"], markup=False)) as path:
        check_folder(path, sweep)
        with locked(path), SweepView(console) as view:
            driver = _Driver(sweep, path, place, view)
            _run_all(sweep, trials, driver, verbose=verbose)
            result = driver.finish()
    if not any(row["status"] != "failed" for row in result.rows):
        raise RunFailed(f"every trial failed; the first one: {result.rows[0]['why']}")
    return result


def _run_all(sweep: Sweep, trials: list[Trial], driver: _Driver, *, verbose: bool) -> None:
    """Run ``trials``, or what Optuna suggests."""
    scale = sweep.base.scale
    nested = scale.num_workers > 1
    scale = scale.model_copy(update={"num_workers": max(1, scale.num_workers)})
    with (
        noting_interrupts() as interrupted,
        open_session(
            scale,
            driver.view,
            wait_minutes=sweep.base.faults.wait_minutes,
            verbose=verbose,
            dashboard=nested,
        ) as session,
    ):
        quiet_libraries(session)
        driver.begin(session)
        if sweep.search == "optuna":
            from kdfm_ray.sweeps.optuna_search import Suggestions

            suggestions = Suggestions(sweep, driver.path, driver.check, driver.view.line)
            while trials := suggestions.next_round(driver.rows()):
                driver.run(trials)
        else:
            driver.run(trials)
        if interrupted.is_set():
            raise KeyboardInterrupt


def default_folder(sweep: Sweep) -> str:
    """``runs/sweep-NAME-HASH``, or beside the artifacts: the same sweep has the same folder."""
    sweep = sweep.model_copy(update={"base": absolute_paths(sweep.base)})
    name = f"sweep-{sweep.name}-{content_hash(sweep.same_as())[:8]}"
    return default_place("sweeps", name, sweep.base.store)


class _Driver:
    """What is known of a sweep while it runs; is told of jobs from Tune's thread."""

    def __init__(self, sweep: Sweep, path: Path, place: str, view: SweepView) -> None:
        self._sweep, self.path, self._place, self.view = sweep, path, place, view
        self._store = Store(sweep.base.store or default_root())
        self._session: Session
        self._ledger = Ledger(path)
        self._ledger.begin()
        self._cells = Cells(sweep.results, versions())
        self._cells.check()
        self._lock = threading.RLock()
        self._trials: dict[str, Trial] = {}
        self._planned: dict[str, Planned] = {}
        self._failed: dict[str, str] = {}  # outer network -> why
        self._looked, self._last_page, self._last_busy = 0.0, 0.0, 0.0
        self._phase = ""
        self._planner: Planner | None = None  # of the round
        self._page_failed = False
        self._found = _read_found(path / FOUND)

    def begin(self, session: Session) -> None:
        """Take what there is to compute on.

        Raises:
            UserError: its nodes do not share the store.
        """
        check_shared(session, self._store)
        self._session = session

    def check(self, trials: Sequence[Trial]) -> None:
        """Plan trials of the next round.

        Raises:
            UserError: they cannot be run.
        """
        self._slots(len(trials))  # a trial that fits nowhere is refused before images are read
        if self._planner is None:
            self._planner = Planner(self._store, self._session, self._show_plan)
        self._planner.plan(trials)

    def run(self, trials: Sequence[Trial]) -> None:
        """Run those of the trials that have not ended yet, after the outer networks they need."""
        elsewhere = take_cells(self._ledger, self._cells, trials)
        left_out = give_cells(self._ledger, self._cells, trials)
        trials = filled(trials, self._found)
        self._trials |= {trial.id: trial for trial in trials}
        todo = [trial for trial in trials if self._ledger.of(trial.id).status not in ENDED]
        self._say(words.begun(self._sweep, trials, len(trials) - len(todo), self._place))
        if elsewhere:
            self.view.line(f"{elsewhere} of them are in {self._sweep.results}")
        if left_out:
            self.view.line(
                f"{left_out} of them are not put into {self._sweep.results}: another version of "
                "kdfm_ray made them"
            )
        if not todo:
            self._note_sweep()
            return
        slots, planned = self._slots(len(todo)), self._plan(todo)
        self._planned |= {each.trial.id: each for each in planned}
        units = self._units(planned)
        work = missing_work(planned, self._store, self._session, slots)
        self._note_sweep()  # not before: a mistake that is found so far leaves the folder free
        outer_slots = self._slots(max(1, len(units)))
        asha = self._sweep.asha is not None
        self._say(words.to_do(work, slots, outer_slots, asha=asha, trials=len(todo)))
        self._phase = "outer networks, labels and trusted subsets"
        for wave in _waves(list(units.values())):
            self._run_jobs([self._unit_job(unit) for unit in wave])
        jobs = self._inner_jobs(planned)
        self._phase = "inner networks"
        if jobs:
            self._run_jobs(jobs)

    def _inner_jobs(self, planned: Sequence[Planned]) -> list[Job]:
        """The trials themselves, but for those whose outer network failed, and they with it."""
        jobs = []
        for each in planned:
            if each.plan.outer in self._failed:
                facts = {
                    "why": f"its outer network: {self._failed[each.plan.outer]}",
                    "networks": dict(each.plan.before_labels),
                }
                self.ended(each.trial.id, "failed", facts)
            else:
                jobs.append(self._job(each.trial.id, [each]))
        return jobs

    def _plan(self, todo: Sequence[Trial]) -> list[Planned]:
        """Plan what is to be run, once it is known that what was run before goes with it."""
        self.check(todo)
        assert self._planner is not None
        planner, self._planner = self._planner, None
        ended = [trial for trial in self._trials.values() if self._was_run(trial.id)]
        self._check_unchanged(planner.plan(ended))
        planned = planner.plan(todo)
        self._note_found(planner.found(todo), planned)
        return planned

    def _note_found(self, found: dict[str, Found], planned: Sequence[Planned]) -> None:
        """Keep what fields that were open are filled from, so that they stay as they are.

        Raises:
            UserError: ASHA cannot compare trials with what they were filled with.
        """
        self._trials |= {each.trial.id: each.trial for each in planned}
        if self._sweep.asha is not None:
            problems = [text for each in planned for text in unranked(each.trial.config)]
            if problems:
                raise UserError(problems[0])
        if not found:
            return
        for text in dict.fromkeys(
            str(choice) for each in planned for choice in each.prepared.choices
        ):
            self.view.line(text)
        self._found |= found
        write_json(self.path / FOUND, {kind: asdict(each) for kind, each in self._found.items()})

    def _was_run(self, trial: str) -> bool:
        record = self._ledger.of(trial)
        return record.status in ENDED and record.inner != ""

    def _check_unchanged(self, planned: Sequence[Planned]) -> None:
        """What ran before would give the same networks today.

        Raises:
            UserError: images, weights or the code of a stage changed since.
        """
        changed = [
            each.trial.id
            for each in planned
            if self._ledger.of(each.trial.id).inner != each.plan.inner
        ]
        if changed:
            raise UserError(
                f"{len(changed)} trials in {self.path} were run on other images, with other "
                "pretrained weights, in another precision or by another version of kdfm_ray (the "
                f"first: {changed[0]}): give another folder with --out, and networks that did not "
                "change are reused"
            )

    def _note_sweep(self) -> None:
        sweep = {"sweep": self._sweep.same_as(), "store": self._store.root}
        write_json(self.path / SWEEP, sweep | {"fields": self._sweep.fields})
        self._try_to_write()

    def finish(self) -> SweepResult:
        """Write the tables and the page for the last time, and say where they are."""
        with self._lock:
            self._phase = "over"
            rows, settings, saved = self._write()
            done = json.loads((self.path / SWEEP).read_text())
            done |= {"savings": to_json(saved), "versions": versions(), "hardware": hardware()}
            write_json(self.path / SWEEP, done)
        return SweepResult(self.path, self._place, rows, settings, saved)

    def rows(self) -> list[dict[str, Any]]:
        """The table of trials as it is now."""
        return trial_rows(list(self._trials.values()), self._ledger.records)

    # What Tune's thread tells.

    def started(self, job: str) -> None:
        with self._lock:
            self.view.begin(job)
            if job in self._trials:
                plan = self._planned[job].plan
                self._ledger.start(job, plan.before_labels, plan.inner)

    def reported(self, job: str, step: int, accuracy: float, seconds: float) -> None:
        with self._lock:
            if job in self._trials:
                self._ledger.validation(job, step, accuracy, seconds)

    def died(self, job: str, why: str) -> None:
        self.view.line(f"{job}: its process ended; another goes on from the saved state ({why})")

    def ended(self, job: str, status: Status, facts: dict[str, Any]) -> None:
        with self._lock:
            self.view.end(job)
            if job.startswith(PREPARING):
                self._unit_ended(job, status, facts)
                return
            if status == "finished":
                facts = facts | {"made": self._cells.made(self._trials[job])}
            self._ledger.end(job, status, **facts)
            if status == "finished":
                self._cells.add(self._trials[job], self._ledger.of(job))
            if status in ENDED:
                count = sum(self._ledger.of(each).status in ENDED for each in self._trials)
                total = total_trials(self._sweep, list(self._trials.values()))
                self.view.line(words.ended(self._trials[job], self._ledger.of(job), count, total))
            if time.monotonic() - self._last_page > PAGE_SECONDS:
                self._try_to_write()

    def _unit_ended(self, job: str, status: Status, facts: dict[str, Any]) -> None:
        outer = job.removeprefix(PREPARING)
        found = self._store.find("outer", outer)
        if status == "failed":
            self.view.line(f"outer network {outer}: {facts['why']}")
            if found is None:
                self._failed[outer] = facts["why"]
        if found is not None:
            self._failed.pop(outer, None)
        for text in facts.get("row", {}).get("warnings", ()):
            self.view.once(f"warning: {text}")
        if status == "finished" and found is not None:
            took = f"{facts['seconds']:.0f} s with labels and trusted subsets"
            accuracy = percent(found.record()["val_accuracy"])
            self.view.line(f"outer network {outer}: validation {accuracy}, {took}")

    # Jobs.

    def _units(self, planned: Sequence[Planned]) -> dict[str, list[Planned]]:
        """Trials by the outer network they share, where anything before the inner is missing."""
        units: dict[str, list[Planned]] = {}
        for each in planned:
            if not self._is_prepared(each):
                units.setdefault(each.plan.outer, []).append(each)
        return units

    def _is_prepared(self, each: Planned) -> bool:
        plan = each.plan
        stages = [*plan.before_labels.items(), ("labels", plan.labels), ("trusted", plan.trusted)]
        return all(self._store.find(stage, key) is not None for stage, key in stages)

    def _unit_job(self, unit: Sequence[Planned]) -> Job:
        subsets = {(each.plan.trusted, each.plan.longer): each for each in unit}
        return self._job(f"{PREPARING}{unit[0].plan.outer}", list(subsets.values()), True)

    def _job(self, name: str, planned: Sequence[Planned], until_trusted: bool = False) -> Job:
        from kdfm_ray.sweeps.trial import Job

        return Job(
            name,
            tuple(each.trial.config for each in planned),
            tuple(each.numerics for each in planned),
            until_trusted,
        )

    def _run_jobs(self, jobs: Sequence[Job]) -> None:
        """Run jobs in a thread: Tune's, as Ray Train's, would replace what Ctrl-C does."""
        import dataclasses

        import ray

        from kdfm_ray.sweeps.asha import GroupedScheduler
        from kdfm_ray.sweeps.trial import Bell
        from kdfm_ray.sweeps.tuning import run_jobs

        slots = self._slots(len(jobs))
        given = [
            dataclasses.replace(job, configs=tuple(self._placed(c, slots) for c in job.configs))
            for job in jobs
        ]
        scheduler = GroupedScheduler(self._trials, self._sweep.asha)
        for name, record in self._ledger.records.items():
            if record.curve:
                scheduler.replay(name, record.curve)
        bell, over = start_beside_driver(Bell), threading.Event()
        self._last_busy = time.monotonic()

        def work() -> None:
            run_jobs(
                given,
                slots,
                scheduler,
                self,
                bell=bell,
                over=over,
                emit=self._session.emit,
                storage=notes_folder(self._session, self._store),
                max_failures=self._sweep.base.faults.max_failures,
            )

        def stop() -> None:
            over.set()
            bell.ring.remote()

        def on_first() -> None:
            text = "stopping: trials save their state; Ctrl-C again stops at once, without saving"
            self.view.line(text)

        interrupted, error = run_beside(
            work, look=lambda: self._look_after(slots), stop=stop, on_first=on_first
        )
        ray.kill(bell)
        self._try_to_write()
        if interrupted:
            trouble = f" (while it stopped: {error})" if error else ""
            raise Stopped(
                f"stopped; what is finished or saved is kept, and the same command goes on from "
                f"{self.path}{trouble}"
            )
        if error is not None:
            raise error

    def _placed(self, config: Config, slots: Slots) -> Config:
        """The config of a trial with its share of the machine, and the sweep's store."""
        workers = slots.workers if slots.nested else 0
        scale = config.scale.model_copy(
            update={
                "num_workers": workers,
                "cpus_per_worker": slots.cpus,
                "use_gpu": "yes" if slots.gpus else "no",  # whatever nodes are there just then
            }
        )
        return config.model_copy(update={"scale": scale, "store": self._store.root, "out": None})

    def _slots(self, jobs: int) -> Slots:
        return find_slots(
            self._sweep.base.scale,
            jobs=jobs,
            room=self._session.room,
            max_concurrent=self._sweep.max_concurrent,
            gpus_per_trial=self._sweep.gpus_per_trial,
        )

    # What the user sees.

    def _show_plan(self, event: Event) -> None:
        if "warning" in event:
            self.view(event)

    def _say(self, lines: Sequence[str]) -> None:
        for line in lines:
            self.view.line(line)

    def _look_after(self, slots: Slots) -> None:
        """What is due now and then while trials run."""
        now = time.monotonic()
        if now - self._looked < NOW_SECONDS:
            return
        self._looked = now
        if slots.nested:
            with contextlib.suppress(Exception):  # a cluster that is busy: next time
                remove_orphaned_groups()
        running = self.view.now
        if running:
            self._last_busy = now
        elif now - self._last_busy > IDLE_SECONDS:
            self._say_idle(slots, now - self._last_busy)
        with contextlib.suppress(OSError):
            where = {"phase": self._phase, "jobs": running, "time": time.time()}
            write_json(self.path / NOW, where)
        if now - self._last_page > 3 * PAGE_SECONDS:
            self._try_to_write()

    def _say_idle(self, slots: Slots, seconds: float) -> None:
        """Once in a while without a process of any trial, what they wait for."""
        import ray

        self._last_busy = float("inf")  # until one runs
        with contextlib.suppress(Exception):
            self.view.line(words.waiting(slots, ray.available_resources(), seconds))

    def _try_to_write(self) -> None:
        """Write tables and page; what is wrong with them is said once, and ends no training."""
        try:
            with self._lock:
                self._write()
        except Exception as error:
            self._last_page = time.monotonic()
            if not self._page_failed:
                self._page_failed = True
                self.view.line(
                    f"warning: tables or page of {self.path} were not written, and are tried again "
                    f"later: {type(error).__name__}: {error}"
                )

    def _write(self) -> tuple[list[dict[str, Any]], list[Setting], Savings]:
        rows = self.rows()
        settings = summarize(rows, self._sweep.fields)
        saved = self._savings()
        write_tables(self.path, rows, settings)
        write_page(
            self.path,
            self._sweep,
            rows,
            settings,
            {name: record.curve for name, record in self._ledger.records.items()},
            describe(saved),
            over=self._phase == "over",
        )
        self._last_page = time.monotonic()
        return rows, settings, saved

    def _savings(self) -> Savings:
        seconds = {}
        for record in self._ledger.records.values():
            for role, key in record.networks.items():
                found = None if key in seconds else self._store.find(role, key)
                if found is not None:
                    seconds[key] = found.record()["seconds"]
        return savings(list(self._trials.values()), self._ledger.records, seconds)


def _waves(units: list[list[Planned]]) -> list[list[list[Planned]]]:
    """Outer networks in an order in which none waits for another's labeled-only network."""
    first: list[list[Planned]] = []
    rest: list[list[Planned]] = []
    seen: set[str | None] = set()
    for unit in units:
        baseline = unit[0].plan.baseline
        (rest if baseline is not None and baseline in seen else first).append(unit)
        seen.add(baseline)
    return [wave for wave in (first, rest) if wave]


def _read_found(path: Path) -> dict[str, Found]:
    """What an earlier try noted, by kind of trials."""
    if not path.is_file():
        return {}
    try:
        read = {kind: read_found(values) for kind, values in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged: give another folder with --out") from None
    return {kind: found for kind, found in read.items() if found is not None}
