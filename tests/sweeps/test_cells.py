"""Results that were recorded are still those of the sweeps as they are written now."""

import json

import pytest

from experiments import SWEEPS, load_sweep
from kdfm_ray.sweeps.space import make_trials

RECORDED = [name for name in SWEEPS if load_sweep(name).results is not None]


@pytest.mark.parametrize("name", RECORDED)
def test_each_recorded_cell_belongs_to_a_trial(name):
    sweep = load_sweep(name)
    if not sweep.results.is_file():
        pytest.skip("was never run")
    recorded = {json.loads(line)["config_hash"] for line in sweep.results.read_text().splitlines()}
    trials = {trial.config.hash() for trial in make_trials(sweep, sweep.settings())}
    assert recorded <= trials, "a change of the config has made recorded results unfindable"
