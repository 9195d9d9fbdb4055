"""Cluster files against Ray's own schema, and against what must not be open or unpinned.

For a RayJob of Kubernetes Ray has no schema: what must hold is written out.
"""

import itertools
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
RAYJOB = ROOT / "experiments" / "cluster" / "rayjob.yaml"
OTHERS = sorted(set((ROOT / "experiments" / "cluster").glob("*.yaml")) - {RAYJOB})
FILES = [ROOT / "cluster.yaml", *OTHERS]
CLOUDS = [path for path in FILES if path.name != "local.yaml"]  # nodes come and go

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def load(path):
    return yaml.safe_load(path.read_text())


def prepared(path, monkeypatch, tmp_path):
    """With Ray's defaults filled in, as `ray up` does it, without a cloud."""
    from ray.autoscaler._private import util

    config = load(path)
    if config["provider"]["type"] == "local":
        monkeypatch.setattr(
            "ray.autoscaler._private.local.config.get_lock_path", lambda name: str(tmp_path / "l")
        )
        monkeypatch.setattr(
            "ray.autoscaler._private.local.config.get_state_path", lambda name: str(tmp_path / "s")
        )
    return util.prepare_config(config)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_takes_it(path, monkeypatch, tmp_path):
    from ray.autoscaler._private.util import validate_config

    validate_config(prepared(path, monkeypatch, tmp_path))


