"""Sweeps in a real local Ray of two CPUs: sharing, processes that die, going on, refusals."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import small_sweep
from small_sweep import longer, sweep_of, thresholds

import kdfm_ray as kdfm
from kdfm_ray import Asha, grid
from kdfm_ray.store import Store
from kdfm_ray.sweeps.ledger import TRIALS, Cells, Ledger, Record
from kdfm_ray.sweeps.space import make_trials
from kdfm_ray.types import UserError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray's own: sockets and subprocesses that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def count(store, stage):
    folder = store / stage
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs, as on a small machine."""
    from kdfm_ray.jobs import session as module

    module.prepare_environment(local=True)
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, **quiet)
    yield ray
    ray.shutdown()


def kill_first_report(monkeypatch, killed):
    """SIGKILL the process of the first trial that reports, once it has saved a state."""
    from kdfm_ray.sweeps import tuning

    before = tuning._Relay.on_trial_result

    def kill(self, iteration, trials, trial, result, **info):
        before(self, iteration, trials, trial, result, **info)
        if not killed and "ended" not in result:
            killed.append(trial.config["job"]["id"])
            os.kill(result["pid"], signal.SIGKILL)

    monkeypatch.setattr(tuning._Relay, "on_trial_result", kill)


@pytest.fixture(scope="module")
def first(cluster, tmp_path_factory):
    """A sweep in which the process of one trial is killed."""
    folder, killed = tmp_path_factory.mktemp("sweep"), []
    with pytest.MonkeyPatch.context() as patch:
        kill_first_report(patch, killed)
        result = kdfm.sweep(
            thresholds(), out=folder / "out", store=str(folder / "store"), progress=False
        )
    return folder, result, killed


def test_each_outer_network_is_trained_once(first):
    folder, result, *_ = first
    assert len(result.rows) == 8
    assert count(folder / "store", "outer") == 2  # one a seed
    assert count(folder / "store", "labels") == 2
    assert count(folder / "store", "trusted") == 2
    assert len({row["outer_key"] for row in result.rows if row["seed"] == 0}) == 1
    done = [row for row in result.rows if row["status"] in ("finished", "stopped")]
    assert len(done) == 4
    assert result.savings.shared == 2 * 30


def test_a_trial_that_fails_takes_nobody_along_and_says_why(first):
    _, result, *_ = first
    failed = [row for row in result.rows if row["status"] == "failed"]
    assert len(failed) == 4
    for row in failed:
        assert row["select.tau_select"] == 1.0
        assert "the trusted subset is empty" in row["why"]
        assert row["test_accuracy"] is None


def test_a_process_that_is_killed_goes_on_from_its_state(first):
    folder, result, (killed,) = first
    row = next(row for row in result.rows if row["trial_id"] == killed)
    assert row["status"] in ("finished", "stopped")
    if row["status"] == "finished":
        store = Store(str(folder / "store"))
        resumed = [
            store.find("inner", path.name).record()["resumed"]
            for path in (folder / "store" / "inner").iterdir()
        ]
        assert [found for found in resumed if found]


def test_finished_trials_have_a_test_accuracy_and_stopped_ones_have_none(first):
    _, result, *_ = first
    for row in result.rows:
        assert (row["test_accuracy"] is not None) == (row["status"] == "finished")
        if row["status"] == "finished":
            assert row["step"] == 30
            assert row["trusted_size"] > 0
        if row["status"] == "stopped":
            assert row["step"] < 30


def test_its_folder_has_tables_and_a_page(first):
    folder, result, *_ = first
    out = folder / "out"
    table = pq.read_table(out / "trials.parquet").to_pylist()
    assert [row["trial_id"] for row in table] == [row["trial_id"] for row in result.rows]
    assert {file.name for file in out.iterdir()} >= {
        *("trials.parquet", "trials.csv", "settings.csv", "index.html", "sweep.json")
    }


def test_a_folder_with_another_sweep_is_refused(cluster, first):
    folder, *_ = first
    with pytest.raises(UserError, match="holds another sweep") as error:
        kdfm.sweep(
            sweep_of(space={"select.tau_select": grid(0.1)}),
            out=folder / "out",
            store=str(folder / "store"),
            progress=False,
        )
    assert "space" in str(error.value)


def test_a_sweep_is_not_finished_by_other_code(cluster, first, monkeypatch):
    """Four trials failed and would be tried again, beside four that an older stage has made."""
    from kdfm_ray import keys

    folder, *_ = first
    monkeypatch.setitem(keys.VERSIONS, "inner", keys.VERSIONS["inner"] + 1)
    with pytest.raises(UserError, match=r"4 trials .* another version of kdfm_ray"):
        kdfm.sweep(thresholds(), out=folder / "out", store=str(folder / "store"), progress=False)
    rows = pq.read_table(folder / "out" / "trials.parquet").to_pylist()
    assert sum(row["status"] == "finished" for row in rows) >= 2


@pytest.mark.parametrize("name", ["seed", "out", "store"])
def test_what_is_the_sweeps_own_is_no_setting(tmp_path, name):
    with pytest.raises(UserError, match=f"{name} is the sweep's own"):
        kdfm.sweep(thresholds(), settings={name: 1}, out=tmp_path / "out", progress=False)


