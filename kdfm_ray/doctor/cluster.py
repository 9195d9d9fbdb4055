"""Ray: its version, the cluster that would be joined, who could reach it, and the store."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import psutil

from kdfm_ray.doctor.findings import Finding, error, ok, unknown, warning
from kdfm_ray.types import UserError

TRIED = "2.60"  # with which this version was tested
DASHBOARD_PORTS = range(8265, 8276)  # Ray takes the next where one is taken
CONTROL_STORE_PORT, CLIENT_PORT = 6379, 10001
# By what a command line is known as one of Ray's servers: the program's name, or an argument's end.
PROGRAMS = {"gcs_server": "control store", "raylet": "raylet"}
SCRIPTS = {
    "dashboard/dashboard.py": "dashboard",
    "ray.util.client.server": "Ray client server",
    "default_worker.py": "worker",
}
MIB, GIB = 2**20, 2**30
SMALL_OBJECT_STORE = GIB // 2  # with less, what tasks hand to each other goes to disk
TOO_SMALL_OBJECT_STORE = 75 * MIB  # with which Ray does not start
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
    look_again = "look as the user who runs Ray, or as root: sudo kdfm doctor"
    try:
        listening = [each for each in psutil.net_connections("tcp") if each.status == "LISTEN"]
    except psutil.AccessDenied:
        return unknown("ports", "cannot be listed without more rights", look_again)
    servers = sorted(
        {
            (each.laddr.port, _server(each.pid))
            for each in listening
            if each.laddr and not _is_loopback(each.laddr.ip)
        },
        key=str,
    )
    open_ = [(port, name) for port, name in servers if name]
    hidden = [port for port, name in servers if name is None]
    perhaps = [(port, name) for port in hidden if (name := _usual_server(port))]
    if open_:
        return _open_ports(open_)
    if perhaps:
        return warning(
            "ports",
            "open to the network, by processes that cannot be seen: "
            + ", ".join(f"{port} (perhaps the {name})" for port, name in perhaps),
            f"{look_again}; if it is Ray, a firewall, and RAY_AUTH_MODE=token",
        )
    if hidden:
        listed = ", ".join(map(str, hidden))
        text = f"Ray may listen beyond this machine: who has port {listed} cannot be seen"
        return unknown("ports", text, look_again)
    return ok("ports", "no server of Ray here listens beyond this machine")


def _open_ports(found: Sequence[tuple[int, str]]) -> Finding:
    text = ", ".join(f"{port} ({name})" for port, name in found)
    for name in ("dashboard", "Ray client server"):
        if name in (each for _, each in found):
            return warning(
                "ports",
                f"the {name} is open to the network: {text}",
                "whoever reaches it runs code here: ray start --dashboard-host=127.0.0.1, use "
                "RAY_AUTH_MODE=token, and a firewall",
            )
    return warning(
        "ports",
        f"open to the network: {text}",
        "whoever reaches them runs code here: a firewall, and RAY_AUTH_MODE=token",
    )


def object_store() -> Finding:
    """What a Ray that is started here would give its object store."""
    from ray._private.utils import estimate_available_memory, resolve_object_store_memory

    size = resolve_object_store_memory(estimate_available_memory())
    return _object_store([size], "a Ray that is started here would take {}")


def _object_store(sizes: Sequence[int], text: str) -> Finding:
    """Judge the smallest of these sizes in bytes; ``text`` has a place for all of them in words."""
    least, most = min(sizes), max(sizes)
    words = f"{least / GIB:.1f} GiB"
    if len(sizes) > 1:
        words = f"{words} to {most / GIB:.1f} GiB a node, {sum(sizes) / GIB:.1f} GiB in all"
    told = text.format(words)
    mend = (
        "end other programs, or give the machine more memory (a container: also more /dev/shm); "
        "nodes of a cluster: ray start --object-store-memory=BYTES"
    )
    if least < TOO_SMALL_OBJECT_STORE:
        return error("object store", f"{told}: Ray needs {TOO_SMALL_OBJECT_STORE // MIB} MiB", mend)
    if least < SMALL_OBJECT_STORE:
        return warning("object store", f"{told}: what does not fit is written to disk", mend)
    return ok("object store", told)


def _of_cluster() -> Finding:
    """The object stores of the cluster that was joined."""
    import ray

    live = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    sizes = [int(each["object_store_memory"]) for each in live if "object_store_memory" in each]
    if not sizes:
        return unknown("object store", "no node tells its size", "see `ray status` there")
    count = f"{len(sizes)} nodes" if len(sizes) > 1 else "its node"
    return _object_store(sizes, f"{count} with {{}}")


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
        found = ok(
            "cluster", "none named by RAY_ADDRESS: runs start a Ray of their own, on loopback"
        )
        return [found, object_store(), _store(store)]
    if address is None:
        found = ok("cluster", "none named by RAY_ADDRESS: runs start a Ray of their own")
        return [found, object_store(), _store(store)]
    found_there = []
    notes: list[str] = []
    try:
        with open_session(
            ScaleConfig(), lambda event: notes.append(str(event.get("note", ""))), wait_minutes=0.1
        ) as session:
            found_there = [ok("cluster", f"{address}: {session.room}"), _of_cluster()]
            check_shared(session, Store(store))
    except UserError as problem:
        if found_there:
            return [*found_there, error("store", str(problem), "all nodes have to see one store")]
        return [error("cluster", str(problem), "see above")]
    except Exception as problem:
        return [error("cluster", f"{address}: {problem}", "see `ray status` there")]
    return [*found_there, ok("store", f"{store}: every node can use it")]


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


def _server(pid: int | None) -> str | None:
    """Which of Ray's servers a process is; empty for others, ``None`` where it cannot be seen."""
    if pid is None:
        return None
    try:
        command = psutil.Process(pid).cmdline()
    except psutil.NoSuchProcess:
        return ""
    except psutil.Error:
        return None
    return _server_of(command)


def _server_of(command: Sequence[str]) -> str:
    if not command:
        return ""
    if command[0].startswith("ray::"):
        return command[0].split()[0]
    program = PROGRAMS.get(command[0].split()[0].rpartition("/")[2], "")
    scripts = (name for end, name in SCRIPTS.items() for each in command if each.endswith(end))
    return program or next(scripts, "")


def _usual_server(port: int) -> str:
    """Which of Ray's servers usually has this port; empty where it is none's."""
    if port in DASHBOARD_PORTS:
        return "dashboard"
    usual = {CONTROL_STORE_PORT: "control store", CLIENT_PORT: "Ray client server"}
    return usual.get(port, "")


def _is_loopback(address: str) -> bool:
    return address in ("127.0.0.1", "::1", "::ffff:127.0.0.1") or address.startswith("127.")
