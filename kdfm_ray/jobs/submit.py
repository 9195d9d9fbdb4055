"""``kdfm submit``: the same command line on a cluster, as a job.

What the job needs of this machine's files travels with it: the code of a checkout, and a preset's
file. Nothing else does, so a folder of images beside them is not uploaded by mistake.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdfm_ray.config import NO_FILE, content_hash
from kdfm_ray.types import RunFailed, UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"  # where `ray dashboard cluster.yaml` opens its tunnel
CODE = {"kdfm_ray": ("*.py",), "experiments": ("*.py", "*.jsonl")}  # of a checkout
TOKEN = Path("~/.ray/auth_token")
ENVIRONMENT = {
    # `ray job stop` is then what Ctrl-C is here: networks save their state before they end.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
    "PYTHONUNBUFFERED": "1",
}
COMMAND = "kdfm_command"  # name of the job's metadata that tells one command from another
POLL_SECONDS = 2.0


@dataclass(frozen=True)
class Submission:
    """What is to be submitted.

    Attributes:
        command: arguments of ``kdfm``.
        files: relative to the current folder; they travel with the job.
        address: of the cluster's dashboard.
        wait: show the job's output until it ends.
    """

    command: Sequence[str]
    files: Sequence[Path]
    address: str
    wait: bool

    @property
    def name(self) -> str:
        """The same for the same command."""
        return content_hash(list(self.command))


def job_files(preset: str) -> list[Path]:
    """Files that a job needs: this folder's code, if it is a checkout, and the preset's file.

    Raises:
        UserError: the preset's file lies outside of this folder.
    """
    found = []
    if is_checkout(Path()):
        for folder, patterns in CODE.items():
            found += [path for pattern in patterns for path in Path(folder).rglob(pattern)]
    file = preset.rpartition(":")[0]
    if file:
        path = Path(file)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(
                f"{file} lies outside of this folder, and would not be found on the cluster: give "
                "it relative to a folder above it, from there"
            )
        if not path.is_file():
            raise UserError(f"there is no preset file {file} here")
        found.append(path)
    return sorted(set(found))


def is_checkout(folder: Path) -> bool:
    """Whether it holds this project's own code, which then runs in place of what is installed."""
    project = folder / "pyproject.toml"
    return project.is_file() and 'name = "kdfm_ray"' in project.read_text()


def check_places(values: dict[str, Any], store: str | None) -> list[str]:
    """Mistakes in nested config values about folders, which are those of the cluster.

    Args:
        values: as for ``parse_config``.
        store: what is given, or ``$KDFM_STORE``.
    """
    problems = []
    if store is None:
        problems.append(
            "store: artifacts have to outlive the job: give --store with a URI, as "
            "s3://bucket/prefix, or a folder that all nodes of the cluster share"
        )
    places = {"store": store, "out": values.get("out"), "model.pretrained": None}
    if values["model"]["pretrained"] not in NO_FILE:
        places["model.pretrained"] = values["model"]["pretrained"]
    data = values["data"]
    places |= {f"data.{name}": data[name] for name in ("labeled", "unlabeled", "test", "root")}
    for name, place in places.items():
        if place is not None and "://" not in place and not place.startswith(("/", "~")):
            problems.append(
                f"{name} = {place}: this is a folder of this machine, and the job runs on the "
                "cluster: give a URI, or the whole path of a folder that all its nodes share"
            )
    return problems


def submit(submission: Submission, say: Callable[[str], None]) -> None:
    """Submit, unless the same command runs there already; show its output until it ends.

    Raises:
        UserError: no cluster answers, or it does not let us in.
        RunFailed: the job failed or was stopped.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token() else "disabled")
    client = _connect(submission.address)
    job = _running(client, submission.name)
    if job:
        say(f"the same command runs there already, as {job}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            size = _gather(submission.files, Path(folder))
            environment: dict[str, Any] = {"env_vars": dict(ENVIRONMENT)}
            if submission.files:
                environment["working_dir"] = folder
            job = client.submit_job(
                entrypoint=shlex.join(["python", "-m", "kdfm_ray", *submission.command]),
                runtime_env=environment,
                metadata={COMMAND: submission.name},
            )
        sent = f", with {len(submission.files)} files ({size / 1000:.0f} KB)" if size else ""
        say(f"submitted as {job}{sent}")
    where = f"--address {submission.address} {job}"
    say(f"its output: ray job logs --follow {where}")
    say(f"stop it, its state saved: ray job stop {where}; the same command goes on")
    if submission.wait:
        try:
            asyncio.run(_follow(client, job))
        except KeyboardInterrupt:
            say(f"{job} goes on without us")
            return
        _tell_end(client, job)


def _connect(address: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    # It logs what it uploads; we say so in our own words.
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
        client.list_jobs()
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at {address}: start it (`ray up cluster.yaml`), open the "
            "tunnel to its dashboard (`ray dashboard cluster.yaml`) and leave it open, or give "
            "another --address"
        ) from error
    except Exception as error:
        text = str(error)
        if any(word in text for word in ("401", "403", "uthenticat", "uthoriz", "token")):
            raise UserError(
                f"the cluster at {address} does not let us in: ~/.ray/auth_token here has to be "
                "the file that was there when the cluster was started"
            ) from error
        raise RunFailed(f"the cluster at {address} does not take jobs: {text}") from error
    return client


def _has_token() -> bool:
    given = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    return TOKEN.expanduser().is_file() or any(name in os.environ for name in given)


def _running(client: Any, name: str) -> str:
    """The id of a job that does the same and has not ended."""
    for job in client.list_jobs():
        if (job.metadata or {}).get(COMMAND) == name and not job.status.is_terminal():
            return str(job.submission_id)
    return ""


def _gather(files: Sequence[Path], folder: Path) -> int:
    """Copy them into ``folder``; returns their size in bytes."""
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)
    return sum(file.stat().st_size for file in files)


async def _follow(client: Any, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def _tell_end(client: Any, job: str) -> None:
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(POLL_SECONDS)  # its output ended, and its processes are about to
    if status == "SUCCEEDED":
        return
    message = client.get_job_info(job).message or "no reason given"
    raise RunFailed(
        f"{job} {status.lower()}: {message.splitlines()[0]}. What is finished or saved is in the "
        "store, and the same command goes on"
    )
