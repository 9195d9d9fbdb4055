"""What a sweep says of its work."""

from kdfm_ray import Asha, choice, grid
from kdfm_ray.config import Config, DataConfig
from kdfm_ray.sweeps import words
from kdfm_ray.sweeps.plan import MEASURED_SHAPES, Work
from kdfm_ray.sweeps.slots import Slots
from kdfm_ray.sweeps.space import make_sweep, make_trials

BASE = Config(data=DataConfig(name="digits", num_labels=100))
ONE, TWO = Slots(1, 1, 2, 0, False), Slots(2, 1, 1, 0, False)


def work(seconds, kinds=1, updates=1200):
    missing = {"baseline": 0, "outer": 2, "longer": 0, "inner": 8}
    return Work(missing, missing | {"outer": 3}, updates, seconds, kinds)


def test_networks_and_minutes():
    first, second = words.to_do(work((120.0, 480.0)), TWO, ONE, asha=False, trials=8)
    assert "networks to train: 2 outer, 8 inner (trials that share nothing: 16)" in first
    assert "1,200 updates; 2 trials at once, 1 CPU each" in first
    assert "about 6.0 minutes, by" in second  # outer ones one after the other, inner ones by two


def test_with_asha_all_is_at_most():
    first, second = words.to_do(work((0.0, 60.0)), ONE, ONE, asha=True, trials=8)
    assert "8 inner at most" in first
    assert "1.0 minutes at most" in second


def test_many_kinds_of_networks_are_not_estimated_and_that_is_said():
    _, second = words.to_do(work(None, kinds=7), ONE, ONE, asha=False, trials=8)
    assert "not estimated: 7 kinds of networks" in second
    assert f"no more than {MEASURED_SHAPES}" in second


def test_where_all_networks_are_there_no_time_is_given():
    assert len(words.to_do(work((0.0, 0.0), updates=0), ONE, ONE, asha=False, trials=8)) == 1


def test_a_grid_says_how_many_trials_it_has():
    space = {"inner.loss": grid("ce", "sce", "gce")}
    sweep = make_sweep(name="s", base=BASE, seeds=(0, 1), space=space, asha=Asha())
    first, second = words.begun(sweep, make_trials(sweep, sweep.settings()), 2, "runs/s")
    assert first == (
        "sweep s: 6 trials (3 settings x 2 seeds), 2 of them done before; folder runs/s"
    )
    assert "from 25% of a training on, the best 1/3" in second


def test_a_search_by_optuna_says_how_many_there_will_be():
    space = {"select.tau_select": choice(0.5, 0.6, 0.7, 0.8, 0.9)}
    sweep = make_sweep(
        name="s", base=BASE, seeds=(0, 1), space=space, search="optuna", samples=26, asha=Asha()
    )
    settings = [{"select.tau_select": value} for value in (0.5, 0.6, 0.7, 0.8)]
    (line,) = words.begun(sweep, make_trials(sweep, settings, 4), 0, "runs/s")  # the second round
    assert "settings 5 to 8 of 26 by Optuna, 8 of 52 trials (2 seeds); folder runs/s" in line


def test_a_cluster_that_is_busy():
    text = words.waiting(Slots(4, 1, 2, 0.5, False), {"CPU": 3.0, "memory": 1e9}, 61.2)
    assert "nothing has started for 61 s" in text
    assert "needs 1 CPU and 0.5 GPU" in text
    assert "free on the whole cluster: 3 CPU and 0 GPU" in text
