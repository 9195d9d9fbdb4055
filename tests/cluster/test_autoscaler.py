"""A cluster that begins with a head alone: Ray's autoscaler starts and ends nodes for a run.

Its nodes are processes of this machine (Ray's own `fake_multinode` provider, which its tests use).
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.soak, pytest.mark.timeout(590)]

HEAD, HEAD_TYPE = "f" * 51 + "00000", "ray.head.default"  # the provider's names
TYPES = {
    HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
    "worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2},
}
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray")
RUN = [
    *("train", "digits", "--baseline", "no", "--scale.cpus-per-worker", "1"),
    *("--select.clusterer", "none", "--select.tau-select", "0.1"),
    *("--train.steps", "40", "--train.eval-every", "20", "--train.precision", "fp32"),
]


def cluster_file(port):
    return {
        "cluster_name": "kdfm-test",
        "max_workers": 2,
        "upscaling_speed": 10,
        "idle_timeout_minutes": 0.25,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "head_node_id": HEAD,
            "launch_multiple": True,
            "use_node_id_as_ip": True,  # all of them have one address
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "worker_liveness_check": False,
        },
        "auth": {},
        "available_node_types": TYPES,
        "head_node_type": HEAD_TYPE,
        "head_node": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        "worker_start_ray_commands": [],
        **{f"{name}_commands": [] for name in COMMANDS},
    }


class Autoscaled:
    """The cluster, and commands on its head."""

    def __init__(self, folder, port=7397):
        self.address, self.folder = f"127.0.0.1:{port}", folder
        home = folder / "home"
        home.mkdir()
        file = home / "ray_bootstrap_config.yaml"  # where `ray up` puts it
        file.write_text(json.dumps(cluster_file(port)))
        self.environment = os.environ | {
            "HOME": str(home),
            "RAY_AUTH_MODE": "disabled",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ADDRESS": self.address,
        }
        of_head = {
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "0",
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
            "RAY_CLOUD_INSTANCE_ID": HEAD,
        }
        environment = self.environment | of_head
        del environment["RAY_ADDRESS"]
        ray = str(Path(sys.executable).parent / "ray")
        start = [ray, "start", "--head", "--block", "--num-cpus", "0", "--port", str(port)]
        start += ["--node-ip-address", "127.0.0.1", "--include-dashboard", "false"]
        self.temporary = tempfile.mkdtemp(prefix="kdfm-")  # names of sockets have to be short
        start += ["--temp-dir", self.temporary, "--autoscaling-config", str(file)]
        with (folder / "head.log").open("w") as log:
            self.head = subprocess.Popen(start, env=environment, stdout=log, stderr=log)

    def nodes(self):
        """CPUs of the nodes that are there."""
        look = (
            "import ray; ray.init(log_to_driver=False, logging_level='error'); "
            "print([n['Resources'].get('CPU', 0) for n in ray.nodes() if n['Alive']])"
        )
        found = subprocess.run(
            [sys.executable, "-c", look], env=self.environment, capture_output=True, text=True
        )
        return json.loads(found.stdout.splitlines()[-1]) if found.returncode == 0 else None

    @contextlib.contextmanager
    def watched(self):
        """Numbers of worker nodes during the block, each with when it was first seen to be so."""
        look = (
            "import ray, time\n"
            "ray.init(log_to_driver=False, logging_level='error')\n"
            "before = None\n"
            "while True:\n"
            "    now = sum(n['Alive'] and n['Resources'].get('CPU', 0) > 0 for n in ray.nodes())\n"
            "    if now != before:\n"
            "        print(now, time.time(), flush=True)\n"
            "    before = now\n"
            "    time.sleep(0.2)\n"
        )
        log = self.folder / "nodes.txt"
        with log.open("w") as file:
            watcher = subprocess.Popen(
                [sys.executable, "-c", look], env=self.environment, stdout=file
            )
        try:
            yield lambda: [
                (int(number), float(when))
                for number, when in map(str.split, log.read_text().splitlines())
            ]
        finally:
            watcher.kill()
            watcher.wait()

    def run(self, *arguments):
        run = ["--store", str(self.folder / "store"), "--out", str(self.folder / "run")]
        return subprocess.run(
            [sys.executable, "-m", "kdfm_ray", *RUN, *run, *arguments],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=300,
        )

    def end(self):
        children = psutil.Process(self.head.pid).children(recursive=True)
        self.head.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.head.wait(60)
        self.head.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        shutil.rmtree(self.temporary, ignore_errors=True)


@pytest.fixture
def cluster(tmp_path):
    cluster = Autoscaled(tmp_path)
    try:
        deadline = time.monotonic() + 60
        while cluster.nodes() != [0]:
            assert time.monotonic() < deadline, (tmp_path / "head.log").read_text()
        yield cluster
    finally:
        cluster.end()


def test_nodes_come_for_a_run_and_go_after_it(cluster):
    refused = cluster.run("--scale.num-workers", "3")
    assert refused.returncode == 2, refused
    assert "3 training workers x 1 CPUs = 3, the cluster has 2 on 2 node(s)" in refused.stderr
    assert cluster.nodes() == [0], "nothing is started for what can never be"

    done = cluster.run("--scale.num-workers", "2")
    assert done.returncode == 0, done
    print(done.stdout)
    told = [line for line in done.stdout.splitlines() if "nodes: " in line or "going on" in line]
    assert "1 process with 1 CPU needed, the cluster has no node that computes" in told[0], told
    assert "2 processes with 1 CPU each needed, the cluster has 1 CPU on 1 node" in told[2]
    assert "2 CPUs on 2 nodes" in told[3], told
    assert sorted(cluster.nodes()) == [0, 1, 1]

    deadline = time.monotonic() + 120
    while cluster.nodes() != [0]:
        assert time.monotonic() < deadline, "idle nodes stay"
        time.sleep(1)


def test_labels_bring_a_node_more_which_goes_again(cluster):
    """One worker trains on one node; two labeling actors need two; in the end there is none."""
    with cluster.watched() as changes:
        small = ("--label.num-actors", "2", "--label.batch-size", "16")  # 18 shards
        done = cluster.run("--scale.num-workers", "1", *small)
        assert done.returncode == 0, done
        metrics = (cluster.folder / "run" / "metrics.jsonl").read_text().splitlines()
        assert {json.loads(line)["stage"] for line in metrics} >= {"outer", "inner"}
        deadline = time.monotonic() + 120
        while changes()[-1][0] != 0:
            assert time.monotonic() < deadline, ("idle nodes stay", changes())
            time.sleep(1)
    numbers = [number for number, _ in changes()]
    print(changes())
    assert numbers[:3] == [0, 1, 2], numbers
    assert max(numbers) == 2
    (manifest,) = (cluster.folder / "store" / "labels").glob("*/manifest.json")
    trained = (cluster.folder / "store" / "outer").glob("*/manifest.json")
    second = next(when for number, when in changes() if number == 2)
    assert next(trained).stat().st_mtime < second < manifest.stat().st_mtime, "for the labels"
