"""A report of whatever stages there are; a run folder that says what differs."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdfm_ray.config import parse_config
from kdfm_ray.pipeline import Left
from kdfm_ray.report.data import TIMED, make_report
from kdfm_ray.report.run_folder import RunFolder
from kdfm_ray.store import Artifact
from kdfm_ray.types import UserError

CONFIG = parse_config({"recipe": "paper", "data": {"name": "digits"}})
FILTER = {"size": 10, "coverage": 0.5, "precision": 0.9}
NETWORK = {"seconds": 1.0, "val_accuracy": 0.5, "notes": [], "last": {"loss": 1.0}, "warnings": []}
RECORDS = {
    "dataset": {
        "name": "digits",
        "classes": ["a", "b"],
        "image_shape": [8, 8, 1],
        "num_test": 5,
        "seconds": 1.0,
        "data_warnings": ["small pictures"],
    },
    "split": {
        "num_labeled": 4,
        "num_unlabeled": 20,
        "num_val": 2,
        "split_hash": "h",
        "split_warnings": [],
    },
    "baseline": NETWORK,
    "outer": NETWORK | {"resumed": [7]},
    "labels": {"seconds": 1.0, "warnings": ["one class"]},
    "trusted": {
        "seconds": 1.0,
        "warnings": [],
        "filters": {"all": FILTER, "confidence": FILTER, "agreement": FILTER},
    },
    "inner": NETWORK,
    "evaluation": {
        "seconds": 1.0,
        "test_accuracy": {"baseline": 0.5, "outer": 0.6, "inner": 0.7},
    },
}


def finished(stages):
    artifacts = {
        stage: Artifact(stage, "k", lambda: None, lambda s=stage: json.dumps(RECORDS[s]), (), open)
        for stage in stages
    }
    return Left(CONFIG, {}, artifacts, {}, [], 1.0, {})


@given(st.sets(st.sampled_from(sorted(RECORDS))))
@settings(deadline=None, max_examples=60)
def test_any_subset_of_stages_gives_a_report(stages):
    report = json.loads(json.dumps(make_report(finished(stages))))
    assert set(report["stages"]) == {name for name, at in TIMED.items() if at in stages}
    assert (report["trusted"] is None) == ("trusted" not in stages)
    assert set(report["val_accuracy"]) == {
        {"baseline": "labeled_only"}.get(role, role)
        for role in ("baseline", "outer", "inner")
        if role in stages
    }
    assert ("one class" in report["warnings"]) == ("labels" in stages)
    if "outer" in stages:
        assert report["resumed"]["outer"] == [7]


def start(folder, **changes):
    values = CONFIG.model_dump(mode="json")
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (values[section] if section else values)[field] = value
    return RunFolder(folder, parse_config(values))


def test_an_unfinished_run_is_gone_on_with_or_told_from_another(tmp_path):
    start(tmp_path).open()
    assert start(tmp_path).note == ""
    assert start(tmp_path, scale__num_workers=3, faults__save_every=5).note == ""
    note = start(tmp_path, select__tau_select=0.7).note
    assert "select.tau_select was 0.8, is 0.7" in note
    with pytest.raises(UserError, match=r"an unfinished run with another config \(seed was 0"):
        start(tmp_path, seed=3)
    with pytest.raises(UserError, match=r"train.steps was 2000, is 9"):
        start(tmp_path, train__steps=9, select__tau_select=0.7)


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("store", "the store was a, is other"),
        ("images", "the images are others"),
        ("numerics", "precision and layout were a, are other"),
        ("outer network", "the file of weights, or the code that trains"),
    ],
)
def test_the_same_config_over_other_things_is_told_and_nothing_is_overwritten(tmp_path, what, told):
    begun = dict.fromkeys(("store", "images", "split", "numerics", "outer network"), "a")
    start(tmp_path).open(begun)
    start(tmp_path).open(begun)
    (tmp_path / "metrics.jsonl").write_text("kept")
    with pytest.raises(UserError, match=told):
        start(tmp_path).open(begun | {what: "other"})
    assert (tmp_path / "metrics.jsonl").read_text() == "kept"


def test_metrics_of_an_earlier_try_stay(tmp_path):
    """Even if the next try ends at once; a line that was cut is dropped, none is there twice."""
    folder = start(tmp_path)
    folder.open({"numerics": "fp32 channels_last"})
    for stage in ("outer", "inner"):
        for step in (1, 2):
            folder.log({"stage": stage, "step": step, "loss": 1.0})
    folder.close()
    metrics = tmp_path / "metrics.jsonl"
    before = metrics.read_text()
    metrics.write_text(before + '{"stage": "inner", "st')
    again = start(tmp_path)
    assert again.begun_with == "fp32 channels_last"
    again.open()
    again.log({"stage": "outer", "step": 2, "loss": 1.0})
    again.close()
    assert metrics.read_text() == before
    other = start(tmp_path, select__tau_select=0.5)
    other.open()
    other.close()
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"outer"}
    (tmp_path / "begun.json").write_text("")
    assert start(tmp_path, select__tau_select=0.5).begun_with is None


def test_a_full_disk_is_told_once_and_the_line_comes_later(tmp_path, monkeypatch):
    folder = start(tmp_path)
    folder.open()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "_write", full)
        assert "No space left" in folder.log({"stage": "outer", "step": 1, "loss": 1.0})
        assert folder.log({"stage": "outer", "step": 2, "loss": 1.0}) is None
    assert folder.log({"stage": "outer", "step": 1, "loss": 1.0}) is None
    folder.close()
    assert '"step": 1' in (tmp_path / "metrics.jsonl").read_text()


def test_a_finished_run_takes_no_other_config(tmp_path):
    start(tmp_path).open()
    (tmp_path / "report.json").write_text("{}")
    assert start(tmp_path).note == ""
    with pytest.raises(UserError, match=r"holds a run with another config \(select.tau_select"):
        start(tmp_path, select__tau_select=0.7)
