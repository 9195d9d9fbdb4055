"""Ray: its version, the cluster that would be joined, who could reach it, and the store."""

from __future__ import annotations

import os
import socket
from importlib.metadata import version
from pathlib import Path

import psutil

from kdfm_ray.doctor.findings import Finding, error, ok, warning
from kdfm_ray.types import UserError

TRIED = "2.60"  # with which this version was tested
DASHBOARD_PORTS = range(8265, 8276)  # Ray takes the next where one is taken
SERVERS = ("gcs_server", "raylet", "dashboard")  # processes of Ray that listen
MIB = 2**20
LARGE_UPLOAD = 100 * MIB  # Ray refuses 500


def ray_version() -> Finding:
    """Driver and cluster need the same."""
    found = version("ray")
    if not found.startswith(TRIED + "."):
        return warning("Ray", f"{found}; kdfm_ray was tested with {TRIED}", f"ray=={TRIED}.*")
    return ok("Ray", found)


def token() -> Finding:
    """Who may use a cluster with authentication: whoever can read this file."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if not path.is_file():
        return ok("token", "none; Ray makes one when it is needed")
    if path.stat().st_mode & 0o077:
        return warning("token", f"others can read {path}", f"chmod 600 {path}")
    return ok("token", f"{path}, for you alone")


def ports() -> Finding:
    """Servers of Ray on this machine that other machines can reach."""
    try:
        listening = [each for each in psutil.net_connections("tcp") if each.status == "LISTEN"]
    except psutil.AccessDenied:
        return ok("ports", "cannot be listed without more rights")
    found = []
    for each in listening:
        name = _name(each.pid)
        of_ray = any(server in name for server in SERVERS)
        if of_ray and each.laddr and not _is_loopback(each.laddr.ip):
            found.append((each.laddr.port, name))
    if not found:
        return ok("ports", "no server of Ray here listens beyond this machine")
    text = ", ".join(f"{port} ({name})" for port, name in sorted(set(found)))
    if any(port in DASHBOARD_PORTS for port, _ in found):
        return warning(
            "ports",
            f"the dashboard is open to the network: {text}",
            "whoever reaches it runs code here: ray start --dashboard-host=127.0.0.1, use "
            "RAY_AUTH_MODE=token, and a firewall",
        )
    return warning(
        "ports",
        f"open to the network: {text}",
        "whoever reaches them runs code here: a firewall, and RAY_AUTH_MODE=token",
    )


def upload() -> Finding:
    """What `kdfm submit` would send from this folder."""
    from kdfm_ray.jobs.submit import job_files

    files = job_files("")
    size = sum(file.stat().st_size for file in files)
    text = f"{len(files)} files, {size / MIB:.1f} MiB before they are compressed"
    if not files:
        return ok("upload", "nothing: this folder is no checkout, jobs use what the cluster has")
    if size > LARGE_UPLOAD:
        return warning("upload", text, "move large files out of the folder that jobs are sent from")
    return ok("upload", text)


def cluster_and_store(store: str) -> list[Finding]:
    """Start or join Ray as a run does, and have all its nodes look into the store."""
    from kdfm_ray.config import ScaleConfig
    from kdfm_ray.jobs.session import open_session
    from kdfm_ray.jobs.shared import check_shared
    from kdfm_ray.store import Store

    address = os.environ.get("RAY_ADDRESS")
    if address is None and "://" not in store:
        return [
            ok("cluster", "none named by RAY_ADDRESS: runs start a Ray of their own, on loopback"),
            _store(store),
        ]
    if address is None:
        found = ok("cluster", "none named by RAY_ADDRESS: runs start a Ray of their own")
        return [found, _store(store)]
    notes: list[str] = []
    try:
        with open_session(
            ScaleConfig(), lambda event: notes.append(str(event.get("note", ""))), wait_minutes=0.1
        ) as session:
            found = ok("cluster", f"{address}: {session.room}")
            check_shared(session, Store(store))
    except UserError as problem:
        if "store" in str(problem):
            return [found, error("store", str(problem), "all nodes have to see one store")]
        return [error("cluster", str(problem), "see above")]
    except Exception as problem:
        return [error("cluster", f"{address}: {problem}", "see `ray status` there")]
    return [found, ok("store", f"{store}: every node can use it")]


def _store(store: str) -> Finding:
    from kdfm_ray.store import Store

    try:
        found = Store(store)
        found.check()
        if not found.remote:
            probe = Path(found.root) / f".check-{os.getpid()}"
            probe.write_text(socket.gethostname())
            probe.unlink()
    except (UserError, OSError) as problem:
        return error("store", f"{store}: {problem}", "give another with --store or KDFM_STORE")
    return ok("store", f"{found.root} can be written")


def _name(pid: int | None) -> str:
    try:
        return psutil.Process(pid).name() if pid else ""
    except psutil.Error:
        return ""


def _is_loopback(address: str) -> bool:
    return address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") or address.startswith("127.")
