"""Whose a sweep's folder is, and what `kdfm sweep --status` says of it; nothing is run."""

import io
import json
import time

import pytest
from rich.console import Console

from kdfm_ray import Asha, UserError, grid
from kdfm_ray.config import CAME_LATER, NOT_IN_HASH, Config, DataConfig
from kdfm_ray.sweeps.folder import NOW, SWEEP, check_folder, is_running, locked, write_json
from kdfm_ray.sweeps.ledger import Ledger
from kdfm_ray.sweeps.results import summarize, trial_rows, write_tables
from kdfm_ray.sweeps.space import make_sweep, make_trials
from kdfm_ray.sweeps.status import print_status

BASE = Config(recipe="paper", data=DataConfig(name="digits", num_labels=100))
GRID = make_sweep(name="g", base=BASE, seeds=(0, 1), space={"inner.loss": grid("ce", "sce")})
CASES = make_sweep(
    name="c", base=BASE, seeds=(0, 1), cases=({"inner.loss": "sce"}, {"select.tau_select": 0.5})
)


def status(place):
    text = io.StringIO()
    print_status(str(place), Console(file=text, width=200, highlight=False))
    return text.getvalue()


def begin(folder, sweep):
    """A folder as a driver leaves it while the first trial is finished and the second one runs."""
    folder.mkdir(exist_ok=True)
    write_json(folder / SWEEP, {"sweep": sweep.same_as(), "fields": sweep.fields})
    ledger, trials = Ledger(folder), make_trials(sweep, sweep.settings())
    write(folder, sweep, trials, Ledger(folder / "none"))  # before the first one
    finish(ledger, trials[0])
    ledger.start(trials[1].id, {}, "i")
    ledger.validation(trials[1].id, 10, 0.4, 1.0)
    jobs = {trials[1].id: {"stage": "inner", "step": 30, "total": 100}}
    write_json(folder / NOW, {"phase": "inner networks", "jobs": jobs, "time": time.time()})
    return ledger, trials


def finish(ledger, trial):
    row = {"val_accuracy": 0.5 + trial.setting / 10, "test_accuracy": 0.25}
    ledger.start(trial.id, {}, "i")
    ledger.end(trial.id, "finished", row=row, seconds=2.0)


def write(folder, sweep, trials, ledger):
    rows = trial_rows(trials, ledger.records)
    write_tables(folder, rows, summarize(rows, sweep.fields))


@pytest.mark.parametrize("sweep", [GRID, CASES], ids=["grid", "cases"])
def test_a_sweep_that_runs(tmp_path, sweep):
    _, trials = begin(tmp_path, sweep)
    with locked(tmp_path):
        assert is_running(tmp_path)
        text = status(tmp_path)
    assert f"sweep {sweep.name} in {tmp_path} runs now: 1 finished, 1 running, 2 waiting" in text
    assert "now: inner networks" in text
    assert f"{trials[1].id}: KD-FixMatch (inner) network 30/100" in text
    assert "goes on with what is missing" not in text


def test_one_whose_driver_died_says_how_it_goes_on(tmp_path):
    begin(tmp_path, GRID)
    with locked(tmp_path):
        pass
    assert not is_running(tmp_path)
    text = status(tmp_path)
    assert "is not running: 1 finished, 3 waiting" in text
    assert "the command that started it goes on with what is missing" in text
    assert "now:" not in text


@pytest.mark.parametrize("sweep", [GRID, CASES], ids=["grid", "cases"])
def test_a_finished_one_has_its_best_settings(tmp_path, sweep):
    ledger, trials = begin(tmp_path, sweep)
    for trial in trials:
        finish(ledger, trial)
    write(tmp_path, sweep, trials, ledger)
    text = status(tmp_path)
    assert "is not running: 4 finished" in text
    assert "goes on with what is missing" not in text
    lines = text.splitlines()
    head = next(line for line in lines if "validation" in line)
    assert all(name in head for name in sweep.fields)  # of cases, too
    first, second = (line for line in lines if "±" in line)
    assert ("60.0" in first, "50.0" in second) == (True, True)
    assert ("sce" in first) == (sweep is GRID)


def test_a_folder_of_before_fields_were_kept_shows_those_of_its_space(tmp_path):
    ledger, trials = begin(tmp_path, GRID)
    for trial in trials:
        finish(ledger, trial)
    write(tmp_path, GRID, trials, ledger)
    saved = json.loads((tmp_path / SWEEP).read_text())
    write_json(tmp_path / SWEEP, {"sweep": saved["sweep"]})
    assert "inner.loss" in status(tmp_path)


def test_before_trials_are_planned_and_where_there_is_no_sweep(tmp_path):
    with locked(tmp_path):
        assert "reads its images and plans its trials" in status(tmp_path)
    with pytest.raises(UserError, match="no sweep in"):
        status(tmp_path)


def test_only_one_process_runs_a_sweep_in_a_folder(tmp_path):
    again = locked(tmp_path)
    with locked(tmp_path), pytest.raises(UserError, match="another process runs the sweep"):
        again.__enter__()


@pytest.mark.parametrize("whole", [True, False])
def test_folders_of_before_a_field_came_go_on_and_those_that_have_it(tmp_path, whole):
    base = BASE.model_dump(mode="json", exclude=NOT_IN_HASH | {"seed": True})
    if not whole:
        for section, fields in CAME_LATER.items():
            for name in fields:
                (base[section] if section else base).pop(name)
    write_json(tmp_path / SWEEP, {"sweep": GRID.same_as() | {"base": base}})
    check_folder(tmp_path, GRID)
    other = GRID.changed(base=BASE.model_copy(update={"equal_compute": True}))
    with pytest.raises(UserError, match=r"base.equal_compute was .*, is True"):
        check_folder(tmp_path, other)
    with pytest.raises(UserError, match=r"holds another sweep .*asha"):
        check_folder(tmp_path, GRID.changed(asha=Asha()))
