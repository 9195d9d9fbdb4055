"""Settings suggested by Optuna's TPE, a round at a time; needs the extra ``optuna``.

A suggestion is a setting, run with every seed; what Optuna is told is its mean validation accuracy.
Rounds are small (``ROUND`` settings), so that most suggestions know of earlier ones. What was
suggested is kept in the sweep's folder, and is not asked for again when the sweep goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdfm_ray.report.run_folder import write_whole
from kdfm_ray.sweeps.ledger import KEPT
from kdfm_ray.sweeps.space import (
    Choice,
    Dimension,
    LogUniform,
    Sweep,
    Trial,
    Uniform,
    make_trials,
)
from kdfm_ray.types import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ROUND = 4  # settings at once
TRIES = 100  # of a round, where what Optuna suggests was suggested before

Params = dict[str, float | int]  # as Optuna has them


def check_optuna() -> None:
    """Raise ``UserError`` where the extra is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "search = optuna needs the package: pip install 'kdfm_ray[optuna]', or use "
            "search = random"
        ) from error


class Suggestions:
    """Asks Optuna for settings until the sweep has its ``samples``, or knows of no new ones."""

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        """Ask nothing yet; rounds that were suggested before are read from the folder."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._path = sweep, folder / KEPT
        self._rounds: list[list[Params]] = []
        if self._path.is_file():
            self._rounds = json.loads(self._path.read_text())
        self._number = 0
        self._space = {name: _distribution(values) for name, values in sweep.space.items()}
        self._given: list[Params] = []

    def next_round(self, rows: Sequence[dict[str, Any]]) -> list[Trial]:
        """Trials of the next settings, fewer or none when ``samples`` are reached.

        Args:
            rows: the table of trials so far.

        Raises:
            UserError: a suggestion is no valid config.
        """
        first = len(self._given)
        self._number += 1
        known = self._number <= len(self._rounds)
        asked = self._rounds[self._number - 1] if known else self._ask(rows)
        trials = make_trials(self._sweep, [self._setting(each) for each in asked], first)
        if not known:  # kept once it can be run
            self._rounds.append(asked)
            write_whole(self._path, json.dumps(self._rounds))
        self._given += asked
        return trials

    def _ask(self, rows: Sequence[dict[str, Any]]) -> list[Params]:
        import optuna

        assert self._sweep.samples is not None
        # The seed is of the round: what is suggested follows from it and from what was found.
        sampler = optuna.samplers.TPESampler(seed=self._sweep.search_seed + len(self._given))
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for number, params in enumerate(self._given):
            score = _score([row for row in rows if row["setting"] == number])
            if score is not None:
                study.add_trial(
                    optuna.trial.create_trial(params=params, distributions=self._space, value=score)
                )
        asked: list[Params] = []
        wanted = min(ROUND, self._sweep.samples - len(self._given))
        for _ in range(TRIES):
            if len(asked) >= wanted:
                break
            params = study.ask(self._space).params
            if params not in self._given and params not in asked:
                asked.append(params)
        return asked

    def _setting(self, params: Params) -> dict[str, Any]:
        space = self._sweep.space
        return {name: _value(space[name], number) for name, number in params.items()}


def corners(sweep: Sweep) -> list[dict[str, Any]]:
    """Settings that have every choice and both ends of every range, to see that all are valid."""
    ends = {name: _ends(values) for name, values in sweep.space.items()}
    most = max(len(values) for values in ends.values())
    return [
        {name: values[min(number, len(values) - 1)] for name, values in ends.items()}
        for number in range(most)
    ]


def _ends(values: Dimension) -> list[Any]:
    if isinstance(values, Uniform | LogUniform):
        return [values.low, values.high]
    return list(values.values)


def _score(rows: Sequence[dict[str, Any]]) -> float | None:
    """Mean validation accuracy; that of a stopped trial is its last one, of a failed one zero."""
    if not rows:
        return None
    values = [row["val_accuracy"] if row["status"] != "failed" else 0.0 for row in rows]
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _distribution(values: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(values, Uniform):
        return FloatDistribution(values.low, values.high)
    if isinstance(values, LogUniform):
        return FloatDistribution(values.low, values.high, log=True)
    assert isinstance(values, Choice)
    return CategoricalDistribution(list(range(len(values.values))))


def _value(values: Dimension, number: float | int) -> Any:
    """What Optuna's number stands for: of a choice it knows the places, as values may be lists."""
    return values.values[int(number)] if isinstance(values, Choice) else number
