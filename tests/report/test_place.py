"""Run folders behind URIs, and where they lie when nobody says."""

import json

import fsspec
import pytest

from kdfm_ray.report.place import JOB, Mirror, default_place, folder_at, read_folder, submitted_job
from kdfm_ray.types import RunFailed, UserError


@pytest.fixture(autouse=True)
def own_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def url():
    files = fsspec.filesystem("memory")
    files.store.clear()
    return "memory://bucket/runs/a"


def read(url):
    files, root = fsspec.url_to_fs(url)
    return {path[len(root) :].lstrip("/"): files.cat_file(path) for path in files.find(root)}


def test_only_a_submitted_job_has_it_beside_the_artifacts(monkeypatch):
    monkeypatch.delenv(JOB, raising=False)
    assert submitted_job() is None
    assert default_place("runs", "a-1", "s3://b/kdfm") == "runs/a-1"
    monkeypatch.setenv(JOB, json.dumps({"metadata": {"job_submission_id": "raysubmit_1"}}))
    assert submitted_job() == "raysubmit_1"
    assert default_place("runs", "a-1", "s3://b/kdfm/") == "s3://b/kdfm/runs/a-1"
    assert default_place("sweeps", "a-1", "/shared/kdfm") == "/shared/kdfm/sweeps/a-1"
    monkeypatch.setenv(JOB, "not json")
    assert submitted_job() is None


def test_a_folder_of_this_machine_is_itself(tmp_path):
    with folder_at(str(tmp_path / "x"), print) as path:
        assert path == tmp_path / "x"
        assert not path.exists()


def test_what_is_written_arrives_behind_the_uri_also_when_the_run_fails(url):
    def fail():
        with folder_at(url, print) as path:
            (path / "tensorboard").mkdir(parents=True)
            (path / "tensorboard" / "events").write_text("e")
            (path / "metrics.jsonl").write_text("1\n")
            (path / ".lock").write_text("not this")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert read(url) == {"tensorboard/events": b"e", "metrics.jsonl": b"1\n"}
    with folder_at(url, print) as path:  # goes on with what is there, as another machine would
        assert (path / "metrics.jsonl").read_text() == "1\n"
        assert not (path / ".lock").exists()
        (path / "metrics.jsonl").write_text("1\n2\n")
        (path / "tensorboard" / "events").unlink()
    assert read(url) == {"metrics.jsonl": b"1\n2\n"}


def test_only_what_changed_is_copied(url, monkeypatch):
    mirror = Mirror(url)
    mirror.fetch()
    mirror.local.mkdir(parents=True, exist_ok=True)
    for name in "ab":
        (mirror.local / name).write_text(name)
    copied = []
    files = type(fsspec.filesystem("memory"))
    put = files.put_file

    def note(self, source, target, **more):
        copied.append(target.rpartition("/")[2])
        put(self, source, target, **more)

    monkeypatch.setattr(files, "put_file", note)
    assert mirror.push() is None
    (mirror.local / "b").write_text("more")
    assert mirror.push() is None
    assert copied in (["a", "b", "b"], ["b", "a", "b"])


def no_space(monkeypatch):
    def full(*args, **more):
        raise OSError("no space")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "put_file", full)


def test_a_place_that_cannot_be_written_fails_the_run_and_loses_nothing(url, monkeypatch):
    told, places = [], []

    def run():
        with folder_at(url, told.append) as path:
            path.mkdir(parents=True, exist_ok=True)
            (path / "report.json").write_text("{}")
            places.append(path)
            no_space(monkeypatch)

    with pytest.raises(RunFailed, match=r"runs/a cannot be written now .*: copy") as error:
        run()
    assert str(places[0]) in str(error.value)
    assert (places[0] / "report.json").read_text() == "{}"
    assert told == []


def test_the_reason_why_a_run_failed_counts_before_that_of_its_folder(url, monkeypatch):
    told = []

    def run():
        with folder_at(url, told.append) as path:
            path.mkdir(parents=True, exist_ok=True)
            (path / "report.json").write_text("{}")
            no_space(monkeypatch)
            raise UserError("something else")

    with pytest.raises(UserError, match="something else"):
        run()
    (note,) = told
    assert url in note["note"]
    assert "cannot be written now" in note["note"]


def test_reading_does_not_touch_the_copy_of_a_run(url):
    with folder_at(url, print) as path:
        path.mkdir(parents=True, exist_ok=True)
        (path / "report.json").write_text("{}")
        assert not list(read_folder(url).glob("*"))  # nothing has been copied there yet
        assert (path / "report.json").exists()
    assert (read_folder(url) / "report.json").read_text() == "{}"


def test_no_such_kind_of_uri():
    with pytest.raises(UserError, match="nosuch://x cannot be opened"):
        Mirror("nosuch://x")
