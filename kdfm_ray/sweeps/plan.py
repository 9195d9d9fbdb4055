"""What a sweep has to compute before it is begun: which networks, how many of them, how long."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdfm_ray.config import Config, content_hash
from kdfm_ray.jobs.numerics import measured_numerics
from kdfm_ray.jobs.prepare import Prepared
from kdfm_ray.jobs.session import Session
from kdfm_ray.pipeline import Plan, make_plan, plan_run
from kdfm_ray.resolve import Found, fill, open_fields
from kdfm_ray.store import Store
from kdfm_ray.sweeps.slots import Slots
from kdfm_ray.sweeps.space import Trial
from kdfm_ray.types import Emit, Role, UserError

MEASURED_SHAPES = 4  # kinds of networks whose speed is measured; with more, nothing is estimated


@dataclass(frozen=True)
class Planned:
    """A trial, its open fields filled, with the keys of all its stages."""

    trial: Trial
    plan: Plan
    prepared: Prepared

    @property
    def numerics(self) -> str:
        """As resolved, the same for all trials of one kind."""
        return str(self.plan.numerics)


@dataclass(frozen=True)
class Work:
    """Networks that are not in the store yet, and all that the trials need.

    Attributes:
        missing: role -> how many distinct networks have to be trained.
        needed: role -> how many distinct ones there are.
        updates: of all missing ones together.
        seconds: of training those before the inner ones, and the inner ones, one after the other,
            each on one trial's share of the machine; ``None`` if not estimated.
        kinds: of missing networks, each of which has a speed of its own.
    """

    missing: dict[Role, int]
    needed: dict[Role, int]
    updates: int
    seconds: tuple[float, float] | None
    kinds: int


def filled(trials: Sequence[Trial], known: Mapping[str, Found]) -> list[Trial]:
    """The trials, without open fields where it is known what was found for their kind."""

    def one(trial: Trial) -> Trial:
        found = known.get(kind_of(trial.config)) if open_fields(trial.config) else None
        return trial if found is None else _filled(trial, found)

    return [one(trial) for trial in trials]


def _filled(trial: Trial, found: Found) -> Trial:
    return dataclasses.replace(trial, config=fill(trial.config, found)[0])


class Planner:
    """Keys of all stages of trials; images that were never read are read now.

    What was planned is not looked at again, nor what could not be: a planner is for one round.
    """

    def __init__(self, store: Store, session: Session, emit: Emit) -> None:
        """Artifacts are in ``store``, ``session`` computes, ``emit`` takes events."""
        self._store, self._session, self._emit = store, session, emit
        self._known: dict[str, tuple[Plan, Prepared] | UserError] = {}

    def plan(self, trials: Sequence[Trial]) -> list[Planned]:
        """Each trial, without open fields, with its keys.

        Raises:
            UserError: anything about the data or the networks that the user can mend.
        """
        return [self._plan(trial) for trial in trials]

    def found(self, trials: Sequence[Trial]) -> dict[str, Found]:
        """What was found for those that were planned with open fields, by their kind."""
        return {
            kind_of(trial.config): self._kind(trial.config)[1].found
            for trial in trials
            if open_fields(trial.config)
        }

    def _plan(self, trial: Trial) -> Planned:
        plan, prepared = self._kind(trial.config)
        trial = _filled(trial, prepared.found)
        own = make_plan(trial.config, prepared.dataset.key, prepared.split.key, plan.numerics)
        return Planned(trial, own, prepared)

    def _kind(self, config: Config) -> tuple[Plan, Prepared]:
        kind = kind_of(config)
        if kind not in self._known:
            try:
                self._known[kind] = plan_run(config, self._store, self._session, self._emit)
            except UserError as error:
                self._known[kind] = error
        found = self._known[kind]
        if isinstance(found, UserError):
            raise found
        return found


def missing_work(planned: Sequence[Planned], store: Store, session: Session, slots: Slots) -> Work:
    """Count what has to be trained, and estimate how long that takes."""
    networks: dict[tuple[Role, str], Planned] = {}
    for each in planned:
        for role, key in each.plan.networks.items():
            networks.setdefault((role, key), each)
    todo = {which: each for which, each in networks.items() if store.find(*which) is None}
    return Work(
        missing=_count(todo),
        needed=_count(networks),
        updates=sum(each.trial.config.steps_of(role) for (role, _), each in todo.items()),
        seconds=_estimate(todo, store, session, slots),
        kinds=len({_shape(each) for each in todo.values()}),
    )


def _shape(each: Planned) -> str:
    """Networks of one shape take equally long for an update."""
    config = each.trial.config
    return content_hash(
        {
            "model": config.model.model_dump(mode="json"),
            "batch": [config.train.batch_size, config.fixmatch.mu],
            "image": each.prepared.facts["image_shape"],
            "numerics": each.numerics,
        }
    )


def _estimate(
    todo: dict[tuple[Role, str], Planned], store: Store, session: Session, slots: Slots
) -> tuple[float, float] | None:
    shapes = {_shape(each): each for each in todo.values()}
    if len(shapes) > MEASURED_SHAPES:
        return None
    speeds = {
        shape: _seconds_of_update(each, store, session, slots) for shape, each in shapes.items()
    }
    before = inner = 0.0
    for (role, _), each in todo.items():
        config = each.trial.config
        # One image labeled, mu weak ones without a graph (a third of the cost), mu strong ones.
        mu = config.fixmatch.mu
        share = 1.0 if role != "baseline" else 1 / (1 + mu / 3 + mu)
        seconds = share * speeds[_shape(each)] * config.steps_of(role)
        if role == "inner":
            inner += seconds
        else:
            before += seconds
    return before, inner


def _seconds_of_update(each: Planned, store: Store, session: Session, slots: Slots) -> float:
    scale = session.scale.model_copy(update={"cpus_per_worker": slots.cpus})
    chosen = each.plan.numerics
    train = each.trial.config.train.model_copy(
        update={
            "precision": chosen.precision,
            "memory_format": chosen.memory_format,
            "compile": "on" if chosen.compile else "off",
        }
    )
    config = each.trial.config.model_copy(update={"train": train, "scale": scale})
    share = dataclasses.replace(session, scale=scale)
    _, record = measured_numerics(share, store, config, each.prepared, timed=True)
    seconds: float = record["measured"][0]["seconds"]
    return seconds


def kind_of(config: Config) -> str:
    """Trials of one kind have images, split, starting weights and numerics in common."""
    train = config.train
    parts: dict[str, Any] = {
        "data": config.data.model_dump(mode="json"),
        "split_seed": config.split_seed,
        "model": config.model.model_dump(mode="json"),
        "numerics": [train.precision, train.memory_format, train.compile, train.norm_sync],
        "batch": [train.batch_size, config.fixmatch.mu],
    }
    return content_hash(parts)


def _count(networks: dict[tuple[Role, str], Planned]) -> dict[Role, int]:
    counts: dict[Role, int] = {"baseline": 0, "outer": 0, "longer": 0, "inner": 0}
    for role, _ in networks:
        counts[role] += 1
    return counts
