"""The whole pipeline on digits in a real local Ray: one cluster for all tests of this file."""

import dataclasses
import json
import os
import platform
import subprocess
import sys

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import kdfm_ray as kdfm
from experiments import find_preset
from kdfm_ray.config import parse_config, set_recipe
from kdfm_ray.jobs.board import TrainTask
from kdfm_ray.jobs.crew import Crew
from kdfm_ray.jobs.label import Labeler, label
from kdfm_ray.jobs.label_files import PARTS, LabelFiles
from kdfm_ray.jobs.numerics import measured_numerics
from kdfm_ray.jobs.session import LOOPBACK, open_session
from kdfm_ray.models.numerics import Numerics
from kdfm_ray.pipeline import run
from kdfm_ray.store import Store
from kdfm_ray.training.runtime import ignore
from kdfm_ray.types import RunFailed, UserError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    # Ray's own: sockets and subprocesses that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def make_config(store, **changes):
    """A few updates: enough to pass through every stage, not to learn much."""
    values = find_preset("digits")().model_dump(mode="json")
    set_recipe(values, "paper")  # which has the longest stages
    values["store"] = str(store)
    flags = {
        "scale.cpus_per_worker": 2,
        "train.steps": 30,
        "train.batch_size": 16,
        "train.eval_every": 15,
        "train.precision": "fp32",
        "train.memory_format": "channels_last",
        "fixmatch.mu": 2,
        "data.image_size": 16,
        "select.tau_select": 0.1,
        "select.pretrain_epochs": 2,
        "select.update_interval": 20,
        "select.max_iter": 60,
    }
    for name, value in (flags | changes).items():
        section, _, field = name.rpartition(".")
        (values[section] if section else values)[field] = value
    return parse_config(values)


@pytest.fixture(scope="module")
def cluster():
    """Four logical CPUs, whatever this machine has, so that three actors run side by side."""
    from kdfm_ray.jobs import session as module

    module.prepare_environment(local=True)
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
    ray.init(address="local", num_cpus=4, **quiet)
    with open_session(make_config("unused").scale, ignore) as session:
        yield session
    ray.shutdown()


@pytest.fixture(scope="module")
def first(cluster, tmp_path_factory):
    """A run from nothing, through the public API."""
    folder = tmp_path_factory.mktemp("first")
    config = make_config(folder / "store")
    out = folder / "run"
    return kdfm.train(config=config, out=out, progress=False), config, folder / "store"


def test_the_run_folder_holds_everything(first):
    result, config, _ = first
    names = {path.name for path in result.path.iterdir()}
    assert names >= {
        *("config.yaml", "split.npz", "metrics.jsonl", "tensorboard", "model.safetensors"),
        *("model.json", "report.json", "report.html"),
    }
    report = json.loads((result.path / "report.json").read_text())
    assert set(report["test_accuracy"]) == {"labeled_only", "outer", "inner"}
    assert all(0 <= value <= 1 for value in report["test_accuracy"].values())
    assert set(report["trusted"]) == {"size", "coverage", "precision", "precision_all"}
    assert {"data", "baseline", "outer", "inner", "label", "select", "evaluate"} <= set(
        report["stages"]
    )
    assert report["config_hash"] == config.hash()
    assert report["data"]["labeled"] == 100
    assert report["versions"]["ray"]
    assert report["hardware"]["cores"]
    assert isinstance(report["warnings"], list)
    assert report["reused"] == []


def test_metrics_of_all_three_networks_are_there_once(first):
    lines = [
        json.loads(line) for line in (first[0].path / "metrics.jsonl").read_text().splitlines()
    ]
    for stage in ("baseline", "outer", "inner"):
        steps = [line["step"] for line in lines if line["stage"] == stage and "loss" in line]
        assert steps == [5, 10, 15, 20, 25, 30], stage
        steps = [
            line["step"] for line in lines if line["stage"] == stage and "val_accuracy" in line
        ]
        assert steps == [15, 30], stage
    assert list((first[0].path / "tensorboard").glob("events.*"))


