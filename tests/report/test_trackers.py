"""MLflow and Weights & Biases, by stand-ins that note what they are told."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from kdfm_ray.config import parse_config
from kdfm_ray.report.trackers import Careful, Nobody, open_tracker
from kdfm_ray.types import UserError

LOSS = {"stage": "outer", "step": 20, "total": 60, "loss": 1.5, "mask_rate": 0.25, "note": "text"}
REPORT = {"test_accuracy": {"outer": 0.5, "baseline": None}, "val_accuracy": {"outer": 0.25}}


def config(track):
    return parse_config({"data": {"name": "digits"}, "track": track, "train": {"steps": 60}})


class Calls(ModuleType):
    """A module whose functions note their names and arguments."""

    def __init__(self, name, broken=()):
        super().__init__(name)
        self.noted, self.broken = [], broken

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def note(*arguments, **named):
            if name in self.broken:
                raise ConnectionError("nobody listens")
            self.noted.append((name, *arguments, named))
            return self

        return note


@pytest.fixture
def told():
    return []


def test_nobody_is_told_by_default(told):
    with open_tracker(config("none"), "run", told.append) as tracker:
        tracker.log(LOSS)
        tracker.finish(REPORT)
    assert told == []


def test_mlflow(told, monkeypatch):
    mlflow = Calls("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with open_tracker(config("mlflow"), "pets", told.append) as tracker:
        tracker.log({"stage": "outer", "state": "start"})
        tracker.log(LOSS)
        tracker.finish(REPORT)
    begin, parameters, line, accuracies, report, end = mlflow.noted
    assert begin == ("start_run", {"run_name": "pets"})
    assert parameters[1]["train.steps"] == 60
    assert line == ("log_metrics", {"outer/loss": 1.5, "outer/mask_rate": 0.25}, {"step": 20})
    assert accuracies[1] == {"test_accuracy/outer": 0.5, "val_accuracy/outer": 0.25}
    assert report[:3] == ("log_dict", REPORT, "report.json")
    assert end == ("end_run", "FINISHED", {})


def test_wandb(told, monkeypatch):
    wandb = Calls("wandb")
    wandb.summary = SimpleNamespace(update=lambda values: wandb.noted.append(("summary", values)))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    with open_tracker(config("wandb"), "pets", told.append) as tracker:
        tracker.log(LOSS)
        tracker.finish(REPORT)
    begin, *axes, line, summary, end = wandb.noted
    assert begin[0] == "init"
    assert begin[1]["name"] == "pets"
    assert ("define_metric", "inner/*", {"step_metric": "inner/step"}) in axes
    assert line == ("log", {"outer/loss": 1.5, "outer/mask_rate": 0.25, "outer/step": 20}, {})
    assert summary == ("summary", {"test_accuracy/outer": 0.5, "val_accuracy/outer": 0.25})
    assert end == ("finish", {"exit_code": 0})


def test_a_run_that_fails_ends_as_failed(told, monkeypatch):
    mlflow = Calls("mlflow")
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    with (
        pytest.raises(FloatingPointError),
        open_tracker(config("mlflow"), "pets", told.append),
    ):
        raise FloatingPointError
    assert mlflow.noted[-1] == ("end_run", "FAILED", {})


def test_a_server_that_goes_away_is_told_once_and_stops_nothing(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", Calls("mlflow", broken=("log_metrics", "end_run")))
    with open_tracker(config("mlflow"), "pets", told.append) as tracker:
        tracker.log(LOSS)
        tracker.log(LOSS)
    (event,) = told
    assert event["note"] == ("warning: Mlflow does not take this (nobody listens); the run goes on")


@pytest.mark.parametrize("track", ["mlflow", "wandb"])
def test_a_package_that_is_missing(track, told, monkeypatch):
    monkeypatch.setitem(sys.modules, track, None)
    with pytest.raises(UserError, match=rf"pip install 'kdfm_ray\[{track}\]', or track none"):
        open_tracker(config(track), "pets", told.append)


def test_one_that_cannot_begin(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", Calls("mlflow", broken=("start_run",)))
    with pytest.raises(UserError, match="track = mlflow cannot begin: nobody listens"):
        open_tracker(config("mlflow"), "pets", told.append)


def test_the_two_kinds_are_trackers():
    assert isinstance(Careful(Nobody(), print), Careful)


def test_who_watches_changes_no_result():
    assert config("mlflow").hash() == config("none").hash()
