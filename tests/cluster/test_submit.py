"""``kdfm submit``: what travels, what is refused here, and what becomes of the job."""

import json
import os
import shlex
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdfm_ray.cli import main
from kdfm_ray.jobs import submit as module
from kdfm_ray.jobs.submit import Submission, job_files, pack, submit
from kdfm_ray.types import RunFailed, UserError

ROOT = Path(__file__).parent.parent.parent
KB = 1000


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
        self.files, self.seen = {}, job
        if "working_dir" in job["runtime_env"]:
            with zipfile.ZipFile(job["runtime_env"]["working_dir"]) as archive:
                self.files = {name: archive.read(name).decode() for name in archive.namelist()}
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
    assert client.files == {"kdfm_ray/__init__.py": "code", "experiments/mine.py": "preset"}
    command = "python -m kdfm_ray train digits --store s3://bucket/kdfm --train.steps 7"
    assert client.seen["entrypoint"] == command
    environment = client.seen["runtime_env"]["env_vars"]
    assert environment["RAY_JOB_STOP_SIGNAL"] == "SIGINT"
    assert not any("KEY" in name or "TOKEN" in name for name in environment)  # all would see them
    shown = capsys.readouterr().out
    assert "submitted as raysubmit_1, with 2 files (0 KB)" in shown
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


def job_of(submission, status, name):
    metadata = None if submission is None else submission.metadata
    return SimpleNamespace(metadata=metadata, status=Status(status), submission_id=name)


def test_the_same_is_watched_where_it_runs_and_begun_where_it_ended(client, checkout):
    say = []
    once = Submission(["train", "digits"], job_files(""), "http://x", wait=False)
    other = Submission(["train", "digits", "--seed", "1"], job_files(""), "http://x", wait=False)
    client.jobs = [job_of(once, "STOPPED", "old"), job_of(None, "RUNNING", "else")]
    client.jobs += [job_of(other, "RUNNING", "seed")]
    submit(once, say.append)
    assert client.seen["metadata"] == once.metadata
    client.seen = None
    client.jobs += [job_of(once, "RUNNING", "now")]
    submit(once, say.append)
    assert client.seen is None
    assert "the same command runs there already, with the same code, as now" in say


def test_the_same_command_with_other_code_is_refused_while_it_runs(client, checkout):
    """It would be told that its new code runs, or two jobs would do the same work."""
    before = Submission(["train", "digits"], job_files(""), "http://x", wait=False)
    client.jobs = [job_of(before, "RUNNING", "now")]
    (checkout / "kdfm_ray" / "__init__.py").write_text("other code")
    now = Submission(["train", "digits"], job_files(""), "http://x", wait=False)
    with pytest.raises(UserError, match="with other code than this folder's, as now: stop it"):
        submit(now, lambda text: None)
    assert client.seen is None
    (job,) = client.jobs
    job.status = Status("STOPPED")
    submit(now, lambda text: None)
    assert client.files["kdfm_ray/__init__.py"] == "other code"


def test_what_travels_is_a_few_hundred_kb_and_arrives_whole(tmp_path, monkeypatch):
    """Of this project: the zip of `kdfm submit`, unpacked by Ray itself."""
    from ray._private.runtime_env.packaging import get_uri_for_package, unzip_package

    monkeypatch.chdir(ROOT)
    files = job_files("digits")
    archive, again = tmp_path / "a.zip", tmp_path / "b.zip"
    size = pack(files, archive)
    assert size == archive.stat().st_size
    assert 100 * KB < size < 500 * KB
    os.utime(files[0])
    pack(files[::-1], again)
    assert get_uri_for_package(archive) == get_uri_for_package(again)  # sent once
    target = tmp_path / "there"
    unzip_package(str(archive), str(target), remove_top_level_directory=False, unlink_zip=False)
    arrived = {each.relative_to(target) for each in target.rglob("*") if each.is_file()}
    assert arrived == set(files)
    assert {Path("kdfm_ray/__main__.py"), Path("experiments/digits.py")} <= arrived
    assert all((target / file).read_bytes() == file.read_bytes() for file in files)


def test_ray_leaves_here_what_jobs_do_without(tmp_path, monkeypatch):
    """`ray job submit --working-dir .`, by .gitignore and .rayignore; Ray does not compress it."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    monkeypatch.chdir(ROOT)
    archive = tmp_path / "a.zip"
    excludes = get_runtime_env_default_excludes()
    create_package(".", archive, include_gitignore=True, excludes=excludes)
    assert archive.stat().st_size < 1500 * KB
    with zipfile.ZipFile(archive) as packed:
        sent = {Path(name) for name in packed.namelist()}
    needed = {file for file in job_files("digits") if "peers" not in file.parts}
    assert needed <= sent
    ours = {"tests", "docs", "cluster.yaml", "constraints.txt", "README.md", ".ci", ".gitignore"}
    assert not ours & {file.parts[0] for file in sent}
    below = {file.parts[1] for file in sent if file.parts[0] == "experiments"}
    assert not below & {"results", "peers", "cluster", "LOG.md"}


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


def test_a_file_of_results_that_the_job_would_not_have(client, capsys):
    flags = ["--store", "s3://b", "--no-wait", "--results"]
    assert main(["submit", "sweep", "smoke", *flags, "experiments/results/x.jsonl"]) == 2
    assert "results = experiments/results/x.jsonl: files of results do not travel" in (
        capsys.readouterr().err
    )
    assert client.seen is None
    for place in ("none", "/shared/x.jsonl"):
        assert main(["submit", "sweep", "smoke", *flags, place]) == 0
        assert place in shlex.split(client.seen["entrypoint"])


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


def test_metadata_is_text_as_ray_asks_for():
    metadata = Submission(["train"], [], "http://x", wait=True).metadata
    assert all(isinstance(text, str) for text in json.loads(json.dumps(metadata)).values())