def test_the_saved_network_gives_the_reported_accuracy(first):
    from kdfm_ray.data import catalog

    result = first[0]
    test = catalog.load("digits", result.path, 16).test
    probs = kdfm.load(result.path).predict_probs(test.images)
    accuracy = (probs.argmax(1) == test.labels).mean()
    assert accuracy == pytest.approx(result.report["test_accuracy"]["inner"])
    with pytest.raises(ValueError, match="predict takes uint8 images"):
        result.predict_probs(test.images[:, :8])


def test_every_unlabeled_image_is_labeled_once(first):
    result, _, store = first
    (folder,) = (store / "labels").rglob(PARTS)
    rows = pq.read_table(folder)
    assert rows.column_names == ["index", "pseudo_label", "confidence", "probs", "embedding"]
    index = rows["index"].to_numpy()
    assert np.array_equal(np.sort(index), np.arange(result.report["data"]["unlabeled"]))
    probs = np.stack(rows["probs"].to_pylist())
    np.testing.assert_allclose(probs.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(probs.max(1), rows["confidence"].to_numpy(), atol=1e-6)
    assert np.array_equal(probs.argmax(1), rows["pseudo_label"].to_numpy())


@pytest.mark.long
def test_labels_from_one_and_from_three_actors_are_equal(cluster, first):
    _, config, root = first
    again = run(config, ignore)
    store = Store(str(root))
    prepared = again.prepared
    one_cpu_each = cluster.scale.model_copy(update={"cpus_per_worker": 1})
    found = {}
    for actors in (1, 3):
        label(
            dataclasses.replace(cluster, scale=one_cpu_each),
            store,
            prepared,
            again.plan.outer,
            f"by-{actors}",
            numerics=Numerics(),
            batch_size=128,
            num_actors=actors,
        )
        found[actors] = LabelFiles(store.find("labels", f"by-{actors}"))
    assert np.array_equal(probs_of(found[1]), probs_of(found[3]))
    every = np.arange(len(found[1]))
    assert np.array_equal(found[1].take(every), found[3].take(every))


def probs_of(labels):
    """All probabilities, in the order of the images."""
    tables = [
        pq.read_table(labels.artifact.path / name, columns=["index", "probs"])
        for name in labels.artifact.names
        if name.startswith(f"{PARTS}/")
    ]
    rows = pa.concat_tables(tables).sort_by("index")
    assert rows["index"].to_pylist() == list(range(len(labels)))
    return np.array(rows["probs"].to_pylist(), np.float32)


def test_workers_stay_between_trainings_while_others_label(cluster, first):
    """As in a local Ray of one's own: workers hold all CPUs, the labeling job asks for none.

    They label too, and are who is called: the process that has imported torch.
    """
    _, config, root = first
    store, again = Store(str(root)), run(config, ignore)
    split = again.artifacts["split"]
    prepared = again.prepared
    session = dataclasses.replace(cluster, keeps_workers=True)
    short = config.model_copy(update={"train": config.train.model_copy(update={"steps": 2})})

    def task(role, key):
        dataset = again.artifacts["dataset"].key
        return TrainTask(role, key, dataset, split.key, again.plan.numerics)

    with Crew(session, store, short) as crew:
        crew.train([task("baseline", "first-list"), task("outer", "first-list")])
        workers = crew._fit
        for key, actors in (("beside", 2), ("by-the-worker", None)):
            label(
                session,
                store,
                prepared,
                "first-list",
                key,
                numerics=again.plan.numerics,
                batch_size=512,
                num_actors=actors,
                crew=crew,
            )
        assert crew._given == 2, "a list of networks, and labels by one worker"
        assert crew.call(os.getpid) == crew.call(os.getpid, gpu=True)
        assert crew.call(os.getpid) != session.call(lambda: os.getpid(), gpu=True)
        with pytest.raises(ValueError, match="invalid literal") as error:
            crew.call(int, "none")
        assert "In training worker 0" in error.value.__notes__[0]
        assert workers.is_alive()
        crew.train([task("inner", "second-list")])
        assert crew._fit is workers
    workers.join(timeout=30)  # a Ray of one's own would end with the run and wait for nobody
    assert not workers.is_alive()
    for role, key in (
        ("baseline", "first-list"),
        ("outer", "first-list"),
        ("inner", "second-list"),
    ):
        assert store.find(role, key).record()["steps"] == 2
    beside, by_worker = (
        LabelFiles(store.find("labels", key)) for key in ("beside", "by-the-worker")
    )
    assert np.array_equal(probs_of(beside), probs_of(by_worker))
    every = np.arange(len(beside))
    assert np.array_equal(beside.take(every), by_worker.take(every))


@pytest.mark.long
def test_workers_that_die_while_they_are_called(cluster, first, tmp_path):
    """They are started again and called again; gone for good, others do their work."""
    _, config, root = first

    def die_once(folder, *, rank, world_size):
        import os
        import pathlib

        tries = pathlib.Path(folder)
        (tries / str(len(list(tries.iterdir())))).touch()
        if len(list(tries.iterdir())) in (1, 3, 4):
            os._exit(1)

    few = config.model_copy(update={"faults": config.faults.model_copy(update={"max_failures": 1})})
    events = []
    with (
        open_session(few.scale, events.append) as opened,
        Crew(dataclasses.replace(opened, keeps_workers=True), Store(str(root)), few) as crew,
    ):
        assert crew.share(die_once, str(tmp_path)), "the second time"
        assert crew.call(os.getpid) != os.getpid()
        assert not crew.share(die_once, str(tmp_path))
        assert crew.call(platform.node) == platform.node(), "by a task of its own"
        assert not crew._alive()
        opened.drain()
    notes = [event["note"] for event in events if "note" in event]
    assert [note.rpartition(": ")[2] for note in notes] == [
        "starting the workers again from the last saved state",
        "it was the failure number 2",
    ]


def test_a_pass_that_workers_could_not_finish_counts_their_tries(cluster, first):
    _, config, root = first
    again = run(config, ignore)
    done = []

    class Dying:
        """Workers that do the first shard, and die at the second as often as they may."""

        def share(self, function, task, shards, emit):
            labeler = Labeler(task, emit)
            labeler({name: np.array([bound]) for name, bound in shards[0].items()})
            done.append(shards[0])
            for _ in range(task.max_failures + 1):
                labeler._count_try(shards[1]["start"])
            return False

    with (
        pytest.raises(RunFailed, match="labeling died 2 times on the images from 64 on") as error,
        open_session(config.scale, ignore) as session,
    ):
        label(
            session,
            Store(str(root)),
            again.prepared,
            again.plan.outer,
            "by-the-dying",
            numerics=Numerics(),
            batch_size=64,
            num_actors=None,
            max_failures=1,
            crew=Dying(),
        )
    assert "try a smaller label.batch_size" in str(error.value)
    assert done == [{"start": 0, "stop": 64}]


def test_precision_and_layout_are_measured_once_and_kept(cluster, first):
    _, config, root = first
    store, again = Store(str(root)), run(config, ignore)
    assert again.numerics == {"choice": "fp32 channels_last", "how": "set by the configuration"}
    prepared = again.prepared
    auto = {"precision": "auto", "memory_format": "auto"}
    free = config.model_copy(update={"train": config.train.model_copy(update=auto)})
    choice, record = measured_numerics(cluster, store, free, prepared)
    assert not record["reused"]
    assert record["measured"][0]["numerics"] == str(choice)
    assert len(record["measured"]) > 1
    assert measured_numerics(cluster, store, free, prepared)[1]["reused"]
    alone, record = measured_numerics(cluster, store, config, prepared)  # which pins both
    assert (str(alone), record["measured"]) == ("fp32 channels_last", [])
    _, record = measured_numerics(cluster, store, config, prepared, timed=True)
    assert [row["numerics"] for row in record["measured"]] == ["fp32 channels_last"]
    larger = free.model_copy(update={"fixmatch": free.fixmatch.model_copy(update={"mu": 3})})
    assert not measured_numerics(cluster, store, larger, prepared)[1]["reused"]
    # This run was begun in float32, so float32 it stays, whatever is faster here today.
    kept = run(free, ignore)
    assert kept.numerics == {"choice": "fp32 channels_last", "how": "as this run was begun"}
    assert kept.reused == again.reused


def test_a_finished_run_does_nothing_again(first):
    _, config, _ = first
    again = run(config, ignore)
    assert again.reused == ["data", "baseline", "outer", "label", "select", "inner", "evaluate"]


@pytest.mark.long
def test_another_threshold_reuses_the_outer_network(first):
    _, config, _ = first
    other = config.model_copy(
        update={"select": config.select.model_copy(update={"tau_select": 0.12})}
    )
    events = []
    changed = run(other, events.append)
    assert changed.reused == ["data", "baseline", "outer", "label"]
    started = [event["stage"] for event in events if event.get("state") == "start"]
    assert started == ["data", "select", "inner", "evaluate"]


def test_an_empty_trusted_subset_keeps_the_outer_network(first):
    _, config, _ = first
    strict = config.model_copy(
        update={"select": config.select.model_copy(update={"tau_select": 1.0})}
    )
    with pytest.raises(UserError, match="tau_select") as error:
        run(strict, ignore)
    assert "0." in str(error.value), "thresholds to try"
    assert "The outer network is kept in" in str(error.value)
    again = run(config, ignore)
    assert "outer" in again.reused


@pytest.mark.long
@pytest.mark.parametrize("init", ["outer"])
def test_two_workers_and_an_inner_network_that_starts_from_the_outer(first, init):
    _, config, _ = first
    two = config.model_copy(
        update={
            "inner": config.inner.model_copy(update={"init": init, "loss": "sce"}),
            "scale": config.scale.model_copy(update={"num_workers": 2}),
        }
    )
    finished = run(two, ignore)
    assert finished.resources["workers"] == 2
    assert "inner" not in finished.reused
    assert finished.artifacts["inner"].record()["val_accuracy"] is not None


def test_a_worker_that_fails_ends_the_run_with_its_cause(first):
    _, config, root = first
    wild = config.model_copy(
        update={
            "train": config.train.model_copy(update={"learning_rate": 1e12}),
            "baseline": False,
        }
    )
    with pytest.raises(FloatingPointError, match=r"in update \d+ of 30: most likely"):
        run(wild, ignore)
    assert not list((root / "ray_train").iterdir()), "nothing of Ray's is left in the store"


def test_a_worker_that_raises_is_started_again_and_then_its_error_comes_first(cluster, first):
    _, config, root = first
    store, again = Store(str(root)), run(config, ignore)
    few = config.model_copy(update={"faults": config.faults.model_copy(update={"max_failures": 1})})
    task = TrainTask(
        role="outer",
        key="raises\0",  # no file can be called so
        dataset=again.artifacts["dataset"].key,
        split=again.artifacts["split"].key,
        numerics=Numerics(),
    )
    events = []
    session = dataclasses.replace(cluster, emit=events.append)
    with Crew(session, store, few) as crew, pytest.raises(RunFailed) as error:
        crew.train([task])
    text = str(error.value)
    begin = "training worker 0 failed (after 1 restarts): ValueError: embedded null byte"
    assert text.startswith(begin), text
    assert "Traceback" in text


def test_more_workers_than_cpus_is_refused(first):
    _, config, _ = first
    many = config.model_copy(update={"scale": config.scale.model_copy(update={"num_workers": 16})})
    with pytest.raises(UserError, match="use no more, or fewer CPUs each"):
        run(many, ignore)


def run_python(code, **environment):
    """Run code in a process of its own, in which nothing has prepared Ray's ports."""
    clean = {name: value for name, value in os.environ.items() if name != LOOPBACK}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean | environment,
    )
    return done.stdout.splitlines()


