"""KD-FixMatch from left to right: data, outer network, labels, trusted subset, inner network.

Each stage reads artifacts by key and leaves one; a stage whose artifact is complete is not done
again. The driver holds keys and small facts, never images, labels or weights.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from kdfm_ray import keys
from kdfm_ray.checkpoints import Checkpoints
from kdfm_ray.config import Config, absolute_paths
from kdfm_ray.jobs.board import TrainTask
from kdfm_ray.jobs.crew import Crew
from kdfm_ray.jobs.interrupts import noting_interrupts
from kdfm_ray.jobs.session import Session, open_session
from kdfm_ray.jobs.shared import check_shared
from kdfm_ray.leases import lease
from kdfm_ray.models.numerics import Numerics, possible_numerics
from kdfm_ray.resolve import Found, describe_classes
from kdfm_ray.store import Artifact, Store, default_root
from kdfm_ray.types import Emit, Role, RunFailed, Stopped, UserError

if TYPE_CHECKING:
    from kdfm_ray.jobs.prepare import Prepared


@dataclass(frozen=True)
class Plan:
    """The key of every stage of one run; ``baseline`` and ``longer`` are ``None`` where off."""

    dataset: str
    split: str
    baseline: str | None
    outer: str
    longer: str | None
    labels: str
    trusted: str
    inner: str
    evaluation: str
    numerics: Numerics

    @property
    def before_labels(self) -> dict[Role, str]:
        """Role -> key of the networks that are trained before anything else is done."""
        keys: dict[Role, str | None] = {
            "baseline": self.baseline,
            "outer": self.outer,
            "longer": self.longer,
        }
        return {role: key for role, key in keys.items() if key is not None}

    @property
    def networks(self) -> dict[Role, str]:
        """Role -> key of all networks."""
        return {**self.before_labels, "inner": self.inner}


@dataclass(frozen=True)
class Left:
    """What a run left in the store, however far it came.

    Attributes:
        config: with absolute paths, without open fields.
        numerics: the choice, how it came about, and ``measured`` where it was.
        artifacts: stage -> its artifact.
        facts: of the images and their split, also where the data stage was not finished.
        reused: stages that had been done before.
        seconds: wall time of the whole run, Ray's start included.
        resources: CPUs, GPUs and workers that the run used.
        given: the config as it was given; ``None``: the same.
        prepared: images and split, their facts, and how open fields were filled.
    """

    config: Config
    numerics: dict[str, Any]
    artifacts: dict[str, Artifact]
    facts: dict[str, Any]
    reused: list[str]
    seconds: float
    resources: dict[str, int]
    given: Config | None = None
    prepared: Prepared | None = None


@dataclass(frozen=True)
class Finished(Left):
    """What a run left that came to its end, with the key of each stage."""

    plan: Plan = field(kw_only=True)


def run(
    config: Config,
    emit: Emit,
    *,
    verbose: bool = False,
    begun_with: str | None = None,
    found: Found | None = None,
    stop: Callable[[], bool] | None = None,
    until_trusted: bool = False,
    pictures: bool = False,
    left: Callable[[Left, BaseException], None] | None = None,
) -> Finished:
    """Run the pipeline.

    Args:
        config: the run's.
        emit: takes progress events: ``{"stage": name, "state": start | done | reused, ...}`` around
            stages (``trained`` where a job goes on with another network), ``{"stage": name,
            "step": n, "total": m, ...}`` within.
        verbose: let Ray's own logs through.
        begun_with: the numerics of an earlier try, where the config leaves them open.
        found: what an earlier try found for other fields that are open.
        stop: asked about once a second while networks train; true: save and raise ``Stopped``.
        until_trusted: end before the inner network, with all that many inner ones may share.
        pictures: also make the map and the examples that a report shows.
        left: takes what there is when the run ends early, and why; Ray has ended by then.

    Raises:
        UserError: something that the user can mend.
        FloatingPointError: a loss became NaN or infinite.
        RunFailed: it cannot go on, and no setting is to blame; or ``on_warning = stop``.
        Stopped: it was asked to, by Ctrl-C.

    Whatever is raised, what was finished or saved stays in the store.
    """
    started = time.perf_counter()
    store = Store(config.store or default_root())
    stages: _Stages | None = None
    with noting_interrupts() as interrupted:
        try:
            with (
                open_session(
                    config.scale, emit, wait_minutes=config.faults.wait_minutes, verbose=verbose
                ) as session,
                Crew(session, store, absolute_paths(config), stop) as crew,
            ):
                check_shared(session, store)
                stages = _Stages(config, store, session, crew, emit, begun_with, found)
                stages.do_all(stop, interrupted.is_set, until_trusted, pictures)
        except BaseException as error:
            if left is not None:
                try:
                    left(_left(config, stages, time.perf_counter() - started, error), error)
                except Exception as trouble:  # what ended the run counts, and is raised
                    emit({"stage": "pictures", "warning": f"no report of this run: {trouble}"})
            raise
    return stages.finished(time.perf_counter() - started)


def _left(config: Config, stages: _Stages | None, seconds: float, error: BaseException) -> Left:
    """What there is of a run that ended early."""
    facts = getattr(error, "facts", None) or {}
    if stages is None:  # there was no Ray, or no store that all its nodes see
        return Left(absolute_paths(config), {}, {}, facts, [], seconds, {})
    return stages.left(seconds, facts)


def plan_run(config: Config, store: Store, session: Session, emit: Emit) -> tuple[Plan, Prepared]:
    """All keys of a run, and its data, which are read now if they never were.

    Raises:
        UserError: anything about the data or the network that the user can mend.
    """
    with Crew(session, store, absolute_paths(config)) as crew:
        stages = _Stages(config, store, session, crew, emit, None)
        stages.data()
    return stages.plan, stages.prepared


def make_plan(config: Config, dataset: str, split: str, numerics: Numerics) -> Plan:
    """All keys of a run; they are known before anything is trained."""
    weights = keys.weights_hash(config.model.pretrained)
    assert weights != "auto", "resolve.fill comes first"

    def network(role: Role, **inputs: str | None) -> str:
        return keys.network_key(config, role, split, numerics, weights=weights, **inputs)

    baseline = network("baseline") if config.baseline else None
    outer = network("outer")
    labels = keys.labels_key(outer, numerics)
    trusted = keys.trusted_key(config, labels)
    inner = network("inner", trusted=trusted, outer=outer if config.inner.init == "outer" else None)
    longer = network("longer") if config.equal_compute else None
    networks = {"baseline": baseline, "outer": outer, "longer": longer, "inner": inner}
    evaluation = keys.evaluation_key({role: key for role, key in networks.items() if key})
    return Plan(
        dataset, split, baseline, outer, longer, labels, trusted, inner, evaluation, numerics
    )


class _Stages:
    """The stages of one run; each method does what is missing and nothing else."""

    def __init__(
        self,
        config: Config,
        store: Store,
        session: Session,
        crew: Crew,
        emit: Emit,
        begun_with: str | None,
        found: Found | None = None,
    ) -> None:
        self.given = self.config = absolute_paths(config)
        self.found = found
        self.store, self.session, self.crew, self.emit = store, session, crew, emit
        self.begun_with = begun_with
        self.reused: list[str] = []
        self.how_numerics: dict[str, Any] = {}
        self.plan: Plan
        self.prepared: Prepared
        self.facts: dict[str, Any] = {}  # of the images and their split
        self.planned = False
        self._pictures: str | None = None  # their key, once they are there

    def do_all(
        self,
        stop: Callable[[], bool] | None,
        interrupted: Callable[[], bool],
        until_trusted: bool,
        pictures: bool,
    ) -> None:
        """One stage after the other; see ``run``."""
        try:
            for stage in (
                self.data,
                self.train_outer,
                self.label,
                self.select,
                *(() if until_trusted else (self.train_inner, self.evaluate)),
            ):
                if stop is not None and stop():
                    raise Stopped("stopped between two stages; the same command goes on")
                stage()
                if interrupted():  # and swallowed by some library
                    raise KeyboardInterrupt
        except (UserError, FloatingPointError):
            if pictures and self.planned:
                self.pictures()  # the cluster is well: it is the settings
            raise
        if pictures:
            self.pictures()

    def data(self) -> None:
        from kdfm_ray.jobs.prepare import prepare

        if self.config.train.norm_sync == "global" and not self.session.use_gpu:
            raise UserError(
                "train.norm_sync = global is torch's SyncBatchNorm, which runs on GPUs only, and "
                "there is none here: use train.norm_sync local"
            )
        if self.config.data.device == "gpu" and not self.session.use_gpu:
            raise UserError(
                "data.device = gpu, and there is no GPU here: use data.device auto or host"
            )
        self.emit({"stage": "data", "state": "start"})
        self.prepared = prepare(self.session, self.store, self.given, self.found)
        self.config = self.crew.config = self.prepared.config
        self._tell_choices()
        facts = self.facts = self.prepared.facts
        if facts["reused"]:
            self.reused.append("data")
        numerics = self._numerics()
        self.plan = self._plan_with(numerics)
        begun: dict[str, Any] = {
            "store": self.store.root,
            "images": self.plan.dataset,
            "split": self.plan.split,
            "numerics": str(numerics),
            "outer network": self.plan.outer,
        }
        if self.prepared.choices:
            begun["found"] = asdict(self.prepared.found)
            begun["resolved"] = {each.field: each.value for each in self.prepared.choices}
        self._note_done("data", facts | {"numerics": self.how_numerics, "begun": begun})
        self.planned = True
        found = self.prepared.found
        own = [found.warning] if found.warning else []
        self._warn("data", [*own, *facts["data_warnings"], *facts["split_warnings"]])

    def _tell_choices(self) -> None:
        """Of fields that were open, and of how many labeled images the classes have."""
        facts = self.prepared.facts
        lines = describe_classes(
            facts["classes"],
            facts["labeled_per_class"],
            facts["val_per_class"],
            aligned=self.config.fixmatch.align != "none",
            assumed=self.config.select.align if self.config.select.align_strength == 1 else "none",
        )
        choices = [str(choice) for choice in self.prepared.choices if choice.why]
        for text in [*choices, *lines]:
            self.emit({"stage": "", "note": text, "of": "data"})
        if self.prepared.found.warning:  # now, and not when the numerics have been measured
            self.emit({"stage": "data", "warning": self.prepared.found.warning})

    def _plan_with(self, numerics: Numerics) -> Plan:
        return make_plan(self.config, self.prepared.dataset.key, self.prepared.split.key, numerics)

    def _numerics(self) -> Numerics:
        """Pinned by the config; or as this run was begun; or by measurement."""
        from kdfm_ray.jobs.numerics import emulates_bf16, measured_numerics

        known = self._known_numerics()
        if known is not None:
            if known.precision == "bf16" and emulates_bf16(self.session):
                text = (
                    "precision bf16 has no arithmetic of its own on this machine, and is about 10 "
                    "times slower than fp32: use train.precision auto or fp32"
                )
                self.emit({"stage": "data", "warning": text})
            return known
        choice, record = measured_numerics(self.session, self.store, self.config, self.prepared)
        if not record["measured"]:
            how = "nothing else is fit here: bfloat16 would be emulated"
            self.how_numerics = {"choice": str(choice), "how": how}
            return choice
        how = "remembered from an earlier measurement" if record["reused"] else "measured"
        kept = {name: record[name] for name in ("measured", "compile_error") if name in record}
        self.how_numerics = {"choice": str(choice), "how": how} | kept
        return choice

    def _known_numerics(self) -> Numerics | None:
        choices = possible_numerics(self.config)
        if len(choices) == 1:
            self.how_numerics = {"choice": str(choices[0]), "how": "set by the configuration"}
            return choices[0]
        for choice in choices:
            if str(choice) == self.begun_with:
                self.how_numerics = {"choice": str(choice), "how": "as this run was begun"}
                return choice
        for choice in choices:
            if self._is_begun(self._plan_with(choice)):
                self.how_numerics = {"choice": str(choice), "how": "as this run was begun"}
                return choice
        return None

    def _is_begun(self, plan: Plan) -> bool:
        """Whether a network of that plan is there, finished or under way."""
        return any(
            self.store.find(role, key) is not None or Checkpoints(self.store, role, key).any()
            for role, key in plan.before_labels.items()
        )

    def train_outer(self) -> None:
        self._train(self.plan.before_labels)

    def label(self) -> None:
        from kdfm_ray.jobs.label import label

        def work() -> None:
            label(
                self.session,
                self.store,
                self.prepared,
                self.plan.outer,
                self.plan.labels,
                numerics=self.plan.numerics,
                batch_size=self.config.label.batch_size,
                num_actors=self.config.label.num_actors,
                gpus_per_actor=self.config.label.gpus_per_actor,
                max_failures=self.config.faults.max_failures,
                crew=self.crew,
            )

        self._do("label", "labels", self.plan.labels, work)

    def select(self) -> None:
        from kdfm_ray.jobs.select import select

        def work() -> None:
            plan = self.plan
            try:
                select(
                    self.session,
                    self.store,
                    self.config,
                    self.prepared,
                    plan.labels,
                    plan.trusted,
                    crew=self.crew,
                )
            except UserError as error:
                outer = f"{self.store.root}/outer/{plan.outer}"
                raise UserError(
                    f"{error} The outer network is kept in {outer}; the same command with other "
                    "--select flags goes on from it."
                ) from error

        self._do("select", "trusted", self.plan.trusted, work)

    def train_inner(self) -> None:
        self._train({"inner": self.plan.inner})

    def evaluate(self) -> None:
        from kdfm_ray.jobs.evaluate import evaluate

        plan = self.plan

        def work() -> None:
            evaluate(
                self.session,
                self.store,
                self.prepared,
                {str(role): network for role, network in plan.networks.items()},
                plan.evaluation,
                numerics=plan.numerics,
                batch_size=self.config.label.batch_size,
                crew=self.crew,
            )

        self._do("evaluate", "evaluation", plan.evaluation, work)

    def pictures(self) -> None:
        """For the report alone: where they cannot be made, a warning line is all."""
        try:
            found = self.artifacts()
            if "labels" in found:
                self._make_pictures(
                    self.plan.trusted if "trusted" in found else None,
                    self.plan.inner if "inner" in found else None,
                )
        except Exception as error:  # whatever it is, the networks are good without pictures
            text = f"no map and no examples in the report: {type(error).__name__}: {error}"
            self.emit({"stage": "pictures", "warning": text})

    def _make_pictures(self, trusted: str | None, inner: str | None) -> None:
        from kdfm_ray.jobs.pictures import make_pictures

        config, labels = self.config, self.plan.labels
        key = keys.pictures_key(config, labels, trusted, inner)

        def work() -> None:
            make_pictures(
                self.session,
                self.store,
                self.prepared,
                key=key,
                labels=labels,
                trusted=trusted,
                inner=inner,
                tau_select=config.select.tau_select,
                tau_inner=config.inner.tau_inner,
                seed=config.seed,
                numerics=self.plan.numerics,
                batch_size=config.label.batch_size,
                crew=self.crew,
            )

        self._do_missing("pictures", "pictures", key, work)
        self._pictures = key

    def finished(self, seconds: float) -> Finished:
        """What there is at the end, after so many seconds."""
        return Finished(**vars(self.left(seconds, {})), plan=self.plan)

    def left(self, seconds: float, facts: dict[str, Any]) -> Left:
        """What there is after so many seconds; ``facts`` are those of images that were refused."""
        return Left(
            config=self.config,
            numerics=self.how_numerics,
            artifacts=self.artifacts() if self.planned else {},
            facts=facts or self.facts,
            reused=self.reused,
            seconds=seconds,
            resources={
                "cpus": self.session.room.cpus,
                "gpus": self.session.room.gpus,
                "workers": self.config.scale.num_workers,
                "cpus_per_worker": self.session.cpus_per_worker,
            },
            given=self.given,
            prepared=getattr(self, "prepared", None),  # images that were refused
        )

    def artifacts(self) -> dict[str, Artifact]:
        plan = self.plan
        wanted: dict[str, str | None] = {
            "dataset": plan.dataset,
            "split": plan.split,
            "labels": plan.labels,
            "trusted": plan.trusted,
            "evaluation": plan.evaluation,
            "pictures": self._pictures,
        }
        wanted |= {str(role): key for role, key in plan.networks.items()}
        found = {stage: self.store.find(stage, key) for stage, key in wanted.items() if key}
        return {stage: artifact for stage, artifact in found.items() if artifact is not None}

    def _train(self, networks: dict[Role, str]) -> None:
        """Train those networks (role -> key) that are wanted and not there yet, in one job."""
        tasks = []
        for role, key in networks.items():
            if self.store.find(role, key) is not None:
                Checkpoints(self.store, role, key).clear()  # of one who died before it could
                self._note_reused(role)
                continue
            inner = role == "inner"
            from_outer = inner and self.config.inner.init == "outer"
            tasks.append(
                TrainTask(
                    role=role,
                    key=key,
                    dataset=self.plan.dataset,
                    split=self.plan.split,
                    numerics=self.plan.numerics,
                    trusted=self.plan.trusted if inner else None,
                    outer=self.plan.outer if from_outer else None,
                )
            )
        self._train_missing(tasks)
        for role, key in networks.items():
            self._warn_of(role, role, key)

    def _train_missing(self, tasks: list[TrainTask]) -> None:
        with contextlib.ExitStack() as leases:
            # In this order by every run, so that no two wait for each other.
            missing = [
                task for task in tasks if leases.enter_context(self._lease(task.role, task.key))
            ]
            if missing:
                self.emit({"stage": missing[0].role, "state": "start"})
                self.crew.train(missing)
            for task in tasks:
                if task in missing:
                    self._note_done(task.role)
                else:
                    self._note_reused(task.role)

    def _do(self, stage: str, artifact: str, key: str, work: Callable[[], None]) -> None:
        self._do_missing(stage, artifact, key, work)
        self._warn_of(stage, artifact, key)

    def _do_missing(self, stage: str, artifact: str, key: str, work: Callable[[], None]) -> None:
        if self.store.find(artifact, key) is not None:
            self._note_reused(stage)
            return
        with self._lease(artifact, key, stage) as held:
            if not held:
                self._note_reused(stage)
                return
            self.emit({"stage": stage, "state": "start"})
            work()
            self._note_done(stage)

    def _lease(
        self, artifact: str, key: str, stage: str | None = None
    ) -> contextlib.AbstractContextManager[bool]:
        """Wait while another run computes that artifact; whether it is this one's to compute."""

        def waiting(holder: str) -> None:
            text = f"another run ({holder}) computes this now: waiting for what it finds"
            self.emit({"stage": stage or artifact, "waiting": text})

        def done() -> bool:
            return self.store.find(artifact, key) is not None

        return lease(self.store, artifact, key, done=done, waiting=waiting)

    def _warn_of(self, stage: str, artifact: str, key: str) -> None:
        """Show the warnings that a stage has left, which a worker may have shown already."""
        found = self.store.find(artifact, key)
        assert found is not None
        self._warn(stage, found.record().get("warnings", []))

    def _warn(self, stage: str, warnings: list[str]) -> None:
        for text in warnings:
            self.emit({"stage": stage, "warning": text})
        if warnings and self.config.on_warning == "stop":
            raise RunFailed(
                f"stopped after a warning of the stage {stage}, as on_warning = stop: "
                f"{'; '.join(warnings)}. All that is finished is kept; the same command with "
                "--on-warning continue goes on"
            )

    def _note_done(self, stage: str, facts: dict[str, Any] | None = None) -> None:
        self.session.drain()  # what the stage has to say comes before its end
        self.emit({"stage": stage, "state": "done"} | (facts or {}))

    def _note_reused(self, stage: str) -> None:
        self.reused.append(stage)
        self.emit({"stage": stage, "state": "reused"})
