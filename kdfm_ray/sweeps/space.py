"""What a sweep varies, and the trials that come of it; no Ray, nothing is run.

A *setting* is one choice of all varied fields; a *trial* is one setting with one seed.
"""

from __future__ import annotations

import itertools
import math
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, NonNegativeInt, ValidationError, model_validator

from kdfm_ray.config import (
    DATA_PLACES,
    NOT_IN_HASH,
    Config,
    Section,
    absolute_paths,
    content_hash,
    describe_errors,
    hashed,
    hashed_whole,
    is_open,
    parse_config,
    set_recipe,
)
from kdfm_ray.resolve import open_fields
from kdfm_ray.types import UserError

# Sections that change no result, or that the sweep itself decides on.
NOT_VARIED = {
    *(
        "seed",
        "out",
        "store",
        "scale",
        "faults",
        "on_warning",
        "track",
        "baseline",
        "equal_compute",
    ),
    *(
        "data.root",
        "data.device",
        "label.batch_size",
        "label.num_actors",
        "label.gpus_per_actor",
        "train.log_every",
    ),
}


class Grid(Section):
    """Every one of some values."""

    kind: Literal["grid"] = "grid"
    values: tuple[Any, ...] = Field(min_length=1)


class Choice(Section):
    """One of some values, each as likely."""

    kind: Literal["choice"] = "choice"
    values: tuple[Any, ...] = Field(min_length=1)


class Uniform(Section):
    """A number between two others."""

    kind: Literal["uniform"] = "uniform"
    low: float
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> Uniform:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self


class LogUniform(Section):
    """A number between two others, whose logarithm is uniform."""

    kind: Literal["loguniform"] = "loguniform"
    low: float = Field(gt=0)
    high: float

    @model_validator(mode="after")
    def _ordered(self) -> LogUniform:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low} must be below high = {self.high}")
        return self


Dimension = Annotated[Grid | Choice | Uniform | LogUniform, Field(discriminator="kind")]


def grid(*values: Any) -> Grid:
    """Every one of ``values``."""
    return Grid(values=values)


def choice(*values: Any) -> Choice:
    """One of ``values`` at random in each sample."""
    return Choice(values=values)


def uniform(low: float, high: float) -> Uniform:
    """A number between ``low`` and ``high``."""
    return Uniform(low=low, high=high)


def loguniform(low: float, high: float) -> LogUniform:
    """A number between ``low`` and ``high``, uniform in its logarithm."""
    return LogUniform(low=low, high=high)


class Asha(Section):
    """Stop trials early whose inner network is behind (ASHA: Li et al. 2020, arXiv 1810.05934).

    A trial is compared, at the same update, with trials of the same data, number of labels, split
    and seed alone, by validation accuracy.
    """

    first: float = Field(
        0.25, gt=0, lt=1, description="share of train.steps before which no trial is stopped"
    )
    factor: float = Field(
        3.0, gt=1, description="of the trials at a rung the best 1 / factor go on for sure"
    )


