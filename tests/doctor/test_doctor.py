"""What kdfm doctor says of machines that are fit, and of those that are not."""

import json
import os
from collections import namedtuple
from types import SimpleNamespace

import pytest

from kdfm_ray import cli
from kdfm_ray.doctor import as_json, as_lines, cluster, examine, failed, machine
from kdfm_ray.doctor.findings import Finding, State, error, ok, warning

GIB = 2**30
Usage = namedtuple("Usage", "total used free")


def test_this_machine_is_fit(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = list(examine(str(tmp_path / "store")))
    assert not failed(found), as_lines(found)
    names = {each.name for each in found}
    assert {"Python", "torch", "GPU", "FAISS", "shared memory", "Ray", "ports"} <= names
    assert {"object store", "store"} <= names
    assert all(each.mend for each in found if each.state is not State.OK)
    assert list((tmp_path / "store").iterdir()) == [], "nothing is left behind"


@pytest.mark.parametrize(
    ("free", "state"), [(200 * GIB, "ok"), (5 * GIB, "warning"), (GIB // 2, "error")]
)
def test_disks(free, state, monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(500 * GIB, 0, free))
    found = machine.disks(str(tmp_path / "a" / "folder" / "to" / "be"))
    assert [each.state for each in found] == [state, state]
    assert str(tmp_path) in found[1].text


def test_a_store_behind_a_uri_is_no_disk():
    assert [each.name for each in machine.disks("s3://bucket/prefix")] == ["disk (temporary)"]


def test_the_small_shared_memory_of_a_container(monkeypatch):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: Usage(2**26, 0, 2**26))
    found = machine.shared_memory()
    assert found.state is State.WARNING
    assert "--shm-size" in found.mend


def test_a_gpu_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = machine.torch()[1]
    assert (found.name, found.state) == ("GPU", State.ERROR)
    assert "driver" in found.mend


def test_faiss_without_the_gpu_that_torch_has(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("faiss.get_num_gpus", lambda: 0, raising=False)
    found = machine.faiss()
    assert found.state is State.WARNING
    assert "faiss-gpu" in found.mend


def test_few_open_files(monkeypatch):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda what: (1024, 524_288))
    found = machine.open_files()
    assert (found.state, found.mend) == (State.WARNING, "ulimit -n 65536")


def test_a_token_that_others_can_read(tmp_path, monkeypatch):
    file = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert cluster.token().state is State.OK
    file.write_text("secret")
    file.chmod(0o644)
    assert cluster.token() == warning("token", f"others can read {file}", f"chmod 600 {file}")
    file.chmod(0o600)
    assert cluster.token().state is State.OK


def listening(*servers):
    return [
        SimpleNamespace(status="LISTEN", laddr=SimpleNamespace(ip=ip, port=port), pid=pid)
        for ip, port, pid in servers
    ]


COMMANDS = {  # pid -> command line, as they are seen while Ray runs
    1: ["/x/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp/ray/dashboard/dashboard.py.log"],
    2: ["/x/ray/core/src/ray/raylet/raylet", "--raylet_socket_name=/tmp/ray/s/sockets/raylet"],
    3: ["/x/bin/python", "-u", "/x/ray/dashboard/dashboard.py", "--host=0.0.0.0"],
    4: ["/x/bin/python", "/x/ray/setup_worker.py", "-m", "ray.util.client.server", "--port=10001"],
    5: ["ray::DashboardAgent"],
    6: ["nginx: master process"],
    7: ["/x/bin/python", "serve.py", "--socket=/tmp/ray/s/sockets/raylet"],
}


class Seen:
    """A process of that table; 8 is another user's, 9 is gone."""

    def __init__(self, pid):
        if pid == 9:
            raise cluster.psutil.NoSuchProcess(pid)
        self.pid = pid

    def cmdline(self):
        if self.pid == 8:
            raise cluster.psutil.AccessDenied(self.pid)
        return COMMANDS[self.pid]


@pytest.mark.parametrize(
    ("servers", "state", "told"),
    [
        ([("127.0.0.1", 8265, 3)], "ok", "no server"),
        ([("::ffff:127.0.0.1", 6379, 1), ("127.0.0.1", 22, None)], "ok", "no server"),
        ([("0.0.0.0", 8265, 6), ("0.0.0.0", 80, 7), ("::", 81, 9)], "ok", "no server"),
        ([("0.0.0.0", 8265, 3)], "warning", "the dashboard is open to the network"),
        ([("::", 10001, 4)], "warning", "the Ray client server is open to the network: 10001"),
        ([("10.0.0.3", 6379, 1)], "warning", "open to the network: 6379 (control store)"),
        ([("0.0.0.0", 40001, 2), ("::", 52365, 5)], "warning", "40001 (raylet), 52365 (ray::Dash"),
        ([("0.0.0.0", 22, None), ("::", 5432, 8)], "unknown", "who has port 22, 5432 cannot be"),
        ([("::", 8265, None)], "warning", "cannot be seen: 8265 (perhaps the dashboard)"),
        ([("::", 10001, 8)], "warning", "cannot be seen: 10001 (perhaps the Ray client server)"),
    ],
)
def test_ports(servers, state, told, monkeypatch):
    monkeypatch.setattr(cluster.psutil, "net_connections", lambda kind: listening(*servers))
    monkeypatch.setattr(cluster.psutil, "Process", Seen)
    found = cluster.ports()
    assert found.state == state
    assert told in found.text
    assert bool(found.mend) == (state != "ok")


def test_ports_that_cannot_be_listed_are_unknown(monkeypatch):
    def denied(kind):
        raise cluster.psutil.AccessDenied

    monkeypatch.setattr(cluster.psutil, "net_connections", denied)
    found = cluster.ports()
    assert (found.state, failed([found])) == (State.UNKNOWN, False)
    assert "sudo" in found.mend


@pytest.mark.parametrize(
    ("sizes", "state", "told"),
    [
        ([4 * GIB], "ok", "its node with 4.0 GiB"),
        ([4 * GIB, 8 * GIB], "ok", "2 nodes with 4.0 GiB to 8.0 GiB a node, 12.0 GiB in all"),
        ([4 * GIB, GIB // 4], "warning", "what does not fit is written to disk"),
        ([GIB // 32], "error", "Ray needs 75 MiB"),
        ([], "unknown", "no node tells"),
    ],
)
def test_object_stores_of_a_cluster(sizes, state, told, monkeypatch):
    live = [{"Alive": True, "Resources": {"CPU": 1, "object_store_memory": s}} for s in sizes]
    dead = {"Alive": False, "Resources": {"object_store_memory": 1.0}}
    monkeypatch.setattr("ray.nodes", lambda: [*live, dead])
    found = cluster._of_cluster()
    assert (found.name, found.state) == ("object store", state)
    assert told in found.text
    assert bool(found.mend) == (state != "ok")


def test_the_object_store_that_ray_would_have_here(monkeypatch):
    monkeypatch.setattr("ray._private.utils.estimate_available_memory", lambda: 10 * GIB)
    monkeypatch.setattr("ray._private.utils.get_shared_memory_bytes", lambda: 64 * GIB)
    found = cluster.object_store()
    assert found == ok("object store", "a Ray that is started here would take 3.0 GiB")


@pytest.mark.parametrize("version", [2, 1])
def test_memory_of_a_container(version, tmp_path, monkeypatch):
    """Its limit counts, and what it has taken; caches are given up at need."""
    (tmp_path / "memory").mkdir()
    limit, usage, stat, cache = machine.CGROUPS[2 - version]
    (tmp_path / limit).write_text(f"{4 * GIB}\n")
    (tmp_path / usage).write_text(f"{3 * GIB}\n")
    (tmp_path / stat).write_text(f"anon 5\n{cache} {2 * GIB}\n")
    seen = SimpleNamespace(total=64 * GIB, available=50 * GIB)
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: seen)
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.memory() == ok("memory", "3.0 of 4.0 GiB free")
    (tmp_path / usage).write_text(f"{5 * GIB}\n")
    found = machine.memory()
    assert (found.state, found.text) == (State.WARNING, "1.0 of 4.0 GiB free")
    assert found.mend
    (tmp_path / limit).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert machine.memory() == ok("memory", "50.0 of 64.0 GiB free")


def test_a_weights_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(machine.os, "access", lambda path, mode: False)
    found = machine.weights()
    assert found.state is State.WARNING
    assert "HF_HOME" in found.mend
    (tmp_path / "hub" / "models--timm--tf_efficientnet_lite0.in1k").mkdir(parents=True)
    assert machine.weights().state is State.OK


def test_libraries_that_are_missing(monkeypatch):
    def missing(name):
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", missing)
    found = machine.libraries()
    assert found.state is State.ERROR
    assert "timm" in found.text
    assert found.mend == "pip install kdfm_ray"


@pytest.mark.parametrize(("version", "state"), [("2.60.1", "ok"), ("2.61.0", "warning")])
def test_versions_of_ray(version, state, monkeypatch):
    monkeypatch.setattr(cluster, "version", lambda name: version)
    found = cluster.ray_version()
    assert found.state == state
    assert bool(found.mend) == (state != "ok")


def test_a_large_upload(tmp_path, monkeypatch):
    file = tmp_path / "large.bin"
    file.touch()
    monkeypatch.setattr("kdfm_ray.jobs.submit.job_files", lambda preset: [file])
    assert cluster.upload().state is State.OK
    os.truncate(file, 200 * 2**20)  # takes no room
    found = cluster.upload()
    assert (found.state, found.text) == (
        State.WARNING,
        "1 files, 200.0 MiB before they are compressed",
    )
    assert found.mend


def test_a_cluster_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (found,) = cluster.cluster_and_store(str(tmp_path))
    assert found.state is State.ERROR
    assert "cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:1" in found.text


def test_a_store_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "file"
    file.write_text("")
    found = cluster.cluster_and_store(str(file / "store"))[-1]
    assert (found.name, found.state) == ("store", State.ERROR)
    assert found.mend


def test_a_look_that_breaks_is_an_error_of_its_own(tmp_path, monkeypatch):
    def broken():
        raise ImportError("libcudart.so.13 is missing")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "faiss", broken)
    (found,) = [each for each in examine(str(tmp_path)) if each.state is State.ERROR]
    assert found.name == "FAISS"
    assert "libcudart.so.13 is missing" in found.text


def test_how_it_is_told():
    found = [ok("a", "well"), warning("b", "slow", "do this"), error("c", "broken", "do that")]
    assert as_lines(found) == [
        "ok       a                  well",
        "warning  b                  slow",
        "                            -> do this",
        "error    c                  broken",
        "                            -> do that",
    ]
    told = json.loads(as_json(found))
    assert told["healthy"] is False
    assert told["findings"][1] == {
        "name": "b",
        "state": "warning",
        "text": "slow",
        "mend": "do this",
    }


@pytest.mark.parametrize(("state", "status"), [("ok", 0), ("warning", 0), ("error", 1)])
def test_exit_status(state, status, monkeypatch, capsys):
    found = Finding("thing", State(state), "seen", "mend it" if state != "ok" else "")
    monkeypatch.setattr("kdfm_ray.doctor.examine", lambda store: iter([found]))
    assert cli.main(["doctor", "--json"]) == status
    assert json.loads(capsys.readouterr().out)["healthy"] is (status == 0)


def test_a_flag_it_does_not_take(capsys):
    assert cli.main(["doctor", "--jsn"]) == 2
    assert "kdfm doctor does not take --jsn" in capsys.readouterr().err
