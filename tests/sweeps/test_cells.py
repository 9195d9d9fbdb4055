"""Results that were recorded are still those of the sweeps as they are written now."""

import json

import pytest

from experiments import SWEEPS, load_sweep
from kdfm_ray.sweeps.ledger import Cells
from kdfm_ray.sweeps.space import make_trials

RECORDED = [name for name in SWEEPS if load_sweep(name).results is not None]


@pytest.mark.parametrize("name", RECORDED)
def test_each_recorded_cell_counts_for_a_trial(name, request):
    """By its config, and by the versions of the stages that made it."""
    sweep = load_sweep(name)
    if not sweep.results.is_file():
        pytest.skip("was never run")
    if name == "evidence_pretrained":
        request.getfixturevalue("lite0_weights")
    lines = [json.loads(line) for line in sweep.results.read_text().splitlines()]
    cells = Cells(sweep.results, {})
    found = [cells.find(trial) for trial in make_trials(sweep, sweep.settings())]
    found = [line["config_hash"] for line in found if line is not None]
    assert sorted(found) == sorted({line["config_hash"] for line in lines}), (
        "a change of the config, or of a stage's version, has made recorded results unfindable"
    )
