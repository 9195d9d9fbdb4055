"""Who is stopped, by Tune's ASHA within groups; no cluster."""

from dataclasses import dataclass

import pytest

from kdfm_ray import Asha, grid
from kdfm_ray.config import Config, DataConfig, TrainConfig
from kdfm_ray.sweeps.asha import GroupedScheduler
from kdfm_ray.sweeps.space import make_sweep, make_trials

BASE = Config(
    recipe="paper", data=DataConfig(name="digits"), train=TrainConfig(steps=100, eval_every=25)
)
ASHA = Asha(first=0.25, factor=2)


@dataclass
class TuneTrial:
    """What Tune hands to its schedulers, as far as ours look at it."""

    trial_id: str
    config: dict


def trials_of(*num_labels, settings=4):
    space = {
        "data.num_labels": grid(*num_labels),
        "select.tau_select": grid(*[0.5 + n / 10 for n in range(settings)]),
    }
    sweep = make_sweep(name="s", base=BASE, seeds=(0,), space=space)
    return make_trials(sweep, sweep.settings())


def scheduler_of(trials, asha=ASHA):
    scheduler = GroupedScheduler({trial.id: trial for trial in trials}, asha)
    handles = {}
    for number, trial in enumerate(trials):
        handles[trial.id] = TuneTrial(f"tune_{number}", {"job": {"id": trial.id}})
        scheduler.on_trial_add(None, handles[trial.id])

    def report(trial, step, accuracy):
        result = {"step": step, "val_accuracy": accuracy}
        return scheduler.on_trial_result(None, handles[trial.id], result)

    return scheduler, report


def test_who_is_behind_is_stopped():
    trials = trials_of(100)
    _, report = scheduler_of(trials)
    assert report(trials[0], 25, 0.6) == "CONTINUE"
    assert report(trials[1], 25, 0.5) == "STOP"
    assert report(trials[2], 25, 0.7) == "CONTINUE"
    assert report(trials[3], 25, 0.55) == "STOP"


def test_nobody_is_stopped_before_the_first_rung_or_at_the_last_update():
    trials = trials_of(100)
    _, report = scheduler_of(trials)
    assert report(trials[0], 10, 0.9) == "CONTINUE"
    assert report(trials[1], 10, 0.1) == "CONTINUE"
    assert report(trials[0], 100, 0.9) == "CONTINUE"  # its test accuracy is still to come
    assert report(trials[1], 100, 0.1) == "CONTINUE"


def test_hard_cells_are_ranked_among_themselves():
    """With few labels every accuracy is lower; ranked with the others all of them would stop."""
    trials = trials_of(40, 400)
    _, report = scheduler_of(trials)
    hard, easy = trials[:4], trials[4:]
    assert [report(t, 25, 0.9 + n / 100) for n, t in enumerate(easy)] == ["CONTINUE"] * 4
    assert [report(t, 25, 0.4 + n / 100) for n, t in enumerate(hard)] == ["CONTINUE"] * 4


def test_without_asha_all_run_in_full():
    trials = trials_of(100)
    _, report = scheduler_of(trials, None)
    assert [report(t, 25, 0.9 - n / 5) for n, t in enumerate(trials)] == ["CONTINUE"] * 4


def test_what_was_reported_before_a_restart_still_counts():
    trials = trials_of(100)
    scheduler, report = scheduler_of(trials)
    scheduler.replay(trials[0].id, {25: 0.8})
    assert report(trials[1], 25, 0.7) == "STOP"


def test_a_trial_that_goes_on_is_not_ranked_against_itself():
    trials = trials_of(100)
    scheduler, report = scheduler_of(trials)
    scheduler.replay(trials[0].id, {25: 0.8, 50: 0.85})
    assert report(trials[0], 25, 0.1) == "CONTINUE"  # reported anew; it counts once
    assert report(trials[1], 25, 0.81) == "CONTINUE"
    assert report(trials[1], 50, 0.84) == "STOP"


@pytest.mark.parametrize("result", [{"ended": {"status": "finished"}}, {}])
def test_reports_without_an_accuracy_stop_nobody(result):
    trials = trials_of(100)
    scheduler, _ = scheduler_of(trials)
    handle = TuneTrial("tune_0", {"job": {"id": trials[0].id}})
    assert scheduler.on_trial_result(None, handle, result) == "CONTINUE"


def test_outer_networks_are_not_ranked():
    trials = trials_of(100)
    scheduler, _ = scheduler_of(trials)
    handle = TuneTrial("tune_9", {"job": {"id": "outer-0123"}})
    scheduler.on_trial_add(None, handle)
    assert scheduler.on_trial_result(None, handle, {"step": 25, "val_accuracy": 0}) == "CONTINUE"
