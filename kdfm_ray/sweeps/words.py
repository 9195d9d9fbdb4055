"""What a sweep says on the terminal, in sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from kdfm_ray.report.table import percent
from kdfm_ray.sweeps.ledger import Record
from kdfm_ray.sweeps.page import short
from kdfm_ray.sweeps.plan import MEASURED_SHAPES, Work
from kdfm_ray.sweeps.slots import Slots
from kdfm_ray.sweeps.space import Sweep, Trial, total_trials
from kdfm_ray.types import Role

NETWORKS: dict[Role, str] = {
    "baseline": "labeled-only",
    "outer": "outer",
    "longer": "FixMatch of equal compute",
    "inner": "inner",
}


def begun(sweep: Sweep, trials: Sequence[Trial], done: int, place: str) -> list[str]:
    """How many trials there are and how they are chosen.

    Args:
        sweep: what is run.
        trials: of this round; a grid has one round alone.
        done: how many of them have ended before.
        place: the folder.
    """
    settings, seeds = len({trial.setting for trial in trials}), len(sweep.seeds)
    before = f", {done} of them done before" if done else ""
    if sweep.search == "optuna":
        first = min(trial.setting for trial in trials) + 1
        text = (
            f"sweep {sweep.name}: settings {first} to {first + settings - 1} of {sweep.samples} by "
            f"Optuna, {len(trials)} of {total_trials(sweep, trials)} trials ({seeds} seeds)"
        )
    else:
        first = 1
        text = f"sweep {sweep.name}: {len(trials)} trials ({settings} settings x {seeds} seeds)"
    lines = [f"{text}{before}; folder {place}"]
    if sweep.asha is not None and first == 1:
        lines.append(
            f"ASHA: from {sweep.asha.first:.0%} of a training on, the best 1/{sweep.asha.factor:g} "
            "of the trials with the same data and seed go on"
        )
    return lines


def to_do(work: Work, slots: Slots, outer_slots: Slots, *, asha: bool, trials: int) -> list[str]:
    """How many networks will be trained, and about how long that takes.

    Args:
        work: what is missing.
        slots: for the trials.
        outer_slots: for the networks before the inner ones.
        asha: whether trials may be stopped early.
        trials: that are to be run.
    """
    most = " at most" if asha else ""
    parts = [
        f"{work.missing[role]} {name}{most if role == 'inner' else ''}"
        for role, name in NETWORKS.items()
        if work.needed[role]
    ]
    apart = trials * sum(count > 0 for count in work.needed.values())
    lines = [
        f"networks to train: {', '.join(parts)} (trials that share nothing: {apart}); "
        f"{work.updates:,} updates; {slots}"
    ]
    if work.seconds is None:
        lines.append(
            f"how long that takes is not estimated: {work.kinds} kinds of networks, and no more "
            f"than {MEASURED_SHAPES} are measured"
        )
    elif work.updates:
        before, inner = work.seconds
        minutes = (before / outer_slots.concurrent + inner / slots.concurrent) / 60
        lines.append(
            f"training them takes about {minutes:.1f} minutes{most}, by the speed of single "
            "updates here; labels, selection and the test set come on top"
        )
    return lines


def ended(trial: Trial, record: Record, count: int, total: int) -> str:
    """A trial's last line; it is the ``count``-th of ``total``."""
    values = " ".join(
        f"{key.rpartition('.')[2]}={short(value)}" for key, value in trial.values.items()
    )
    text = f"{record.status}, validation {percent(record.val_accuracy)}"
    if record.status == "finished":
        text += f", test {percent(record.row['test_accuracy'])}"
    if record.status == "stopped":
        text += f" after update {max(record.curve, default=0)}/{trial.config.steps_of('inner')}"
    if record.status == "failed":
        text = f"failed: {record.why.splitlines()[0] if record.why else ''}"
    return f"[{count}/{total}] {values} seed={trial.seed}: {text}"


def waiting(slots: Slots, free: Mapping[str, float], seconds: float) -> str:
    """That a cluster which others use has no room for a trial just now."""
    needs = slots.request()
    has = " and ".join(f"{free.get(name, 0):g} {name}" for name in needs)
    return (
        f"nothing has started for {seconds:.0f} s: a trial needs "
        f"{' and '.join(f'{amount:g} {name}' for name, amount in needs.items())} on one node, free "
        f"on the whole cluster: {has}; waiting for whoever uses it (`ray status` says more)"
    )