@pytest.mark.parametrize("workers", [3, 40])
def test_trials_that_can_never_fit_are_refused_at_once(cluster, tmp_path, workers):
    with pytest.raises(UserError, match="the cluster has 2") as error:
        kdfm.sweep(
            sweep_of(space={"select.tau_select": grid(0.1)}),
            settings={"scale.num_workers": workers, "train.batch_size": 64},
            out=tmp_path / "out",
            store=str(tmp_path / "store"),
            progress=False,
        )
    assert str(workers) in str(error.value)
    assert count(tmp_path / "store", "outer") == 0


@pytest.mark.long
def test_asha_stops_who_is_behind_and_the_next_one_starts(cluster, first, tmp_path):
    """One at a time, after one that is recorded with accuracies that nobody reaches."""
    folder, *_ = first
    sweep = sweep_of(
        space={"inner.tau_inner": grid(0.3, 0.4, 0.45)},  # none of `first`, which are trained
        seeds=(0,),
        asha=Asha(first=0.3),
        max_concurrent=1,
        results=tmp_path / "cells.jsonl",
    )
    best, *others = make_trials(sweep, sweep.settings())
    cells, row = Cells(sweep.results, {}), {"val_accuracy": 1.0, "test_accuracy": 1.0}
    curve = {10: 1.0, 20: 1.0, 30: 1.0}
    assert cells.add(best, Record("finished", curve, 5.0, row, made=cells.made(best)))
    result = kdfm.sweep(sweep, out=tmp_path / "out", store=str(folder / "store"), progress=False)
    rows = [(row["status"], row["step"], row["seconds"]) for row in result.rows]
    assert rows[0] == ("finished", 30, 5.0)
    assert [row[:2] for row in rows[1:]] == [("stopped", 10)] * 2
    lines = [json.loads(text) for text in (tmp_path / "out" / TRIALS).read_text().splitlines()]
    told = [(line["trial"], line["event"]) for line in lines if line["event"] != "validation"]
    assert told[1:] == [(trial.id, event) for trial in others for event in ("start", "end")]
    assert count(folder / "store", "outer") == 2  # none was trained for it


@pytest.mark.long
def test_a_sweep_goes_on_where_its_driver_was_killed(cluster, first, tmp_path):
    folder, *_ = first
    places = ["--out", str(tmp_path / "out"), "--store", str(folder / "store")]
    name = f"{small_sweep.__file__}:longer"
    process = subprocess.Popen(
        [sys.executable, "-m", "kdfm_ray", "sweep", name, *places],
        env=os.environ | {"RAY_ADDRESS": cluster.get_runtime_context().gcs_address},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    lines, until = tmp_path / "out" / TRIALS, time.monotonic() + 240
    while process.poll() is None and time.monotonic() < until:
        told = lines.read_text().splitlines() if lines.is_file() else []
        told = [json.loads(line) for line in told if '"validation"' in line and line[-1] == "}"]
        if len({line["trial"] for line in told}) == 2:  # each has saved a state
            break
        time.sleep(0.05)
    process.kill()
    output, _ = process.communicate()
    cut = Ledger(tmp_path / "out").records
    assert [record.status for record in cut.values()] == ["running"] * 2, output.decode()[-3000:]
    result = kdfm.sweep(longer(), out=tmp_path / "out", store=str(folder / "store"), progress=False)
    assert [row["status"] for row in result.rows] == ["finished"] * 2
    store, keys = Store(str(folder / "store")), [record.inner for record in cut.values()]
    assert all(store.find("inner", key).record()["resumed"] for key in keys)
    assert count(folder / "store", "outer") == 2


def test_nothing_is_left_on_the_cluster(cluster, first):
    """All CPUs are free and no placement group remains after trials that ended in every way."""
    from ray.util import placement_group_table

    free = cluster.available_resources()
    assert free["CPU"] == 2
    left = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert not left


def test_groups_of_dead_actors_are_removed_and_no_others(cluster):
    from ray.util.placement_group import placement_group, placement_group_table

    from kdfm_ray.jobs.placement import remove_orphaned_groups

    class Maker:
        def make(self):
            self.group = placement_group([{"CPU": 0.1}])
            return self.group.id.hex()

    mine = placement_group([{"CPU": 0.5}])
    dead, alive = (cluster.remote(num_cpus=0)(Maker).remote() for _ in range(2))
    orphan, kept = (cluster.get(maker.make.remote()) for maker in (dead, alive))
    assert remove_orphaned_groups() == 0
    cluster.kill(dead)
    until = time.monotonic() + 20
    while remove_orphaned_groups() == 0 and time.monotonic() < until:
        time.sleep(0.2)
    states = {name: group["state"] for name, group in placement_group_table().items()}
    assert states[orphan] == "REMOVED"
    assert states[kept] != "REMOVED"
    assert states[mine.id.hex()] != "REMOVED"
    cluster.kill(alive)
    cluster.util.remove_placement_group(mine)
    while remove_orphaned_groups() == 0 and time.monotonic() < until:
        time.sleep(0.2)
