"""What a run that fails leaves in its folder, by a pipeline that only pretends."""

import json

import pytest

import kdfm_ray as kdfm
from kdfm_ray.pipeline import Left
from kdfm_ray.report.run_folder import RunFolder
from kdfm_ray.types import RunFailed, UserError

SKIPPED = {"path": "a.png", "reason": "empty (0 bytes)"}
BEGUN = {"stage": "data", "state": "done", "begun": {"store": "s"}}
LINE = {"stage": "outer", "step": 1, "total": 2, "loss": 1.0}


@pytest.fixture
def fail(tmp_path, monkeypatch):
    """Fail with an error after some events, knowing facts; gives the report, if one is left."""

    def run(error, *events, facts=None, **settings):
        def pretend(config, emit, *, left, **_):
            for event in events:
                emit(event)
            left(Left(config, {}, {}, facts or {}, [], 1.0, {}), error)
            raise error

        monkeypatch.setattr("kdfm_ray.pipeline.run", pretend)
        with pytest.raises(type(error)):
            kdfm.train("digits", out=tmp_path / "run", settings=settings, progress=False)
        report = tmp_path / "run" / "report.json"
        assert report.exists() == (tmp_path / "run" / "report.html").exists()
        return json.loads(report.read_text()) if report.exists() else None

    return run


def test_reason_and_facts(fail, tmp_path):
    report = fail(UserError("too many <odd> files\n  a.png"), facts={"skipped": [SKIPPED]})
    assert (report["finished"], report["failed"]) == (False, "too many <odd> files\n  a.png")
    assert report["data"]["skipped"] == [SKIPPED]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "too many &lt;odd&gt; files<br>  a.png" in page
    assert "a.png</td><td>empty (0 bytes)" in page
    with pytest.raises(UserError, match="ended early"):
        kdfm.load(tmp_path / "run")


def test_a_mistake_before_images_are_read_leaves_nothing(fail, tmp_path):
    assert fail(UserError("no such folder")) is None
    assert fail(KeyboardInterrupt()) is None
    assert not (tmp_path / "run").exists()
    assert fail(RunFailed("no cluster answers"))["failed"] == "no cluster answers"


def test_before_anything_was_trained_the_folder_takes_other_settings(fail):
    fail(RunFailed("first"), **{"train.steps": 7})
    assert fail(RunFailed("second"), **{"train.steps": 8})["failed"] == "second"
    fail(RunFailed("third"), BEGUN, LINE, **{"train.steps": 8})
    with pytest.raises(UserError, match="holds an unfinished run with another config"):
        fail(RunFailed("fourth"), **{"train.steps": 9})
    again = fail(FloatingPointError("fifth"), BEGUN, **{"train.steps": 8})
    assert again["failed"] == "fifth", "the newest reason"


def test_the_folder_of_another_run_is_left_alone(fail, tmp_path, monkeypatch):
    fail(RunFailed("mine"), BEGUN)
    other = BEGUN | {"begun": {"store": "another"}}

    def pretend(config, emit, *, left, **_):
        try:
            emit(other)
        except UserError as error:
            left(Left(config, {}, {}, {"skipped": []}, [], 1.0, {}), error)
            raise

    monkeypatch.setattr("kdfm_ray.pipeline.run", pretend)
    with pytest.raises(UserError, match="the store was s, is another"):
        kdfm.train("digits", out=tmp_path / "run", progress=False)
    assert json.loads((tmp_path / "run" / "report.json").read_text())["failed"] == "mine"


@pytest.mark.parametrize("content", ['{"finished": true}', "{}", "{damaged"])
def test_a_finished_report_stays(fail, tmp_path, content):
    fail(RunFailed("mine"), BEGUN)
    (tmp_path / "run" / "report.json").write_text(content)
    (tmp_path / "run" / "report.html").write_text("page")
    config = kdfm.config.Config.from_yaml(tmp_path / "run" / "config.yaml")
    assert not RunFolder(tmp_path / "run", config).may_be_left
    if content != "{damaged":
        assert fail(RunFailed("later"), BEGUN) == json.loads(content)
    assert (tmp_path / "run" / "report.html").read_text() == "page"


def test_the_tensorboard_file_is_closed(fail, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr("tensorboardX.SummaryWriter.close", lambda self: closed.append(self))
    fail(RunFailed("mine"), BEGUN, LINE)
    assert len(closed) == 1
    assert list((tmp_path / "run" / "tensorboard").iterdir())
