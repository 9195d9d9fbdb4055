"""MLflow and Weights & Biases themselves, where they are installed: a local folder, no network."""

import json
import os

import pytest

from kdfm_ray.config import parse_config
from kdfm_ray.report.trackers import open_tracker

pytestmark = [
    pytest.mark.slow,
    # Theirs: old names that they import, files and sockets that they leave to the collector.
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
LINES = [
    {"stage": "outer", "step": 20, "total": 40, "loss": 1.5, "pseudo_label_precision": None},
    {"stage": "outer", "step": 40, "total": 40, "loss": 0.5, "mask_rate": 0.25},
    {"stage": "inner", "step": 20, "total": 40, "val_accuracy": 0.75},
]
REPORT = {"test_accuracy": {"outer": 0.5, "inner": None}, "val_accuracy": {"inner": 0.75}}


def watch(track, told, *, fails=False):
    config = parse_config({"data": {"name": "digits"}, "track": track, "train": {"steps": 40}})
    with open_tracker(config, "pets", told.append) as tracker:
        for line in LINES:
            tracker.log(line)
        if fails:
            raise FloatingPointError
        tracker.finish(REPORT)


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    """It, with a store of files in a folder of its own."""
    found = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # which newer versions want to hear
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of a test")
    return found


def kept(mlflow):
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("of a test")
    return client, client.search_runs([experiment.experiment_id])


def test_mlflow(mlflow, tmp_path):
    told = []
    watch("mlflow", told)
    assert told == []
    client, (run,) = kept(mlflow)
    assert (run.info.status, run.info.run_name) == ("FINISHED", "pets")
    assert run.data.params["train.steps"] == "40"
    assert run.data.metrics == {
        "outer/loss": 0.5,
        "outer/mask_rate": 0.25,
        "inner/val_accuracy": 0.75,
        "test_accuracy/outer": 0.5,
        "val_accuracy/inner": 0.75,
    }
    history = client.get_metric_history(run.info.run_id, "outer/loss")
    assert [(line.step, line.value) for line in history] == [(20, 1.5), (40, 0.5)]
    (report,) = (tmp_path / "runs").rglob("report.json")
    assert json.loads(report.read_text()) == REPORT


def test_mlflow_of_a_run_that_fails(mlflow):
    with pytest.raises(FloatingPointError):
        watch("mlflow", [], fails=True)
    _, (run,) = kept(mlflow)
    assert run.info.status == "FAILED"


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "HOME": tmp_path}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("WANDB_SILENT", "true")
    told = []
    watch("wandb", told)
    assert told == []
    wandb.teardown()  # its own process writes the rest
    (log,) = tmp_path.rglob("run-*.wandb")
    content = log.read_bytes()
    for expected in (b"outer/loss", b"inner/val_accuracy", b"test_accuracy/outer", b"train.steps"):
        assert expected in content, expected