def test_ray_would_refuse_a_mistake(monkeypatch, tmp_path):
    from ray.autoscaler._private.util import validate_config

    config = prepared(ROOT / "cluster.yaml", monkeypatch, tmp_path)
    with pytest.raises(Exception, match="idle_timeout"):
        validate_config(config | {"idle_timeout": 5})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nobody_reaches_it_without_ssh_and_a_token(path):
    config = load(path)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    starts = [command for command in starts if "ray start" in command]
    assert len(starts) == 2
    for command in starts:
        assert "RAY_AUTH_MODE=token" in command
        assert "0.0.0.0" not in command
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert "~/.ray/auth_token" in config["file_mounts"]
    assert "chmod 600 ~/.ray/auth_token" in config["setup_commands"]
    for rule in config["provider"].get("security_group", {}).get("IpPermissions", ()):
        assert (rule["FromPort"], rule["ToPort"]) == (22, 22)
        assert all(not each["CidrIp"].endswith("/0") for each in rule["IpRanges"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_installs_the_project_with_its_pinned_versions(path):
    config = load(path)
    assert any("constraints.txt" in command for command in config["setup_commands"])
    assert config["file_mounts"]["~/kdfm_ray"] == "."
    excluded = set(config["rsync_exclude"])
    assert {".git/**", ".venv/**", "runs/**"} <= excluded


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_the_head_computes_nothing_and_workers_come_when_asked_for(path):
    types = load(path)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    workers = [kind for name, kind in types.items() if name != "head"]
    assert all(kind["min_workers"] == 0 for kind in workers)
    assert all(kind["resources"]["GPU"] == 1 for kind in workers)


def most_gpus(path):
    """As many as that cluster can have at one time."""
    config = load(path)
    if path == RAYJOB:
        groups = config["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        return sum(group["maxReplicas"] * gpus(container(group), "limits") for group in groups)
    kinds = [kind for name, kind in config["available_node_types"].items() if name != "head"]
    most = sum(kind["max_workers"] * kind["resources"]["GPU"] for kind in kinds)
    return min(most, config["max_workers"] * max(kind["resources"]["GPU"] for kind in kinds))


def container(group):
    (only,) = group["template"]["spec"]["containers"]
    return only


def gpus(container, kind):
    return int(container["resources"][kind].get("nvidia.com/gpu", 0))


@pytest.mark.parametrize("path", [*CLOUDS, RAYJOB], ids=lambda path: path.name)
def test_its_gpus_are_as_many_as_presets_and_written_commands_ask_for(path):
    from experiments import PRESETS, paper

    asked = {name: PRESETS[name]().scale.num_workers for name in paper.PRESETS}
    for place in (path, ROOT / "docs" / "cluster.md", ROOT / "README.md"):
        for number in re.findall(r"--scale\.num-workers (\d+)", place.read_text()):
            asked[f"{place.name}: {number}"] = int(number)
    assert f"{path.name}: 4" in asked  # the example in its own comment or entrypoint
    most = most_gpus(path)
    assert {name: number for name, number in asked.items() if number > most} == {}


class TestRayJob:
    @pytest.fixture
    def spec(self):
        manifest = load(RAYJOB)
        assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
        return manifest["spec"]

    @pytest.fixture
    def cluster(self, spec):
        return spec["rayClusterSpec"]

    def test_the_head_computes_nothing_and_workers_come_when_asked_for(self, spec, cluster):
        head = cluster["headGroupSpec"]
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert gpus(container(head), "limits") == 0
        assert cluster["enableInTreeAutoscaling"] is True
        for group in cluster["workerGroupSpecs"]:
            assert (group["replicas"], group["minReplicas"]) == (0, 0)
            assert group["maxReplicas"] >= 1
        assert "entrypointNumCpus" not in spec  # else the driver is on a pod that may go

    def test_limits_are_requests_and_each_worker_has_a_whole_gpu(self, cluster):
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            resources = container(group)["resources"]
            assert resources["limits"] == resources["requests"]
        for group in cluster["workerGroupSpecs"]:
            assert gpus(container(group), "limits") == gpus(container(group), "requests") == 1

    def test_nobody_reaches_it_from_outside_or_without_the_token(self, cluster):
        head = cluster["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP"
        assert head["enableIngress"] is False
        assert cluster["authOptions"]["mode"] == "token"
        assert cluster["authOptions"]["secretName"]
        for group in (head, *cluster["workerGroupSpecs"]):
            assert "dashboard-host" not in group["rayStartParams"]
            pod = group["template"]["spec"]
            assert not pod.get("hostNetwork")
            assert all("hostPort" not in port for port in container(group).get("ports", ()))
            assert not container(group).get("securityContext", {}).get("privileged")
        assert "AWS_SECRET" not in str(cluster)  # keys come by a role, or by a Secret

    def test_its_versions_are_the_pinned_ones(self, cluster):
        pinned = dict(
            line.split("==")
            for line in (ROOT / "constraints.txt").read_text().splitlines()
            if "==" in line
        )
        assert cluster["rayVersion"] == pinned["ray"]
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert f"ray{pinned['ray']}-py311" in container(group)["image"]
        guide = (ROOT / "docs" / "cluster.md").read_text()
        assert f"FROM rayproject/ray:{pinned['ray']}-py311-gpu" in guide

    def test_it_ends_and_is_given_again_after_a_failure(self, spec):
        assert spec["shutdownAfterJobFinishes"] is True
        assert spec["ttlSecondsAfterFinished"] > 0
        assert spec["backoffLimit"] >= 1
        assert spec["activeDeadlineSeconds"] > 0
        assert "--store s3://" in spec["entrypoint"]  # what the next try goes on from
        assert "RAY_JOB_STOP_WAIT_TIME_S" in yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]


@pytest.mark.parametrize("path", [*FILES, RAYJOB], ids=lambda path: path.name)
def test_the_guide_knows_it(path):
    assert path.name in (ROOT / "docs" / "cluster.md").read_text()


def test_every_field_of_the_first_cluster_file_is_explained():
    """Each top-level field, and each kind of node, has a comment above it or in its line."""
    lines = (ROOT / "cluster.yaml").read_text().splitlines()
    bare = []
    for before, line in itertools.pairwise(lines):
        field = re.match(r"( {0,2})([a-z_]+):", line)
        if field and not before.strip().startswith("#") and " # " not in line:
            bare.append(field[2])
    # Their own first lines are the comments.
    assert set(bare) <= {"available_node_types", "provider", "auth", "head", "type", *KINDS}
    for name in ("available_node_types", "provider", "auth", *KINDS):
        following = lines[next(n for n, each in enumerate(lines) if each.strip() == f"{name}:") + 1]
        assert following.strip().startswith("#"), name


KINDS = ("head", "gpu_spot", "gpu_on_demand")