def test_no_ray_process_outlives_the_session_and_all_listen_on_loopback():
    pids, addresses, token = run_python(
        "from kdfm_ray.jobs.session import open_session\n"
        "from kdfm_ray.config import ScaleConfig\n"
        "import platform, psutil\n"
        "with open_session(ScaleConfig(), print) as session:\n"
        "    assert session.call(platform.node) == platform.node()\n"
        "    mine = psutil.Process().children(recursive=True)\n"
        "    found = {c.laddr.ip for p in mine for c in p.net_connections('tcp')\n"
        "             if c.status == 'LISTEN'}\n"
        "print(*[p.pid for p in mine])\n"
        "print(*sorted(found))\n"
        "import os, pathlib\n"
        "mode = pathlib.Path('~/.ray/auth_token').expanduser().stat().st_mode\n"
        "print(os.environ['RAY_AUTH_MODE'], oct(mode & 0o777))\n"
    )
    assert len(pids.split()) > 3
    alive = [pid for pid in map(int, pids.split()) if psutil.pid_exists(pid)]
    assert not [pid for pid in alive if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]
    assert set(addresses.split()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert token == "token 0o600", "who has not Ray's token is turned away"


def test_a_running_cluster_is_joined_and_left_running(cluster):
    import ray

    address = ray.get_runtime_context().gcs_address
    (cpus,) = run_python(
        "from kdfm_ray.jobs.session import open_session\n"
        "from kdfm_ray.config import ScaleConfig\n"
        "with open_session(ScaleConfig(), print) as session:\n"
        "    print(session.room.cpus)\n",
        RAY_ADDRESS=address,
        **{LOOPBACK: "0"},  # as the cluster that is joined
    )
    assert cpus == "4", "the cluster of this file, not a new one"
    assert cluster.call(platform.node) == platform.node()


@pytest.mark.parametrize("verbose", [False, True])
def test_what_tasks_print_is_shown_when_asked_for(cluster, verbose):
    import ray

    lines = run_python(
        "import io, sys, time\n"
        "from kdfm_ray.jobs.session import open_session\n"
        "from kdfm_ray.config import ScaleConfig\n"
        "def say():\n"
        "    print('a task', 'says so', flush=True)\n"
        "class Seen(io.StringIO):\n"
        "    isatty = lambda self: False\n"
        "sys.stdout = seen = Seen()\n"
        f"with open_session(ScaleConfig(), print, verbose={verbose}) as session:\n"
        "    session.call(say)\n"
        f"    until = time.monotonic() + {60 if verbose else 4}\n"
        "    while 'a task says so' not in seen.getvalue() and time.monotonic() < until:\n"
        "        time.sleep(0.1)\n"
        "sys.__stdout__.write(seen.getvalue())\n",
        RAY_ADDRESS=ray.get_runtime_context().gcs_address,
        **{LOOPBACK: "0"},
    )
    assert any("a task says so" in line for line in lines) == verbose, lines
    assert verbose or lines == [], "nothing else either"


def test_a_cluster_that_is_not_there_is_told():
    (text,) = run_python(
        "from kdfm_ray.jobs.session import open_session\n"
        "from kdfm_ray.config import ScaleConfig\n"
        "from kdfm_ray.types import RunFailed, UserError\n"
        "try:\n"
        "    with open_session(ScaleConfig(), print):\n"
        "        pass\n"
        "except UserError as error:\n"
        "    print(str(error).splitlines()[0])\n",
        RAY_ADDRESS="127.0.0.1:1",
    )
    assert text.startswith("cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:1")


@pytest.mark.parametrize(("outer", "told"), [("nowhere", "outer/nowhere is not seen by the node")])
def test_a_labeler_that_cannot_work_ends_with_its_cause(first, outer, told):
    """Not by trying for ever."""
    _, config, root = first
    again = run(config, ignore)
    with (
        pytest.raises((RunFailed, UserError)) as error,
        open_session(config.scale, ignore) as session,
    ):
        label(
            session,
            Store(str(root)),
            again.prepared,
            outer,
            "by-nobody",
            numerics=Numerics(),
            batch_size=128,
            num_actors=1,
        )
    assert told in str(error.value), str(error.value)
