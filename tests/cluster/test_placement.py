"""Where Ray puts what a run asks for: a head without CPUs, two unequal nodes, one logical GPU.

No CUDA is needed: what asks for the GPU is replaced by a probe that tells where it runs.
"""

import json
import os
import signal
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import kdfm_ray as kdfm
from kdfm_ray.config import Config, ScaleConfig
from kdfm_ray.jobs import evaluate, label, predict, select
from kdfm_ray.jobs.session import LOOPBACK, open_session
from kdfm_ray.jobs.shared import check_shared
from kdfm_ray.store import Store
from kdfm_ray.types import RunFailed, UserError

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.soak,  # several nodes as processes: minutes
    # Ray's own: sockets and subprocesses that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
TINY = {
    "scale.cpus_per_worker": 1,
    "scale.use_gpu": "no",
    "label.num_actors": 2,
    "train.steps": 4,
    "train.batch_size": 12,
    "train.eval_every": 4,
    "train.precision": "fp32",
    "train.memory_format": "channels_last",
    "fixmatch.mu": 1,
    "data.image_size": 16,
    "select.tau_select": 0.0,
    "select.clusterer": "none",
    "baseline": False,
}


@pytest.fixture(scope="module")
def cluster():
    """A head without CPUs; ``large`` with 2 CPUs, ``small`` with one and a GPU."""
    from kdfm_ray.jobs.session import prepare_environment

    patch = pytest.MonkeyPatch()
    patch.setenv(LOOPBACK, "0")
    patch.setenv("RAY_health_check_period_ms", "1000")
    patch.setenv("RAY_health_check_failure_threshold", "3")
    prepare_environment(local=True)
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import it
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    found = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    found.large = found.add_node(num_cpus=2, num_gpus=0)
    found.small = found.add_node(num_cpus=1, num_gpus=1)
    patch.setenv("RAY_ADDRESS", found.address)
    yield found
    found.shutdown()
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])
    patch.undo()
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture
def told():
    return []


@pytest.fixture
def session(cluster, told):
    scale = ScaleConfig(num_workers=1)
    with open_session(scale, told.append, wait_minutes=0.5) as found:
        assert found.use_gpu
        yield found


def here():
    import ray

    return ray.get_runtime_context().get_node_id(), ray.get_gpu_ids()


def note_where(store_root, *rest):
    """In place of a stage: leaves where it ran."""
    Path(store_root, "where.json").write_text(json.dumps(here()))


class Thing:
    """An artifact or what was prepared, as far as it is sent to a task."""

    key = "k"


Thing.dataset = Thing.split = Thing


def test_selection_and_evaluation_ask_for_a_gpu_of_a_worker_node(
    cluster, session, tmp_path, monkeypatch
):
    store = Store(str(tmp_path / "store"))
    monkeypatch.setattr(select, "_select", note_where)
    monkeypatch.setattr(evaluate, "_evaluate", note_where)

    def where():
        node, gpus = json.loads(Path(store.root, "where.json").read_text())
        Path(store.root, "where.json").unlink()
        return node, [int(gpu) for gpu in gpus]

    select.select(session, store, Config(data={"name": "digits"}), Thing, "labels", "key")
    assert where() == (cluster.small.node_id, [0])
    evaluate.evaluate(session, store, Thing, {}, "key", numerics=None, batch_size=1)
    assert where() == (cluster.small.node_id, [0])
    assert session.call(here)[1] == [], "what computes nothing asks for none"


class Probe:
    """In place of an actor that labels or predicts: leaves where it ran, beside the others."""

    def __init__(self, task, other):
        self.folder = Path(task if isinstance(task, str) else task.folder)

    def __call__(self, shards):
        name = f"{os.getpid()}-{uuid.uuid4().hex}"
        (self.folder / name).write_text(json.dumps(here()))
        deadline = time.monotonic() + 60
        while len(pids(self.folder)) < 2:  # both hold the GPU at once, or this never ends
            assert time.monotonic() < deadline, "no other actor beside this one"
            time.sleep(0.1)
        return shards


def pids(folder):
    return {path.name.partition("-")[0] for path in folder.iterdir()}


def test_labeling_actors_share_a_gpu(cluster, session, tmp_path, monkeypatch):
    monkeypatch.setattr(label, "Labeler", Probe)
    shards = [{"start": start, "stop": start + 1} for start in range(6)]
    label._label_by_job(str(tmp_path), shards, session, 2, 0.5)
    found = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert {(node, *gpus) for node, gpus in found} == {(cluster.small.node_id, 0)}
    assert len(pids(tmp_path)) == 2
    assert label.default_actors(session, 0.5) == 2


