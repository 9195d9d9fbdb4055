"""The driver of a sweep without a cluster: what it notes, writes and compares."""

import io
import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from kdfm_ray import UserError, grid
from kdfm_ray.config import Config, DataConfig, TrainConfig
from kdfm_ray.sweeps import run as module
from kdfm_ray.sweeps.ledger import Ledger
from kdfm_ray.sweeps.run import _Driver
from kdfm_ray.sweeps.slots import Slots
from kdfm_ray.sweeps.space import make_sweep, make_trials
from kdfm_ray.sweeps.view import SweepView

BASE = Config(
    data=DataConfig(name="digits", num_labels=100),
    train=TrainConfig(precision="fp32", memory_format="channels_last"),
)
SWEEP = make_sweep(name="s", base=BASE, seeds=(0,), space={"inner.loss": grid("ce", "sce")})
TRIALS = make_trials(SWEEP, SWEEP.settings())
ROW = {"val_accuracy": 0.5, "test_accuracy": 0.4}


class Driver(_Driver):
    """With what it said, and plans that are made up: ``now`` is the key of all inner networks."""

    def __init__(self, folder, sweep=SWEEP):
        self.text = io.StringIO()
        store = sweep.base.model_copy(update={"store": str(folder / "store")})
        super().__init__(
            sweep.model_copy(update={"base": store}),
            folder,
            str(folder),
            SweepView(Console(file=self.text, width=200)),
        )
        self._trials = {trial.id: trial for trial in TRIALS}
        self.now, self.planned, self.ran = "i", [], []
        self._slots = lambda jobs: Slots(1, 1, 2, 0, False)

    def check(self, trials):
        self._planner = SimpleNamespace(plan=self._made_up, found=lambda trials: {})

    def _made_up(self, trials):
        self.planned += [trial.id for trial in trials]
        plan = SimpleNamespace(inner=self.now, outer="o", before_labels={"outer": "o"})
        return [SimpleNamespace(trial=trial, plan=plan) for trial in trials]


@pytest.fixture
def driver(tmp_path):
    return Driver(tmp_path)


def test_a_page_that_cannot_be_written_ends_no_trial_and_is_said_once(driver, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a heat map of nothing")

    driver._note_sweep()
    monkeypatch.setattr(module, "write_page", broken)
    for trial in TRIALS:
        driver._last_page = -1e9
        driver.ended(trial.id, "finished", {"row": ROW, "seconds": 1.0})
    assert [Ledger(driver.path).of(trial.id).status for trial in TRIALS] == ["finished"] * 2
    assert driver.text.getvalue().count("a heat map of nothing") == 1
    driver._last_page = -1e9
    driver._look_after(Slots(1, 1, 2, 0, False))
    with pytest.raises(ValueError, match="a heat map"):
        driver.finish()  # at the end it is an error


def test_finished_trials_are_recorded_though_the_file_came_later(tmp_path):
    first = Driver(tmp_path)
    first.ended(TRIALS[0].id, "finished", {"row": ROW, "seconds": 3.0})
    file = tmp_path / "cells.jsonl"
    again = Driver(tmp_path, SWEEP.changed(results=file))
    again.run(TRIALS[:1])
    (line,) = [json.loads(text) for text in file.read_text().splitlines()]
    assert (line["config_hash"], line["seconds"]) == (TRIALS[0].config.hash(), 3.0)
    Driver(tmp_path, SWEEP.changed(results=file)).run(TRIALS[:1])
    assert len(file.read_text().splitlines()) == 1


def test_all_that_was_run_is_compared_before_anything_else_is(driver):
    """Not only the trials of this round, nor those with the data of what is to be run."""
    ledger = driver._ledger
    ledger.start(TRIALS[0].id, {"outer": "o"}, "of before")
    ledger.end(TRIALS[0].id, "stopped")
    with pytest.raises(UserError, match=r"1 trials in .* another version of kdfm_ray"):
        driver._plan(TRIALS[1:])
    assert driver.planned == [TRIALS[0].id]
    driver.now = "of before"
    assert [each.trial for each in driver._plan(TRIALS[1:])] == TRIALS[1:]


def test_trials_that_fail_with_their_outer_network_have_its_key(driver, monkeypatch):
    driver._failed["o"] = "a NaN"
    monkeypatch.setattr(driver, "_units", lambda planned: {})
    monkeypatch.setattr(module, "missing_work", lambda *args: None)
    monkeypatch.setattr(module.words, "to_do", lambda *args, **kwargs: [])
    driver._session = None
    driver.run(TRIALS)
    rows = driver.rows()
    assert [row["status"] for row in rows] == ["failed"] * 2
    assert [row["outer_key"] for row in rows] == ["o"] * 2
    assert rows[0]["why"] == "its outer network: a NaN"


def test_a_busy_cluster_is_said_once_until_a_trial_has_started(driver, monkeypatch):
    ray = SimpleNamespace(available_resources=lambda: {"CPU": 1.0})
    monkeypatch.setitem(__import__("sys").modules, "ray", ray)
    clock = SimpleNamespace(now=100.0)
    time = SimpleNamespace(monotonic=lambda: clock.now, time=lambda: 0.0)
    monkeypatch.setattr(module, "time", time)
    driver._last_busy = driver._last_page = 100.0
    monkeypatch.setattr(driver, "_try_to_write", lambda: None)

    def said(seconds):
        for _ in range(seconds):
            clock.now += 1
            driver._look_after(Slots(1, 1, 2, 0, False))
        return driver.text.getvalue().count("nothing has started")

    assert said(58) == 0
    assert said(100) == 1
    assert "a trial needs 2 CPU on one node, free on the whole cluster: 1 CPU" in (
        driver.text.getvalue().replace("\n", " ")
    )
    driver.view.begin("t")
    assert said(100) == 1
    driver.view.end("t")
    assert said(58) == 1
    assert said(10) == 2
