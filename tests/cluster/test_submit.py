"""``kdfm submit``: what travels, what is refused here, and what becomes of the job."""

import json
from types import SimpleNamespace

import pytest

from kdfm_ray.cli import main
from kdfm_ray.jobs import submit as module
from kdfm_ray.jobs.submit import COMMAND, Submission, job_files, submit
from kdfm_ray.types import RunFailed, UserError


class Status(str):
    def is_terminal(self):
        return self in ("SUCCEEDED", "FAILED", "STOPPED")


class Client:
    """A cluster that remembers, and whose jobs end as they are told."""

    end = "SUCCEEDED"

    def __init__(self, jobs=()):
        self.jobs, self.seen = list(jobs), None

    def list_jobs(self):
        return self.jobs

    def submit_job(self, **job):
        from pathlib import Path

        folder = Path(job["runtime_env"].get("working_dir", "/nowhere"))
        self.files = {
            path.relative_to(folder).as_posix(): path.read_text()
            for path in folder.rglob("*")
            if path.is_file()
        }
        self.seen = job
        return "raysubmit_1"

    async def tail_job_logs(self, job):
        yield f"output of {job}\n"

    def get_job_status(self, job):
        return Status(self.end)

    def get_job_info(self, job):
        return SimpleNamespace(message="the entrypoint ended with 1\nmore")


@pytest.fixture
def client(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    found = Client()
    monkeypatch.setattr(module, "_connect", lambda address: found)
    return found


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with this project's code, beside much that nobody wants to send."""
    files = {
        "pyproject.toml": 'name = "kdfm_ray"',
        "kdfm_ray/__init__.py": "code",
        "experiments/mine.py": "preset",
        "experiments/results/a.jsonl": "{}",
        "runs/a/metrics.jsonl": "large",
        "data/1.png": "large",
        ".venv/lib/x.py": "large",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_code_of_a_checkout_travels_and_nothing_else(client, checkout, capsys):
    assert main(["submit", "digits", "--store", "s3://bucket/kdfm", "--train.steps", "7"]) == 0
    assert set(client.files) == {
        *("kdfm_ray/__init__.py", "experiments/mine.py", "experiments/results/a.jsonl")
    }
    command = "python -m kdfm_ray train digits --store s3://bucket/kdfm --train.steps 7"
    assert client.seen["entrypoint"] == command
    environment = client.seen["runtime_env"]["env_vars"]
    assert environment["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert not any("KEY" in name or "TOKEN" in name for name in environment)  # all would see them
    shown = capsys.readouterr().out
    assert "submitted as raysubmit_1, with 3 files" in shown
    assert "ray job stop --address http://127.0.0.1:8265 raysubmit_1" in shown
    assert "output of raysubmit_1" in shown


def test_elsewhere_only_the_presets_file_travels(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_text("large")
    assert job_files("digits") == []
    text = "from experiments.digits import digits\ndef mine():\n    return digits()\n"
    (tmp_path / "presets.py").write_text(text)
    assert main(["submit", "presets.py:mine", "--store", "s3://b", "--no-wait"]) == 0
    assert client.files == {"presets.py": text}
    assert main(["submit", "digits", "--store", "s3://b", "--no-wait"]) == 0
    assert "working_dir" not in client.seen["runtime_env"]


def test_a_sweep(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDFM_STORE", "s3://bucket/kdfm")
    assert main(["submit", "sweep", "smoke", "--seeds", "3,4", "--address", "http://x:1"]) == 0
    command = "python -m kdfm_ray sweep smoke --seeds 3,4 --store s3://bucket/kdfm"
    assert client.seen["entrypoint"] == command


def test_the_same_command_is_watched_where_it_runs_and_begun_where_it_ended(client):
    say = []
    once = Submission(["train", "digits"], [], "http://x", wait=False)
    metadata = {COMMAND: once.name}
    ended = SimpleNamespace(metadata=metadata, status=Status("STOPPED"), submission_id="old")
    other = SimpleNamespace(metadata=None, status=Status("RUNNING"), submission_id="else")
    client.jobs = [ended, other]
    submit(once, say.append)
    assert client.seen["metadata"] == metadata
    client.seen = None
    client.jobs += [
        SimpleNamespace(metadata=metadata, status=Status("RUNNING"), submission_id="now")
    ]
    submit(once, say.append)
    assert client.seen is None
    assert "the same command runs there already, as now" in say


@pytest.mark.parametrize("end", ["FAILED", "STOPPED"])
def test_a_job_that_did_not_succeed(client, end):
    client.end = end
    with pytest.raises(RunFailed, match=f"raysubmit_1 {end.lower()}: the entrypoint ended with 1"):
        submit(Submission(["train", "digits"], [], "http://x", wait=True), lambda text: None)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "store: artifacts have to outlive the job"),
        (["--store", "runs/store"], "store = runs/store: this is a folder of this machine"),
        (["--store", "s3://b", "--out", "runs/x"], "out = runs/x: this is a folder"),
        (["--store", "s3://b", "--data.root", "x", "--train.steps", "0"], "train.steps = '0'"),
        (["--store", "s3://b", "--data.root", "x"], "data.root = x: this is a folder"),
        (["--store", "s3://b", "--train.stepz", "0"], "did you mean --train.steps"),
        (["--store", "s3://user:pass@b"], "a URI with a password"),
    ],
)
def test_mistakes_are_told_before_anything_is_sent(client, capsys, monkeypatch, arguments, told):
    monkeypatch.delenv("KDFM_STORE", raising=False)
    assert main(["submit", "digits", *arguments]) == 2
    assert client.seen is None
    shown = capsys.readouterr().err
    assert told in shown
    assert "user:pass" not in shown


def test_folders_of_the_cluster_need_not_be_here(client):
    flags = ["--data.labeled", "/cluster/a", "--data.unlabeled", "/cluster/b", "--store", "/c"]
    assert main(["submit", *flags, "--no-wait"]) == 0
    assert client.seen["entrypoint"].startswith(
        "python -m kdfm_ray train --data.labeled /cluster/a"
    )


@pytest.mark.parametrize("preset", ["../presets.py:mine", "/tmp/presets.py:mine"])
def test_a_preset_outside_of_this_folder_is_refused(preset):
    with pytest.raises(UserError, match="lies outside of this folder"):
        job_files(preset)


def test_nobody_listens(monkeypatch, capsys):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    flags = ["--store", "s3://b", "--address", "http://127.0.0.1:9"]
    assert main(["submit", "digits", *flags]) == 2
    assert "no Ray cluster answers at http://127.0.0.1:9" in capsys.readouterr().err


def test_metadata_is_json():
    assert json.dumps(Submission(["train"], [], "http://x", wait=True).name)