def test_predicting_asks_for_the_share_that_labeling_had(session, tmp_path, monkeypatch):
    asked = []

    class Asked(Exception):
        pass

    def note(session, gpus):
        asked.append(gpus)
        raise Asked

    monkeypatch.setattr(predict, "actor_resources", note)
    shape = {"data": {"image_shape": [8, 8, 1]}}
    run = kdfm.jobs.finished.FinishedRun(tmp_path, shape, {})
    assert run.gpus_per_actor() == 1.0, "without a config"
    config = Config(data={"name": "digits"}, label={"gpus_per_actor": 0.25})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    images = predict.Images(("a",), ("a",))
    parts = predict.predict_images(
        session, run, images, temperature=1.0, batch_size=1, gpus_per_actor=run.gpus_per_actor()
    )
    with pytest.raises(Asked):
        next(parts)
    assert asked == [0.25]


def test_every_node_is_asked_about_a_uri(cluster, session, tmp_path):
    (tmp_path / "store").mkdir()
    check_shared(session, Store(f"file://{tmp_path}/store"))
    assert list((tmp_path / "store").iterdir()) == []
    with pytest.raises(UserError, match=r"memory://b does not work from 3 of 3 nodes.*not seen"):
        check_shared(session, Store("memory://b"))


def slow(marks):
    """Tells that it began; ends at once where it begins again."""
    number = len(list(Path(marks).iterdir()))
    Path(marks, f"{number}").touch()
    if number == 0:
        time.sleep(600)
    return number


@pytest.mark.soak
def test_a_stage_whose_node_goes_says_so_and_waits(cluster, session, told, tmp_path):
    """Twice: a node comes back in time, and none does."""
    with ThreadPoolExecutor(1) as pool:  # Ray starts nodes in the main thread only
        for number, comes_back in enumerate((True, False)):
            marks = tmp_path / str(number)
            marks.mkdir()
            call = pool.submit(session.call, slow, str(marks), gpu=True)
            wait_until(lambda marks=marks: list(marks.iterdir()))
            told.clear()
            cluster.remove_node(cluster.small, allow_graceful=False)
            wait_until(lambda: any("waiting up to" in event.get("note", "") for event in told))
            if comes_back:
                cluster.small = cluster.add_node(num_cpus=1, num_gpus=1)
                assert call.result(timeout=120) == 1
            else:
                with pytest.raises(RunFailed, match=r"no more nodes came within 0.5 minutes"):
                    call.result(timeout=120)
            session.drain()
            notes = [event["note"] for event in told if "note" in event]
            assert "1 process with 1 GPU and 1 CPU needed, the cluster has 2 CPUs" in notes[0]
            assert ("going on after" in notes[-1]) == comes_back
    cluster.small = cluster.add_node(num_cpus=1, num_gpus=1)


def wait_until(happened, seconds=90):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def nodes_of(cluster, name):
    """Node -> how many actors of a class were there, since the cluster began."""
    import ray
    from ray._private.state import state

    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        found = {}
        for actor in state.actor_table(None).values():
            if name in actor["ActorClassName"]:
                found[actor["ActorID"]] = actor["Address"]["NodeID"]
        return found
    finally:
        ray.shutdown()


@pytest.mark.soak
@pytest.mark.timeout(590)
@pytest.mark.parametrize("workers", [2, 3])
def test_training_is_packed_and_labels_are_spread(cluster, tmp_path, workers):
    """Two workers fit on the larger node; three need both, which are unequal."""
    before = {name: nodes_of(cluster, name) for name in ("RayTrainWorker", "MapWorker")}
    (tmp_path / "store").mkdir()
    run = kdfm.train(
        "digits",
        out=tmp_path / "run",
        store=f"file://{tmp_path}/store",
        settings=TINY | {"scale.num_workers": workers},
        progress=False,
    )
    assert run.report["test_accuracy"]["inner"] is not None
    after = {name: nodes_of(cluster, name) for name in before}
    new = {
        name: sorted(after[name][actor] for actor in after[name].keys() - before[name].keys())
        for name in before
    }
    large, small = cluster.large.node_id, cluster.small.node_id
    twice = [large, large] * 2  # the outer network, and the inner one
    assert new["RayTrainWorker"] == sorted(twice + ([small] * 2 if workers == 3 else []))
    assert new["MapWorker"] == sorted([large, small])
