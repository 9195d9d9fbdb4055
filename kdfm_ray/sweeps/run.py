"""A sweep from its first line to its page: plan, outer networks, trials, tables.

Outer networks, their labels and trusted subsets come first, each once, and inner networks after
them: so no trial waits for another while it holds a GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdfm_ray.config import Config, absolute_paths, content_hash
from kdfm_ray.jobs.crew import notes_folder
from kdfm_ray.jobs.interrupts import hear_interrupts, noting_interrupts
from kdfm_ray.jobs.placement import remove_orphaned_groups
from kdfm_ray.jobs.session import Session, open_session, quiet_libraries, start_beside_driver
from kdfm_ray.jobs.shared import check_shared
from kdfm_ray.report.facts import hardware, versions
from kdfm_ray.report.place import default_place, folder_at
from kdfm_ray.report.run_folder import write_whole
from kdfm_ray.report.table import percent
from kdfm_ray.resolve import Found, read_found
from kdfm_ray.store import Store, default_root
from kdfm_ray.sweeps.ledger import ENDED, KEPT, TRIALS, Cells, Ledger, Status, take_cells
from kdfm_ray.sweeps.page import short, write_page
from kdfm_ray.sweeps.plan import Planned, Work, filled, missing_work, plan_trials
from kdfm_ray.sweeps.results import Setting, summarize, trial_rows, write_tables
from kdfm_ray.sweeps.savings import Savings, describe, savings, to_json
from kdfm_ray.sweeps.slots import Slots, find_slots
from kdfm_ray.sweeps.space import Sweep, Trial, make_trials, unranked
from kdfm_ray.sweeps.view import SweepView
from kdfm_ray.types import Event, Role, RunFailed, Stopped, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from kdfm_ray.sweeps.trial import Job

SWEEP, NOW, LOCK = "sweep.json", "now.json", ".lock"
FOUND = "found.json"  # what open fields are filled from, by kind of trials
NOW_SECONDS = 2.0  # between notes of where things are, for `kdfm sweep --status`
PAGE_SECONDS = 20.0  # between pages while trials run
STOP_SECONDS = 60.0  # for trials to save their state after an error of the driver
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
        from kdfm_ray.sweeps.optuna_search import check_optuna, corners

        check_optuna()
        make_trials(sweep, corners(sweep))
        trials = []
    else:
        trials = make_trials(sweep, sweep.settings())  # all mistakes before anything is written
    with folder_at(place, lambda event: console.print(event["note"], markup=False)) as path:
        _check_folder(path, sweep)
        with _locked(path), SweepView(console) as view:
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

            suggestions = Suggestions(sweep, driver.path)
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
        self._lock = threading.RLock()
        self._trials: dict[str, Trial] = {}
        self._planned: dict[str, Planned] = {}
        self._failed: dict[str, str] = {}  # outer network -> why
        self._looked, self._last_page = 0.0, 0.0
        self._phase = ""
        self._found = _read_found(path / FOUND)

    def begin(self, session: Session) -> None:
        """Take what there is to compute on.

        Raises:
            UserError: its nodes do not share the store.
        """
        check_shared(session, self._store)
        self._session = session

    def run(self, trials: Sequence[Trial]) -> None:
        """Run those of the trials that have not ended yet, after the outer networks they need."""
        elsewhere = take_cells(self._ledger, self._cells, trials)
        trials = filled(trials, self._found)
        self._trials |= {trial.id: trial for trial in trials}
        todo = [trial for trial in trials if self._ledger.of(trial.id).status not in ENDED]
        self._say_begun(trials, todo)
        if elsewhere:
            self.view.line(f"{elsewhere} of them are in {self._sweep.results}")
        if not todo:
            self._note_sweep()
            return
        slots = self._slots(
            len(todo)
        )  # a trial that fits nowhere is refused before images are read
        ended = [trial for trial in trials if self._was_run(trial.id)]
        planned, same_kind, found = plan_trials(
            todo, ended, self._store, self._session, self._show_plan
        )
        self._check_unchanged(same_kind)
        self._note_found(found, planned)
        self._planned |= {each.trial.id: each for each in planned}
        units = self._units(planned)
        work = missing_work(planned, self._store, self._session, slots)
        self._note_sweep()  # not before: a mistake that is found so far leaves the folder free
        self._say_work(work, slots, len(units), len(todo))
        self._phase = "outer networks, labels and trusted subsets"
        for wave in _waves(list(units.values())):
            self._run_jobs([self._unit_job(unit) for unit in wave])
        jobs = []
        for each in planned:
            if each.plan.outer in self._failed:
                facts = {"why": f"its outer network: {self._failed[each.plan.outer]}"}
                self.ended(each.trial.id, "failed", facts)
            else:
                jobs.append(self._job(each.trial.id, [each]))
        self._phase = "inner networks"
        if jobs:
            self._run_jobs(jobs)

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
        _write_json(self.path / FOUND, {kind: asdict(each) for kind, each in self._found.items()})

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
        _write_json(self.path / SWEEP, sweep)
        with self._lock:
            self._write()

    def finish(self) -> SweepResult:
        """Write the tables and the page for the last time, and say where they are."""
        with self._lock:
            self._phase = "over"
            rows, settings, saved = self._write()
            done = json.loads((self.path / SWEEP).read_text())
            done |= {"savings": to_json(saved), "versions": versions(), "hardware": hardware()}
            _write_json(self.path / SWEEP, done)
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
            self._ledger.end(job, status, **facts)
            if status == "finished":
                self._cells.add(self._trials[job], self._ledger.of(job))
            if status in ENDED:
                self.view.line(self._end_line(job))
            if time.monotonic() - self._last_page > PAGE_SECONDS:
                self._write()

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
        errors: list[BaseException] = []

        def work() -> None:
            try:
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
            except BaseException as error:
                errors.append(error)

        def on_first() -> None:
            text = "stopping: trials save their state; Ctrl-C again stops at once, without saving"
            self.view.line(text)

        thread = threading.Thread(target=work, name="kdfm-tune", daemon=True)
        with hear_interrupts(on_first) as interrupt:
            thread.start()
            try:
                while thread.is_alive():
                    thread.join(timeout=0.2)
                    self._look_after(nested=slots.nested)
                    if interrupt.is_set() and not over.is_set():
                        over.set()
                        ray.get(bell.ring.remote())
            except BaseException:  # of ours: end Tune before Ray, or it would start another one
                over.set()
                with contextlib.suppress(Exception):
                    ray.get(bell.ring.remote(), timeout=10)
                thread.join(timeout=STOP_SECONDS)
                raise
        ray.kill(bell)
        with self._lock:
            self._write()
        if interrupt.is_set():
            trouble = f" (while it stopped: {errors[0]})" if errors else ""
            raise Stopped(
                f"stopped; what is finished or saved is kept, and the same command goes on from "
                f"{self.path}{trouble}"
            )
        if errors:
            raise errors[0]

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

    def _say_begun(self, trials: Sequence[Trial], todo: Sequence[Trial]) -> None:
        settings = len({trial.setting for trial in trials})
        text = (
            f"sweep {self._sweep.name}: {len(trials)} trials ({settings} settings x "
            f"{len(self._sweep.seeds)} seeds)"
        )
        if len(todo) < len(trials):
            text += f", {len(trials) - len(todo)} of them done before"
        self.view.line(f"{text}; folder {self._place}")
        if self._sweep.asha is not None:
            asha = self._sweep.asha
            self.view.line(
                f"ASHA: from {asha.first:.0%} of a training on, the best 1/{asha.factor:g} of the "
                "trials with the same data and seed go on"
            )

    def _say_work(self, work: Work, slots: Slots, units: int, todo: int) -> None:
        names: dict[Role, str] = {
            "baseline": "labeled-only",
            "outer": "outer",
            "longer": "FixMatch of equal compute",
            "inner": "inner",
        }
        parts = [
            f"{work.missing[role]} {name}"
            + (" at most" if role == "inner" and self._sweep.asha else "")
            for role, name in names.items()
            if work.needed[role]
        ]
        apart = todo * sum(count > 0 for count in work.needed.values())
        self.view.line(
            f"networks to train: {', '.join(parts)} (trials that share nothing: {apart}); "
            f"{work.updates:,} updates; {slots}"
        )
        if work.seconds is not None:
            before, inner = work.seconds
            outer_slots = self._slots(units).concurrent if units else 1
            minutes = (before / outer_slots + inner / slots.concurrent) / 60
            most = " at most" if self._sweep.asha else ""
            self.view.line(
                f"training them takes about {minutes:.1f} minutes{most}, by the speed of single "
                "updates here; labels, selection and the test set come on top"
            )

    def _end_line(self, name: str) -> str:
        trial, record = self._trials[name], self._ledger.of(name)
        values = " ".join(
            f"{key.rpartition('.')[2]}={short(value)}" for key, value in trial.values.items()
        )
        ended = sum(self._ledger.of(each).status in ENDED for each in self._trials)
        text = f"{record.status}, validation {percent(record.val_accuracy)}"
        if record.status == "finished":
            text += f", test {percent(record.row['test_accuracy'])}"
        if record.status == "stopped":
            text += f" after update {max(record.curve, default=0)}/{trial.config.steps_of('inner')}"
        if record.status == "failed":
            text = f"failed: {record.why.splitlines()[0] if record.why else ''}"
        return f"[{ended}/{len(self._trials)}] {values} seed={trial.seed}: {text}"

    def _look_after(self, *, nested: bool) -> None:
        """What is due now and then while trials run."""
        now = time.monotonic()
        if now - self._looked < NOW_SECONDS:
            return
        self._looked = now
        if nested:
            with contextlib.suppress(Exception):  # a cluster that is busy: next time
                remove_orphaned_groups()
        with contextlib.suppress(OSError):
            where = {"phase": self._phase, "jobs": self.view.now, "time": time.time()}
            _write_json(self.path / NOW, where)
        if now - self._last_page > 3 * PAGE_SECONDS:
            with self._lock, contextlib.suppress(OSError):
                self._write()

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


def _check_folder(path: Path, sweep: Sweep) -> None:
    """The folder is new, or holds this very sweep."""
    saved = path / SWEEP
    if not saved.is_file():
        others = [file.name for file in path.iterdir()] if path.is_dir() else []
        # Of a try that ended before it was planned.
        ours = (LOCK, TRIALS, KEPT)
        if path.is_file() or [name for name in others if name not in ours]:
            raise UserError(f"{path} holds other files and no sweep: give a new folder with --out")
        return
    before, now = json.loads(saved.read_text())["sweep"], sweep.same_as()
    now = json.loads(json.dumps(now))
    changed = _differences(before, now)
    if changed:
        raise UserError(
            f"{path} holds another sweep ({'; '.join(changed)}): give another folder with --out; "
            "networks that both have in common are not trained again"
        )


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        found = []
        for key in {**before, **now}:
            inner = f"{name}.{key}" if name else key
            found += _differences(before.get(key), now.get(key), inner)
        return found
    return [] if before == now else [f"{name} was {before!r}, is {now!r}"]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process runs a sweep in a folder."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another process runs the sweep in {path}: wait for it (`kdfm sweep --status "
                f"{path}`), or give another folder with --out"
            ) from error
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _read_found(path: Path) -> dict[str, Found]:
    """What an earlier try noted, by kind of trials."""
    if not path.is_file():
        return {}
    try:
        read = {kind: read_found(values) for kind, values in json.loads(path.read_text()).items()}
    except (ValueError, AttributeError):
        raise UserError(f"{path} is damaged: give another folder with --out") from None
    return {kind: found for kind, found in read.items() if found is not None}


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=1) + "\n")
