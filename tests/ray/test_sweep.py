"""Sweeps in a real local Ray of two CPUs: sharing, processes that die, going on, refusals."""

import os
import signal

import pyarrow.parquet as pq
import pytest

import kdfm_ray as kdfm
from kdfm_ray import Asha, grid
from kdfm_ray.config import (
    Config,
    DataConfig,
    FaultConfig,
    FixMatchConfig,
    ModelConfig,
    SelectConfig,
    TrainConfig,
)
from kdfm_ray.store import Store
from kdfm_ray.sweeps.ledger import Ledger
from kdfm_ray.sweeps.space import make_sweep
from kdfm_ray.types import UserError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray's own: sockets and subprocesses that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

BASE = Config(
    baseline=False,
    data=DataConfig(name="digits", num_labels=100, image_size=16),
    model=ModelConfig(name="wrn_10_2"),
    train=TrainConfig(
        steps=30, batch_size=16, eval_every=10, precision="fp32", memory_format="channels_last"
    ),
    select=SelectConfig(tau_select=0.1, pretrain_epochs=1, update_interval=10, max_iter=20),
    fixmatch=FixMatchConfig(mu=2),
    faults=FaultConfig(save_every=5),
)


def sweep_of(**fields):
    return make_sweep(**({"name": "test", "base": BASE, "seeds": (0, 1)} | fields))


def count(store, stage):
    folder = store / stage
    return len(list(folder.iterdir())) if folder.is_dir() else 0


@pytest.fixture(scope="module")
def cluster():
    """Two CPUs, as on a small machine, with the dashboard that stopped trials need."""
    from kdfm_ray.jobs import session as module

    module.prepare_environment(local=True)
    import ray

    quiet = {"log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=2, include_dashboard=True, **quiet)
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
    """Eight trials of two seeds; half of them find nothing to trust; one process is killed."""
    folder = tmp_path_factory.mktemp("sweep")
    space = {"select.tau_select": grid(0.1, 1.0), "inner.tau_inner": grid(0.5, 0.95)}
    killed = []
    with pytest.MonkeyPatch.context() as patch:
        kill_first_report(patch, killed)
        result = kdfm.sweep(
            sweep_of(space=space, asha=Asha()),
            out=folder / "out",
            store=str(folder / "store"),
            progress=False,
        )
    return folder, result, killed


def test_each_outer_network_is_trained_once(first):
    folder, result, _ = first
    assert len(result.rows) == 8
    assert count(folder / "store", "outer") == 2  # one a seed
    assert count(folder / "store", "labels") == 2
    assert count(folder / "store", "trusted") == 2
    assert len({row["outer_key"] for row in result.rows if row["seed"] == 0}) == 1
    done = [row for row in result.rows if row["status"] in ("finished", "stopped")]
    assert len(done) == 4
    assert result.savings.shared == 2 * 30


def test_a_trial_that_fails_takes_nobody_along_and_says_why(first):
    _, result, _ = first
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
    _, result, _ = first
    for row in result.rows:
        assert (row["test_accuracy"] is not None) == (row["status"] == "finished")
        if row["status"] == "finished":
            assert row["step"] == 30
            assert row["trusted_size"] > 0
        if row["status"] == "stopped":
            assert row["step"] < 30


def test_its_folder_has_tables_and_a_page(first):
    folder, result, _ = first
    out = folder / "out"
    table = pq.read_table(out / "trials.parquet").to_pylist()
    assert [row["trial_id"] for row in table] == [row["trial_id"] for row in result.rows]
    assert {file.name for file in out.iterdir()} >= {
        *("trials.parquet", "trials.csv", "settings.csv", "index.html", "sweep.json")
    }


def test_begun_again_finished_trials_are_kept_and_failed_ones_tried(first):
    folder, before, _ = first
    again = kdfm.sweep(
        sweep_of(
            space={"select.tau_select": grid(0.1, 1.0), "inner.tau_inner": grid(0.5, 0.95)},
            asha=Asha(),
        ),
        out=folder / "out",
        store=str(folder / "store"),
        progress=False,
    )
    assert [row["status"] for row in again.rows] == [row["status"] for row in before.rows]
    kept = [(a["seconds"], b["seconds"]) for a, b in zip(again.rows, before.rows, strict=True)]
    assert all(a == b for (a, b), row in zip(kept, again.rows, strict=True) if row["test_accuracy"])
    assert count(folder / "store", "outer") == 2


def test_it_goes_on_where_its_driver_died(cluster, first, tmp_path, monkeypatch):
    """The driver ends in the midst; nothing that Tune wrote is left; the rest is done then."""
    from kdfm_ray.sweeps import run as module

    folder, _, _ = first
    sweep = sweep_of(space={"inner.loss": grid("ce", "sce", "gce")}, seeds=(0,), max_concurrent=1)
    arguments = {"out": tmp_path / "out", "store": str(folder / "store"), "progress": False}
    before = module._Driver.ended

    class Died(BaseException):
        pass

    def die(self, job, status, facts):
        before(self, job, status, facts)
        if sum(r.status == "finished" for r in self._ledger.records.values()) == 2:
            raise Died

    monkeypatch.setattr(module._Driver, "ended", die)
    with pytest.raises(BaseException):  # noqa: B017, PT011 - Tune may wrap it
        kdfm.sweep(sweep, **arguments)
    monkeypatch.setattr(module._Driver, "ended", before)
    cut = Ledger(tmp_path / "out").records
    assert sorted(record.status for record in cut.values())[:2] == ["finished", "finished"]
    result = kdfm.sweep(sweep, **arguments)
    assert [row["status"] for row in result.rows] == ["finished"] * 3
    for row in result.rows:
        if cut.get(row["trial_id"]) and cut[row["trial_id"]].status == "finished":
            assert row["seconds"] == round(cut[row["trial_id"]].seconds, 3)  # not run again


def test_a_folder_with_another_sweep_is_refused(cluster, first):
    folder, _, _ = first
    with pytest.raises(UserError, match="holds another sweep") as error:
        kdfm.sweep(
            sweep_of(space={"select.tau_select": grid(0.1)}),
            out=folder / "out",
            store=str(folder / "store"),
            progress=False,
        )
    assert "space" in str(error.value)


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


def test_nothing_is_left_on_the_cluster(cluster, first):
    """All CPUs are free and no placement group remains after trials that ended in every way."""
    from ray.util import placement_group_table

    free = cluster.available_resources()
    assert free["CPU"] == 2
    left = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
    assert not left
