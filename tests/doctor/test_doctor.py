"""What kdfm doctor says of machines that are fit, and of those that are not."""

import json
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
    assert {"Python", "torch", "GPU", "FAISS", "shared memory", "Ray", "ports", "store"} <= names
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


@pytest.mark.parametrize(
    ("servers", "state", "told"),
    [
        ([("127.0.0.1", 8265, "dashboard")], "ok", "no server"),
        ([("::ffff:127.0.0.1", 6379, "gcs_server")], "ok", "no server"),
        ([("0.0.0.0", 8265, "nginx")], "ok", "no server"),
        ([("0.0.0.0", 8265, "dashboard")], "warning", "the dashboard is open to the network"),
        ([("10.0.0.3", 6379, "gcs_server")], "warning", "open to the network: 6379 (gcs_server)"),
    ],
)
def test_ports(servers, state, told, monkeypatch):
    monkeypatch.setattr(cluster.psutil, "net_connections", lambda kind: listening(*servers))
    monkeypatch.setattr(cluster, "_name", lambda pid: pid)
    found = cluster.ports()
    assert found.state == state
    assert told in found.text


def test_a_cluster_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    (found,) = cluster.cluster_and_store(str(tmp_path))
    assert found.state is State.ERROR
    assert "cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:1" in found.text


def test_a_store_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    file = tmp_path / "file"
    file.write_text("")
    found = cluster.cluster_and_store(str(file / "store"))[1]
    assert (found.name, found.state) == ("store", State.ERROR)


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
