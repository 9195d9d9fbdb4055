"""One computes, the others wait; a holder that is gone holds up nobody."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from kdfm_ray import leases
from kdfm_ray.leases import lease
from kdfm_ray.store import Store


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(leases, "DEAD_SECONDS", 0.5)


@pytest.fixture(params=["folder", "uri"])
def store(request, tmp_path):
    return Store(str(tmp_path) if request.param == "folder" else f"file://{tmp_path}")


def never():
    return False


def file_of(tmp_path):
    (path,) = tmp_path.glob("leases/*.json")
    return path


def test_only_one_of_many_holds_it_at_a_time(store, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "POLL_SECONDS", 0.2)  # how long a store without locks looks back
    inside, most, told = 0, 0, []
    lock = threading.Lock()

    def work():
        nonlocal inside, most
        with lease(store, "outer", "k", done=never, waiting=told.append) as held:
            assert held
            with lock:
                inside += 1
                most = max(most, inside)
            time.sleep(0.1)
            with lock:
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert len(told) >= 3
    assert f"process {os.getpid()} on" in told[0]
    assert not list(tmp_path.glob("leases/*")), "nothing is left"


def test_who_waits_goes_on_when_the_other_is_done(store):
    finished = threading.Event()

    def hold():
        with lease(store, "outer", "k", done=never, waiting=print):
            time.sleep(0.2)
            finished.set()
            time.sleep(0.3)

    thread = threading.Thread(target=hold)
    thread.start()
    time.sleep(0.1)
    with lease(store, "outer", "k", done=finished.is_set, waiting=lambda _: None) as held:
        assert not held
    thread.join()


def test_other_stages_and_keys_are_free(store):
    with (
        lease(store, "outer", "k", done=never, waiting=print),
        lease(store, "outer", "l", done=never, waiting=print),
        lease(store, "inner", "k", done=never, waiting=print) as held,
    ):
        assert held


def test_a_holder_that_was_killed_holds_up_nobody(store, monkeypatch):
    """Its process is gone, which is seen at once on the same machine."""
    monkeypatch.setattr(leases, "DEAD_SECONDS", 1000)
    code = (
        "import os, sys\n"
        "from kdfm_ray.leases import lease\n"
        "from kdfm_ray.store import Store\n"
        "with lease(Store(sys.argv[1]), 'outer', 'k', done=lambda: False, waiting=print):\n"
        "    os._exit(9)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, store.root], check=False).returncode == 9
    started = time.monotonic()
    with lease(store, "outer", "k", done=never, waiting=print) as held:
        assert held
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("damage", ["elsewhere", "unreadable"])
def test_a_holder_without_a_sign_of_life_loses_it(store, tmp_path, damage):
    with lease(store, "outer", "k", done=never, waiting=print):
        text = file_of(tmp_path).read_text()
    other = json.dumps(json.loads(text) | {"token": "x", "host": "another-machine"})
    Path(tmp_path, "leases", "outer-k.json").write_text(other if damage == "elsewhere" else "{")
    started = time.monotonic()
    with lease(store, "outer", "k", done=never, waiting=lambda _: None) as held:
        assert held
        assert time.monotonic() - started > 0.4
        assert json.loads(file_of(tmp_path).read_text())["token"] != "x"


def test_a_living_holder_elsewhere_is_waited_for(store, tmp_path):
    """Signs of life are seen in the file alone, by the waiter's own clock."""
    stop = threading.Event()
    path = Path(tmp_path, "leases", "outer-k.json")
    path.parent.mkdir()

    def beat():
        beats = 0
        while not stop.wait(0.1):
            beats += 1
            temporary = path.with_suffix(".tmp")
            temporary.write_text(json.dumps({"token": "x", "host": "elsewhere", "beats": beats}))
            temporary.replace(path)
        path.unlink()

    thread = threading.Thread(target=beat)
    thread.start()
    time.sleep(0.3)
    threading.Timer(1.5, stop.set).start()
    started = time.monotonic()
    with lease(store, "outer", "k", done=never, waiting=lambda _: None) as held:
        assert held
        assert time.monotonic() - started > 1
    thread.join()


def test_a_process_that_took_the_number_of_the_holder_is_not_it(store, tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "DEAD_SECONDS", 1000)
    with lease(store, "outer", "k", done=never, waiting=print):
        text = file_of(tmp_path).read_text()
    other = json.dumps(json.loads(text) | {"token": "x", "born": 5.0})
    Path(tmp_path, "leases", "outer-k.json").write_text(other)
    started = time.monotonic()
    with lease(store, "outer", "k", done=never, waiting=print) as held:
        assert held
    assert time.monotonic() - started < 5
