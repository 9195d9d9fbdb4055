"""``kdfm submit``: the same command line on a cluster, as a job.

What the job needs of this machine's files travels with it, compressed: the code of a checkout, and
a preset's file. Nothing else does, so a folder of images beside them is not uploaded by mistake.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shlex
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdfm_ray.config import NO_FILE, content_hash
from kdfm_ray.types import RunFailed, UserError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"  # where `ray dashboard cluster.yaml` opens its tunnel
CODE = ("kdfm_ray", "experiments")  # folders of a checkout, whose *.py travel
TOKEN = Path("~/.ray/auth_token")
ENVIRONMENT = {
    # `ray job stop` is then what Ctrl-C is here: networks save their state before they end.
    "RAY_JOB_STOP_SIGNAL": "SIGINT",
    "RAY_JOB_STOP_WAIT_TIME_S": "120",
    "PYTHONUNBUFFERED": "1",
}
# Names of the job's metadata that tell one command, and one state of the code, from another.
COMMAND, FILES = "kdfm_command", "kdfm_files"
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
    def metadata(self) -> dict[str, str]:
        """What the job is told from others by: its command, and the files that travel with it."""
        contents = {
            file.as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in self.files
        }
        return {COMMAND: content_hash(list(self.command)), FILES: content_hash(contents)}


def job_files(preset: str) -> list[Path]:
    """Files that a job needs: this folder's code, if it is a checkout, and the preset's file.

    Raises:
        UserError: the preset's file lies outside of this folder.
    """
    found = []
    if is_checkout(Path()):
        found += [path for folder in CODE for path in Path(folder).rglob("*.py")]
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


def check_results(results: str) -> list[str]:
    """The mistake, if it is one, in a sweep's ``--results``: a file of finished cells, or none."""
    if results in ("", "none") or results.startswith(("/", "~")):
        return []
    return [
        f"results = {results}: files of results do not travel, and the job's own folder is thrown "
        "away: give the whole path of a file in a folder that all nodes share, or none"
    ]


def submit(submission: Submission, say: Callable[[str], None]) -> None:
    """Submit, unless the same runs there already; show its output until it ends.

    Raises:
        UserError: no cluster answers, it does not let us in, or the same command runs there with
            other code.
        RunFailed: the job failed or was stopped.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token" if _has_token() else "disabled")
    client = _connect(submission.address)
    metadata = submission.metadata
    job = _running(client, metadata, submission.address)
    if job:
        say(f"the same command runs there already, with the same code, as {job}")
    else:
        with tempfile.TemporaryDirectory() as folder:
            environment: dict[str, Any] = {"env_vars": dict(ENVIRONMENT)}
            sent = ""
            if submission.files:
                archive = Path(folder) / "kdfm.zip"
                size = pack(submission.files, archive)
                environment["working_dir"] = str(archive)
                sent = f", with {len(submission.files)} files ({size / 1000:.0f} KB)"
            job = client.submit_job(
                entrypoint=shlex.join(["python", "-m", "kdfm_ray", *submission.command]),
                runtime_env=environment,
                metadata=metadata,
            )
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


def _running(client: Any, metadata: dict[str, str], address: str) -> str:
    """The id of a job that does the same and has not ended, or nothing.

    Raises:
        UserError: one has the same command and other code.
    """
    for job in client.list_jobs():
        theirs = job.metadata or {}
        if theirs.get(COMMAND) != metadata[COMMAND] or job.status.is_terminal():
            continue
        name = str(job.submission_id)
        if theirs.get(FILES) != metadata[FILES]:
            raise UserError(
                f"the same command runs there already, with other code than this folder's, as "
                f"{name}: stop it (`ray job stop --address {address} {name}`; its state is saved) "
                "and submit again, which goes on with the new code, or only watch it: "
                f"`ray job logs --follow --address {address} {name}`"
            )
        return name
    return ""


def pack(files: Sequence[Path], archive: Path) -> int:
    """Write ``files`` into a compressed zip; returns its size in bytes.

    Ray would send a folder as it is. Equal files make equal zips, which Ray sends only once.
    """
    with zipfile.ZipFile(archive, "w") as writer:
        for file in sorted(files):
            entry = zipfile.ZipInfo(file.as_posix())  # without a date
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            writer.writestr(entry, file.read_bytes(), compresslevel=9)
    return archive.stat().st_size


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
