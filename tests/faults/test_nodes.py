"""A cluster of several nodes on this machine, of which one after the other is lost."""

import signal
import time

import psutil
import pytest
from harness import Disturbed, assert_same, command_line, outcome, run_to_end

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.soak,
    # Ray's own: sockets and subprocesses that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning:ray"),
    pytest.mark.filterwarnings("ignore::FutureWarning:ray"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(500),
]


@pytest.fixture
def cluster(monkeypatch):
    """A head that computes nothing, as `cluster.yaml` has it; nodes are noticed soon when lost."""
    monkeypatch.setenv("RAY_health_check_period_ms", "1000")
    monkeypatch.setenv("RAY_health_check_failure_threshold", "3")
    from ray.cluster_utils import Cluster

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    head = {"num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    yield cluster
    cluster.shutdown()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def join(cluster):
    return {
        "RAY_ADDRESS": cluster.address,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # as the cluster that is joined
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",  # a dead node is counted for a while
    }


def node_with(cluster, *names, seconds=60):
    """The node one of whose processes bears one of the names."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for node in cluster.worker_nodes:
            raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
            for child in raylet.children(recursive=True):
                if any(name in command_line(child) for name in names):
                    return node
        time.sleep(0.05)
    raise AssertionError(f"no node has {names}")


def test_a_node_lost_in_each_of_three_stages(cluster, tmp_path):
    expected = tmp_path / "expected"
    expected.mkdir()
    run_to_end(expected, tries=1, scale__num_workers=0)
    folder = tmp_path / "run"
    folder.mkdir()
    cluster.add_node(num_cpus=1)
    cluster.add_node(num_cpus=1)
    with Disturbed(folder, environment=join(cluster)) as run:
        for stage, names in (
            ("outer", ("RayTrainWorker",)),
            ("label", ("MapWorker", "Labeler")),
            ("inner", ("RayTrainWorker",)),
        ):
            if stage == "label":
                assert run.wait_for_stage(stage), run.log()
            else:
                run.wait_for_state(stage)
            cluster.remove_node(node_with(cluster, *names), allow_graceful=False)
            cluster.add_node(num_cpus=1)
        assert run.finish() == 0, run.log()
    assert run.log().count("going on after update") >= 2, run.log()
    assert_same(outcome(folder), outcome(expected))


def test_a_node_that_will_be_taken_away_saves_first(cluster, tmp_path):
    """Told 20 s before, by Ray's own way of draining nodes; no state is due by then."""
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    for _ in range(2):
        cluster.add_node(num_cpus=1)
    flags = {"train__steps": 3000, "faults__save_every": "none", "baseline": "no"}
    with Disturbed(tmp_path, flags, environment=join(cluster)) as run:
        assert run.wait_for_stage("outer"), run.log()
        assert not list(tmp_path.glob("store/states/outer/*/*/manifest.json"))
        node = node_with(cluster, "RayTrainWorker")
        deadline = int((time.time() + 20) * 1000)
        accepted, why = GcsClient(address=cluster.address).drain_node(
            node.node_id, DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION, "spot", deadline
        )
        assert accepted, why
        run.wait_for_state("outer", seconds=20)
        deadline = time.monotonic() + 90
        while "going on after update" not in run.log():
            assert time.monotonic() < deadline, run.log()
            time.sleep(0.2)


def test_with_fewer_workers_until_the_node_is_back(cluster, tmp_path):
    """Two workers, then one, without batch norm: the result agrees with that of one process."""
    group = {"model__norm": "group", "train__steps": 300, "select__clusterer": "none"}
    folder = tmp_path / "run"
    folder.mkdir()
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    flags = group | {"scale__num_workers": 2, "scale__min_workers": 1}
    with Disturbed(folder, flags, environment=join(cluster)) as run:
        assert run.wait_for_stage("outer"), run.log()
        time.sleep(1)
        cluster.remove_node(node_with(cluster, "RayTrainWorker"), allow_graceful=False)
        assert run.finish() == 0, run.log()
    assert "going on after update" in run.log()
    expected = tmp_path / "expected"
    expected.mkdir()
    run_to_end(expected, tries=1, scale__num_workers=0, **group)
    found, wanted = outcome(folder), outcome(expected)
    assert outer_loss(found, step=5) == pytest.approx(outer_loss(wanted, step=5), rel=1e-3)
    accuracies = [each["report"]["val_accuracy"]["outer"] for each in (found, wanted)]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.02)


def outer_loss(found, step):
    (line,) = (
        line
        for line in found["metrics"]
        if line["step"] == step and line["stage"] == "outer" and "loss" in line
    )
    return line["loss"]


@pytest.mark.timeout(900)
def test_from_no_node_to_two_to_one_and_back(cluster, tmp_path):
    """As on spot machines at night; without batch norm the result is that of one process."""
    group = {"model__norm": "group", "train__steps": 700, "select__clusterer": "none"}
    folder = tmp_path / "run"
    folder.mkdir()
    flags = group | {"scale__num_workers": 2, "scale__min_workers": 1}
    with Disturbed(folder, flags, environment=join(cluster)) as run:
        wait_for_text(run, "1 process with 1 CPU needed, the cluster has no node that computes")
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        wait_for_text(run, "going on after")
        run.wait_for_state("outer")
        lost = node_with(cluster, "RayTrainWorker")
        cluster.remove_node(lost, allow_graceful=False)
        wait_for_text(run, "going on after update")
        cluster.add_node(num_cpus=1)
        wait_for_two_workers(cluster)
        assert run.finish(seconds=500) == 0, run.log()
    expected = tmp_path / "expected"
    expected.mkdir()
    run_to_end(expected, tries=1, scale__num_workers=0, **group)
    found, wanted = outcome(folder), outcome(expected)
    for role in ("outer", "inner"):
        accuracies = [each["report"]["val_accuracy"][role] for each in (found, wanted)]
        assert accuracies[0] == pytest.approx(accuracies[1], abs=0.03), role


def wait_for_text(run, text, seconds=120):
    deadline = time.monotonic() + seconds
    while text not in run.log():
        assert time.monotonic() < deadline, run.log()
        assert run.process.poll() is None, run.log()
        time.sleep(0.2)


def wait_for_two_workers(cluster, seconds=120):
    """Training workers on two nodes."""
    deadline = time.monotonic() + seconds
    while True:
        raylets = [
            psutil.Process(node.all_processes["raylet"][0].process.pid)
            for node in cluster.worker_nodes
        ]
        training = [
            any("RayTrainWorker" in command_line(c) for c in raylet.children(recursive=True))
            for raylet in raylets
        ]
        if sum(training) == 2:
            return
        assert time.monotonic() < deadline, training
        time.sleep(0.5)