class Sweep(Section):
    """A whole sweep: a base config, what is varied, and how trials are chosen and stopped.

    ``space`` maps dotted names of config fields to ``grid``, ``choice``, ``uniform`` or
    ``loguniform``. All grids are crossed, and crossed with ``samples`` draws of the others. Where
    only some combinations are wanted, ``cases`` lists them (field -> value each; a field that a
    case leaves out is as in ``base``), and every case meets every combination of the grids.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    base: Config
    space: dict[str, Dimension] = Field(default_factory=dict)
    cases: tuple[dict[str, Any], ...] = ()
    seeds: tuple[NonNegativeInt, ...] = Field((0, 1, 2), min_length=1)
    search: Literal["random", "optuna"] = Field(
        "random", description="how values that are no grid are drawn; optuna needs the extra optuna"
    )
    samples: int | None = Field(None, ge=1, description="draws of the values that are no grid")
    search_seed: int = Field(0, ge=0, description="of those draws")
    asha: Asha | None = None
    max_concurrent: int | None = Field(
        None, ge=1, description="trials at once; none: as many as fit"
    )
    gpus_per_trial: float = Field(
        1.0, gt=0, le=1, description="below 1, trials of one worker share a GPU"
    )
    results: Path | None = Field(
        None, description="file of finished cells, which count as done wherever it is found"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> Sweep:
        problems = [text for name in self.space for text in _problems_of(name)]
        problems += [text for name, values in self.space.items() for text in _broken(name, values)]
        drawn = [name for name, values in self.space.items() if not isinstance(values, Grid)]
        problems += self._broken_cases()
        if not self.space and not self.cases:
            problems.append("space is empty: name at least one config field and its values")
        if len(set(self.seeds)) != len(self.seeds):
            problems.append(f"seeds = {list(self.seeds)}: each seed once")
        if drawn and self.samples is None:
            problems.append(f"samples is missing: how often to draw {', '.join(drawn)}")
        if not drawn and self.samples is not None:
            problems.append(
                f"samples = {self.samples}, but every field is a grid and nothing is drawn: leave "
                "samples out, or use choice, uniform or loguniform"
            )
        if self.search == "optuna" and (not drawn or len(drawn) < len(self.space)):
            problems.append(
                "search = optuna chooses all fields itself: give choice, uniform or loguniform for "
                "each, and no grid"
            )
        if self.results is not None and "auto" in (
            self.base.train.precision,
            self.base.train.memory_format,
        ):
            problems.append(
                "a file of results is for machines to share, which may find other numerics "
                "fastest: set train.precision and train.memory_format, or leave results out"
            )
        problems += self._unrecorded()
        if self.results is not None and (left := open_fields(self.base)):
            problems.append(
                "a file of results is for machines to share, which may fill open fields otherwise: "
                f"set {', '.join(left)}, or leave results out"
            )
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _unrecorded(self) -> list[str]:
        """Why a file of results would mix up trials: it knows them by their config alone."""
        if self.results is None:
            return []
        places = {name: getattr(self.base.data, name) for name in DATA_PLACES}
        own = [f"data.{name}" for name, place in places.items() if place is not None]
        own += [f"data.{name}" for name in DATA_PLACES if f"data.{name}" in self.fields]
        if not own:
            return []
        return [
            f"a file of results knows trials by their config, not by the images in folders "
            f"({', '.join(dict.fromkeys(own))}): leave results out, or use a named data set"
        ]

    def _broken_cases(self) -> list[str]:
        named = dict.fromkeys(name for case in self.cases for name in case)
        problems = [
            text.replace("space:", "cases:") for name in named for text in _problems_of(name)
        ]
        problems += [
            f"cases: {name} is in space, too: give it in one of the two"
            for name in named
            if name in self.space
        ]
        if self.cases and self.search == "optuna":
            problems.append("cases are for grids and random search; search = optuna takes none")
        return problems

    def changed(self, **fields: Any) -> Sweep:
        """A copy with other fields, checked as a whole.

        Raises:
            UserError: it makes no sense; lists every mistake.
        """
        own = {name: getattr(self, name) for name in type(self).model_fields}
        base = fields.get("base", self.base)
        if base.hash() != self.base.hash():
            own["results"] = None  # that file is of the sweep as it is written
        return make_sweep(**(own | fields))

    def same_as(self) -> dict[str, Any]:
        """What makes it this sweep and no other, fit for JSON."""
        loose = {"max_concurrent", "gpus_per_trial", "results", "base"}
        if not self.cases:
            loose.add("cases")  # which came when sweeps were under way
        base = self.base.model_dump(mode="json", exclude=NOT_IN_HASH | {"seed": True})
        return self.model_dump(mode="json", exclude=loose) | {"base": hashed_whole(base)}

    @property
    def fields(self) -> list[str]:
        """Names of the varied fields."""
        return list(dict.fromkeys([*self.space, *(name for case in self.cases for name in case)]))

    def settings(self) -> list[dict[str, Any]]:
        """All settings of a grid or a random search, each once; field -> value."""
        assert self.search == "random"
        # In the order of their names, so that setting numbers and draws are those of the sweep,
        # in whatever order it was written down.
        space = sorted(self.space.items())
        grids = {name: values.values for name, values in space if isinstance(values, Grid)}
        found: dict[str, dict[str, Any]] = {}
        for drawn in self._draws():
            for row in itertools.product(*grids.values()):
                values = dict(zip(grids, row, strict=True)) | drawn
                for case in self.cases or ({},):
                    chosen = self._of_base(case) | values | case
                    setting = {name: chosen[name] for name in self.fields}
                    found.setdefault(content_hash(_plain(setting)), setting)
        return list(found.values())

    def _of_base(self, case: dict[str, Any]) -> dict[str, Any]:
        """The fields that other cases vary and this one does not."""
        others = {name for each in self.cases for name in each} - set(case)
        base = self.base.model_dump(mode="json") if others else {}
        return {name: _look_up(base, name) for name in others}

    def _draws(self) -> Iterator[dict[str, Any]]:
        space = sorted(self.space.items())
        others = {name: values for name, values in space if not isinstance(values, Grid)}
        rng = np.random.default_rng([self.search_seed, 0x7377])
        for _ in range(self.samples or 1):
            yield {name: _draw(values, rng) for name, values in others.items()}


def make_sweep(**fields: Any) -> Sweep:
    """A ``Sweep``; raises one ``UserError`` that lists every mistake."""
    try:
        return Sweep(**fields)
    except ValidationError as error:
        found = describe_errors(error, Sweep)
        lines = "\n".join(f"  - {text}" for text in found)
        count = "1 mistake" if len(found) == 1 else f"{len(found)} mistakes"
        raise UserError(f"the sweep has {count}:\n{lines}") from error


@dataclass(frozen=True)
class Trial:
    """One setting with one seed.

    Attributes:
        id: stable: of what it is, not of when it was started.
        setting: number of its setting.
        values: field -> value.
        config: the whole run.
        group: trials that may be ranked with each other have the same.
    """

    id: str
    setting: int
    values: dict[str, Any]
    config: Config
    group: str

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return self.config.seed


def make_trials(sweep: Sweep, settings: Sequence[dict[str, Any]], first: int = 0) -> list[Trial]:
    """A trial for each seed of each setting, setting by setting.

    Args:
        sweep: the sweep.
        settings: field -> value each.
        first: number of the first setting.

    Raises:
        UserError: some are no valid config; lists what is wrong, each mistake once.
    """
    trials, problems = [], []
    for number, values in enumerate(settings, start=first):
        for seed in sweep.seeds:
            try:
                trials.append(_make_trial(sweep, number, values, seed))
            except UserError as error:
                problems += [line.strip(" -") for line in str(error).splitlines()[1:]]
    if sweep.asha is not None:
        problems += [text for trial in trials for text in unranked(trial.config)]
    if sweep.search == "optuna" and any(trial.config.data.num_val == 0 for trial in trials):
        problems.append("optuna goes by validation accuracies, and data.num_val = 0: give some")
    if problems:
        lines = "\n".join(f"  - {text}" for text in dict.fromkeys(problems))
        raise UserError(f"the sweep {sweep.name} has trials that cannot be run:\n{lines}")
    return trials


def total_trials(sweep: Sweep, trials: Sequence[Trial]) -> int:
    """How many there will be at most; ``trials``: those that are known."""
    if sweep.search == "optuna":
        assert sweep.samples is not None
        return sweep.samples * len(sweep.seeds)
    return len(trials)


def unranked(config: Config) -> list[str]:
    """Why ASHA could not compare a trial with others; steps that are open say nothing yet."""
    if config.data.num_val == 0:
        return ["asha compares validation accuracies, and data.num_val = 0: give some, or no asha"]
    if is_open(config.train, "steps") or is_open(config.train, "eval_every"):
        return []
    every, steps = config.train.eval_every, config.steps_of("inner")
    if every >= steps:
        return [
            f"asha compares validations on the way, and train.eval_every = {every} leaves none in "
            f"{steps} updates: lower it to {max(1, steps // 8)} or so, or use no asha"
        ]
    return []


def _make_trial(sweep: Sweep, number: int, values: dict[str, Any], seed: int) -> Trial:
    from kdfm_ray.checks import find_problems

    nested = sweep.base.model_dump(mode="json") | {"seed": seed}
    if "recipe" in values:
        set_recipe(nested, values["recipe"])
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        (nested[section] if section else nested)[field] = _plain(value)
    config = absolute_paths(parse_config(nested, find_problems(nested)))
    read = config.model_dump(mode="json")
    values = {name: _look_up(read, name) for name in values}  # 0.5 where "0.5" was given
    data = hashed("data", config.model_dump(mode="json", exclude=NOT_IN_HASH)["data"])
    return Trial(
        id=f"t{number:03d}-s{seed}-{config.hash()[:8]}",
        setting=number,
        values=values,
        config=config,
        group=content_hash({"data": data, "seed": seed, "split_seed": config.split_seed}),
    )


def _look_up(nested: dict[str, Any], name: str) -> Any:
    for part in name.split("."):
        nested = nested[part]
    return nested


def _problems_of(name: str) -> list[str]:
    """What is wrong with the name of a varied field."""
    section, _, field = name.rpartition(".")
    if name in NOT_VARIED or section in NOT_VARIED:
        hint = "give `seeds` instead" if name == "seed" else "it changes no result of a network"
        return [f"space: {name} cannot be varied: {hint}"]
    model: Any = Config
    if section:
        known = Config.model_fields.get(section)
        model = known.annotation if known is not None else None
    if section and not hasattr(model, "model_fields"):
        return [f"space: {name} is no config field: there is no section {section!r}"]
    if field not in model.model_fields or hasattr(
        model.model_fields[field].annotation, "model_fields"
    ):
        names = [f"{section}.{each}" if section else each for each in model.model_fields]
        return [f"space: {name} is no config field; allowed there: {', '.join(names)}"]
    return []


def _broken(name: str, values: Dimension) -> list[str]:
    """What is wrong with numbers drawn for a field of whole numbers."""
    if not isinstance(values, Uniform | LogUniform):
        return []
    field: Any = Config
    for part in name.split("."):
        known = getattr(field, "model_fields", {}).get(part)
        if known is None:
            return []  # said elsewhere
        field = known.annotation
    if float in (field, *typing.get_args(field)):
        return []
    return [
        f"space: {name} takes no fractions, which {values.kind} draws: use choice with its values"
    ]


def _draw(values: Dimension, rng: np.random.Generator) -> Any:
    if isinstance(values, Choice | Grid):
        return values.values[int(rng.integers(len(values.values)))]
    if isinstance(values, LogUniform):
        return float(np.exp(rng.uniform(math.log(values.low), math.log(values.high))))
    return float(rng.uniform(values.low, values.high))


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, np.generic):
        return value.item()
    return str(value) if isinstance(value, Path) else value
