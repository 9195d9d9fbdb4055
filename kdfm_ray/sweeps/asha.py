"""ASHA among trials that may be compared: Tune's own scheduler, one for each group of trials.

Ranked all together, every trial of a hard data set or of few labels would be stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from kdfm_ray.sweeps.space import Asha, Trial

STEP, SCORE = "step", "val_accuracy"


@dataclass(frozen=True)
class _Named:
    """What Tune's ASHA asks of a trial. Its name is the sweep's: it survives a restart."""

    trial_id: str


class GroupedScheduler(FIFOScheduler):
    """Starts trials in order, and stops those that are behind in their group, if asked to."""

    def __init__(self, trials: Mapping[str, Trial], asha: Asha | None) -> None:
        """Know the trials by id; ``asha`` of ``None`` stops none of them."""
        super().__init__()
        self._trials = trials
        self._groups: dict[str, ASHAScheduler] = {}
        if asha is None:
            return
        for group in {trial.group for trial in trials.values()}:
            steps = [t.config.steps_of("inner") for t in trials.values() if t.group == group]
            self._groups[group] = ASHAScheduler(
                time_attr=STEP,
                metric=SCORE,
                mode="max",
                grace_period=max(1, round(asha.first * min(steps))),
                max_t=max(steps) + 1,  # who gets there ends by itself, after the test set
                reduction_factor=asha.factor,
            )

    def replay(self, name: str, curve: Mapping[int, float]) -> None:
        """Know what a trial has reported in an earlier try of the sweep, update by update."""
        group = self._group(name)
        if group is None:
            return
        group.on_trial_add(None, _Named(name))
        for step, score in sorted(curve.items()):
            group.on_trial_result(None, _Named(name), {STEP: step, SCORE: score})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial will be run."""
        super().on_trial_add(tune_controller, trial)
        if (group := self._group(_name(trial))) is not None:
            group.on_trial_add(tune_controller, _Named(_name(trial)))

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether a trial goes on."""
        group = self._group(_name(trial))
        if group is None or STEP not in result:
            return TrialScheduler.CONTINUE
        decision: str = group.on_trial_result(tune_controller, _Named(_name(trial)), result)
        if result[STEP] >= self._trials[_name(trial)].config.steps_of("inner"):
            return TrialScheduler.CONTINUE  # nothing is left to save: the test set comes next
        return decision

    def _group(self, name: str) -> ASHAScheduler | None:
        trial = self._trials.get(name)
        return None if trial is None else self._groups.get(trial.group)


def _name(trial: Any) -> str:
    name: str = trial.config["job"]["id"]
    return name
