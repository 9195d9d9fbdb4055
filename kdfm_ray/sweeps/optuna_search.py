"""Settings suggested by Optuna's TPE, a round at a time; needs the extra ``optuna``.

A suggestion is a setting, run with every seed; what Optuna is told is its mean validation accuracy,
or that it failed, where it cannot be run. Rounds are small (``ROUND`` settings), so that most
suggestions know of earlier ones. What was suggested and can be run is kept in the sweep's folder,
and is not asked for again when the sweep goes on.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
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
TRIES = 100  # of a round, where suggestions were made before or cannot be run
COMBINATIONS = 50  # with values of other fields, that a value is tried in

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

    def __init__(
        self,
        sweep: Sweep,
        folder: Path,
        check: Callable[[Sequence[Trial]], object] = lambda trials: None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Ask nothing yet; rounds that were suggested before are read from the folder.

        Args:
            sweep: its space and samples.
            folder: where rounds are kept.
            check: raises ``UserError`` where trials of a suggestion cannot be planned.
            note: told what was suggested and cannot be run.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._sweep, self._path, self._check, self._note = sweep, folder / KEPT, check, note
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
            UserError: nothing that Optuna suggests can be run.
        """
        first = len(self._given)
        self._number += 1
        known = self._number <= len(self._rounds)
        asked = self._rounds[self._number - 1] if known else self._ask(rows)
        trials = make_trials(self._sweep, [self._setting(each) for each in asked], first)
        if asked and not known:  # kept once it can be run
            self._rounds.append(asked)
            write_whole(self._path, json.dumps(self._rounds))
        self._given += asked
        return trials

    def _ask(self, rows: Sequence[dict[str, Any]]) -> list[Params]:
        import optuna
        from optuna.trial import TrialState

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
        refused: dict[str, str] = {}  # suggestion -> why it cannot be run
        wanted = min(ROUND, self._sweep.samples - len(self._given))
        for _ in range(TRIES):
            if len(asked) >= wanted:
                break
            suggestion = study.ask(self._space)
            params, name = suggestion.params, json.dumps(suggestion.params, sort_keys=True)
            if name not in refused and params not in self._given and params not in asked:
                if why := self._refusal(params):
                    refused[name] = why
                else:
                    asked.append(params)
            if name in refused:
                study.tell(suggestion, state=TrialState.FAIL)
        self._say(asked, list(refused.values()))
        return asked

    def _refusal(self, params: Params) -> str:
        """Why the trials of a suggestion cannot be run; empty: they can."""
        try:
            self._check(make_trials(self._sweep, [self._setting(params)]))
        except UserError as error:
            return str(error)
        return ""

    def _say(self, asked: Sequence[Params], refused: Sequence[str]) -> None:
        if not refused:
            return
        if not asked and not self._given:
            raise UserError(
                f"optuna suggests nothing that can be run in {TRIES} tries; the first: {refused[0]}"
            )
        then = "others take their place" if asked else "it knows of no others, so this is the end"
        what = "1 suggestion" if len(refused) == 1 else f"{len(refused)} suggestions"
        self._note(f"optuna: {what} cannot be run, {then}; the first: {refused[0]}")

    def _setting(self, params: Params) -> dict[str, Any]:
        space = self._sweep.space
        return {name: _value(space[name], number) for name, number in params.items()}


def check_values(sweep: Sweep) -> None:
    """Every choice and both ends of every range are part of a setting that can be run.

    Not all settings have to be: what depends on several fields is found when it is suggested.

    Raises:
        UserError: some values are of no use; says why.
    """
    ends = {name: _ends(values) for name, values in sweep.space.items()}
    good: set[tuple[str, int]] = set()
    broken = []
    once = sweep.model_copy(update={"seeds": sweep.seeds[:1]})
    for name, values in ends.items():
        for number in range(len(values)):
            if (name, number) in good:
                continue
            for places in _combinations(ends, name, number):
                setting = {each: ends[each][place] for each, place in places.items()}
                if _is_valid(once, setting):
                    good |= set(places.items())
                    break
            else:
                corner = next(_combinations(ends, name, number))
                broken.append({each: ends[each][place] for each, place in corner.items()})
    make_trials(once, broken)


def _combinations(
    ends: Mapping[str, Sequence[Any]], name: str, number: int
) -> Iterator[dict[str, int]]:
    """Places of values of all fields, one of them given: first its corner, then some at random."""
    yield {each: min(number, len(values) - 1) for each, values in ends.items()}
    rng = random.Random(0)
    for _ in range(COMBINATIONS):
        yield {each: rng.randrange(len(values)) for each, values in ends.items()} | {name: number}


def _is_valid(sweep: Sweep, setting: dict[str, Any]) -> bool:
    try:
        make_trials(sweep, [setting])
    except UserError:
        return False
    return True


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
