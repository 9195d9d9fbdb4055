"""States in the store: whole or not there, whatever happens between two file operations."""

import contextlib

import pytest
from fuse import Crash, Fuse

from kdfm_ray.checkpoints import Checkpoints
from kdfm_ray.store import Store


@pytest.fixture(params=["folder", "uri"])
def checkpoints(request, tmp_path):
    root = str(tmp_path) if request.param == "folder" else f"file://{tmp_path}"
    return Checkpoints(Store(root), "inner", "k")


def write(checkpoints, step, text="state"):
    with checkpoints.writing(step) as folder:
        (folder / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text * 2)


def test_the_newest_of_the_last_two_is_found(checkpoints):
    assert not checkpoints.any()
    with checkpoints.latest() as found:
        assert found is None
    for step in (5, 20, 100):
        write(checkpoints, step, f"after {step}")
    with checkpoints.latest() as found:
        assert (found.step, found.damaged) == (100, ())
        assert (found.path / "a.txt").read_text() == "after 100"
    with checkpoints.latest(20) as found:
        assert (found.path / "b.txt").read_text() == "after 20after 20"
    with checkpoints.latest(5) as found:
        assert found is None, "only two are kept"
    checkpoints.clear()
    assert not checkpoints.any()


def test_a_failure_while_writing_leaves_what_was_there(checkpoints):
    write(checkpoints, 1)

    def fail():
        with checkpoints.writing(2) as folder:
            (folder / "a.txt").write_text("half")
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    with checkpoints.latest() as found:
        assert found.step == 1


def test_other_networks_have_other_states(tmp_path):
    store = Store(str(tmp_path))
    write(Checkpoints(store, "outer", "k"), 1)
    assert not Checkpoints(store, "outer", "other").any()
    assert not Checkpoints(store, "inner", "k").any()


def test_a_crash_before_any_file_operation_leaves_nothing_half_read(tmp_path, monkeypatch):
    """Every point of the third write, in turn: then there is the state before it, or its own."""
    outcomes = set()
    for crash_at in range(1, 200):
        store = Store(str(tmp_path / str(crash_at)))
        write(Checkpoints(store, "outer", "k"), 1)
        write(Checkpoints(store, "outer", "k"), 2)
        fuse = Fuse(crash_at)
        with fuse.lit(monkeypatch), contextlib.suppress(Crash):
            write(Checkpoints(store, "outer", "k"), 3)
        with Checkpoints(store, "outer", "k").latest() as found:
            assert (found.path / "a.txt").read_text() == "state"
            assert (found.path / "b.txt").read_text() == "statestate"
            outcomes.add(found.step)
        if fuse.count < crash_at:
            break
        write(Checkpoints(store, "outer", "k"), 4)  # and it goes on
        with Checkpoints(store, "outer", "k").latest() as found:
            assert found.step == 4
    assert fuse.count < crash_at, "all points were tried"
    assert fuse.count > 8
    assert outcomes == {2, 3}
