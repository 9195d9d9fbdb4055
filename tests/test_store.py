"""Artefacts: whole or not there, the first one stays, damage is found; on folders and on URIs."""

import contextlib
import json
import subprocess
import sys
import threading

import pytest
from fuse import Crash, Fuse

from kdfm_ray.store import Store, default_root
from kdfm_ray.types import UserError


@pytest.fixture(params=["folder", "uri"])
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # the cache of files from URIs
    root = tmp_path / "store"
    root.mkdir()
    return Store(str(root) if request.param == "folder" else f"file://{root}")


def write(store, text="hello", stage="outer", key="k1"):
    with store.writing(stage, key) as draft:
        (draft.path / "sub").mkdir()
        (draft.path / "sub" / "data.txt").write_text(text)
        draft.write_record({"length": len(text)})


def test_round_trip(store):
    assert store.find("outer", "k1") is None
    write(store)
    artifact = store.find("outer", "k1")
    assert (artifact.path / "sub" / "data.txt").read_text() == "hello"
    assert artifact.record() == {"length": 5}
    assert store.find("inner", "k1") is None
    assert Store(store.root).find("outer", "k1").path == artifact.path


def test_a_crash_while_writing_leaves_nothing_to_read(store):
    def crash():
        with store.writing("outer", "k1") as draft:
            (draft.path / "data.txt").write_text("half")
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        crash()
    assert store.find("outer", "k1") is None
    write(store)
    assert store.find("outer", "k1") is not None


def test_a_crash_before_any_file_operation_leaves_nothing_half_read(tmp_path, monkeypatch):
    outcomes = set()
    for crash_at in range(1, 200):
        store, fuse = Store(str(tmp_path / str(crash_at))), Fuse(crash_at)
        with fuse.lit(monkeypatch), contextlib.suppress(Crash):
            write(store)
        found = Store(store.root).find("outer", "k1")
        outcomes.add(found is not None)
        if found is not None:
            assert (found.path / "sub" / "data.txt").read_text() == "hello"
            assert found.record() == {"length": 5}
        if fuse.count < crash_at:
            break
        write(store)  # and the stage can be done again
        assert store.find("outer", "k1").record() == {"length": 5}
    assert fuse.count < crash_at, "all points were tried"
    assert outcomes == {True, False}


def test_an_attempt_without_manifest_is_not_read(tmp_path):
    store = Store(str(tmp_path))
    write(store)
    (tmp_path / "outer" / "k1" / "manifest.json").unlink()
    assert store.find("outer", "k1") is None


def test_the_first_of_two_attempts_stays(store):
    with store.writing("outer", "k1") as slow:
        write(store, "first")
        (slow.path / "data.txt").write_text("second")
        slow.write_record({"length": 6})
    assert (store.find("outer", "k1").path / "sub" / "data.txt").read_text() == "first"


def test_a_record_is_required(store):
    with pytest.raises(AssertionError, match="record"), store.writing("outer", "k1") as draft:
        (draft.path / "data.txt").write_text("x")


@pytest.mark.parametrize("damage", ["cut", "lost"])
def test_damage_is_found(tmp_path, damage):
    store = Store(str(tmp_path))
    write(store)
    file = store.find("outer", "k1").path / "sub" / "data.txt"
    if damage == "cut":
        file.write_text("hel")
    else:
        file.unlink()
    with pytest.raises(UserError, match=r"data\.txt is damaged or missing.*delete the folder"):
        store.find("outer", "k1")


def test_damage_on_the_way_from_a_uri_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    root = tmp_path / "store"
    root.mkdir()
    store = Store(f"file://{root}")
    write(store)
    (file,) = root.rglob("data.txt")
    file.write_text("HELLO")  # the same size
    with pytest.raises(UserError, match="damaged"):
        _ = store.find("outer", "k1").path


READER = """
import sys, time
from fsspec.implementations.local import LocalFileSystem
from kdfm_ray.store import Store

get = LocalFileSystem.get_file
def noting(self, source, target, **more):
    with open(sys.argv[2], "a") as file:
        file.write(source + chr(10))
    time.sleep(0.2)
    get(self, source, target, **more)
LocalFileSystem.get_file = noting
artifact = Store(sys.argv[1]).find("outer", "k1")
print("ready", flush=True)
sys.stdin.readline()
print((artifact.path / "sub" / "data.txt").read_text())
"""


def test_processes_fetch_each_file_once(tmp_path, monkeypatch):
    """Three processes at once, two files."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "store").mkdir()
    store, fetched = Store(f"file://{tmp_path / 'store'}"), tmp_path / "fetched.txt"
    write(store)
    command = [sys.executable, "-c", READER, store.root, str(fetched)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    readers = [subprocess.Popen(command, **pipes) for _ in range(3)]
    assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 3
    for reader in readers:
        reader.stdin.write("go\n")
        reader.stdin.flush()
    assert [reader.communicate()[0] for reader in readers] == ["hello\n"] * 3
    names = [line.rpartition("/")[2] for line in fetched.read_text().splitlines()]
    assert sorted(names) == ["data.txt", "record.json"]


def test_threads_fetch_each_file_once(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "store").mkdir()
    store, fetched = Store(f"file://{tmp_path / 'store'}"), []
    write(store)
    get = type(store._fs).get_file
    together = threading.Barrier(4)

    def noting(self, source, target, **more):
        fetched.append(source.rpartition("/")[2])
        get(self, source, target, **more)

    def read():
        together.wait()
        found.append((artifact.path / "sub" / "data.txt").read_text())

    monkeypatch.setattr(type(store._fs), "get_file", noting)
    artifact, found = store.find("outer", "k1"), []
    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["hello"] * 4
    assert sorted(fetched) == ["data.txt", "record.json"]


def test_a_newer_format_is_refused(tmp_path):
    store = Store(str(tmp_path))
    write(store)
    manifest = tmp_path / "outer" / "k1" / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match=r"newer kdfm_ray \(format 99"):
        store.find("outer", "k1")


def test_roots_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        Store(str(tmp_path / "file" / "store"))
    with pytest.raises(UserError, match="fsspec"):
        Store("nonsense://bucket/prefix")
    with pytest.raises(UserError, match="with a password") as error:
        Store("s3://me:hunter2@bucket/prefix")
    assert "hunter2" not in str(error.value)


def test_default_root_follows_the_environment(monkeypatch):
    monkeypatch.setenv("KDFM_STORE", "/somewhere")
    assert default_root() == "/somewhere"
    monkeypatch.delenv("KDFM_STORE")
    assert default_root().endswith(".cache/kdfm_ray")
