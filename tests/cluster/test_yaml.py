"""Cluster files against Ray's own schema, and against what must not be open or unpinned.

For a RayJob of Kubernetes Ray has no schema: what must hold is written out.
"""

import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
RAYJOB = ROOT / "experiments" / "cluster" / "rayjob.yaml"
LOCAL = ROOT / "experiments" / "cluster" / "local.yaml"
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


def test_nothing_of_aws_is_left_to_ray():
    """Its own image is too old, its group open to the world, its profile one for everything."""
    config = load(ROOT / "cluster.yaml")
    assert "security_group" not in config["provider"]  # of a group that Ray makes
    for kind in config["available_node_types"].values():
        asked = kind["node_config"]
        assert asked["ImageId"].startswith("ami-")
        assert [each[:3] for each in asked["SecurityGroupIds"]] == ["sg-"]
        assert asked["IamInstanceProfile"]["Name"].startswith("kdfm-")


def test_the_script_for_aws_makes_what_the_file_asks_for():
    script = (ROOT / "experiments" / "cluster" / "aws.sh").read_text()
    text = (ROOT / "cluster.yaml").read_text()
    (roles,) = [line.split() for line in re.findall(r"for role in (.+); do", script)]
    for kind in load(ROOT / "cluster.yaml")["available_node_types"].values():
        asked = kind["node_config"]
        assert asked["IamInstanceProfile"]["Name"] in roles
        assert f"{asked['ImageId']} $" in script  # what it prints
        assert f"{asked['SecurityGroupIds'][0]} $group" in script
    for parameter in re.findall(r"/aws/service/(\S+ami-id)", text):
        assert f"$(image {parameter})" in script
    assert len(re.findall(r"\$\(image ", script)) == 2
    assert "/0" not in script  # nobody's door is opened to all
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_installs_the_project_with_its_pinned_versions(path):
    config = load(path)
    assert any("constraints.txt" in command for command in config["setup_commands"])
    assert config["file_mounts"]["~/kdfm_ray"] == "."


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_command_is_left_to_ray(path, monkeypatch, tmp_path):
    """Ray's own install into whatever Python there is, and fail where it has no pip."""
    config = prepared(path, monkeypatch, tmp_path)
    own = load(path)["setup_commands"]
    assert config["head_setup_commands"] == config["worker_setup_commands"] == own
    assert not config["initialization_commands"]


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_all_nodes_of_a_cloud_have_one_python(path):
    """Exactly one release, and one that the project takes; Ray refuses nodes that differ."""
    text = " ".join(load(path)["setup_commands"])
    (python,) = re.findall(r"--managed-python --python (\S+)", text)
    (least,) = re.findall(r'requires-python = ">=(.+)"', (ROOT / "pyproject.toml").read_text())
    assert re.fullmatch(r"\d+\.\d+\.\d+", python)
    assert python.startswith(f"{least}.")  # the one that constraints.txt is for
    assert re.search(r"/uv/\d+\.\d+\.\d+/install", text)


@pytest.mark.skipif(shutil.which("rsync") is None, reason="needs rsync")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_code_goes_to_the_nodes_and_nothing_that_runs_have_made(path, tmp_path):
    """By rsync itself, with the flags that Ray gives it."""
    stays = [".git/HEAD", ".venv/bin/x", "runs/a/model", "store/outer/x", "data/1.png"]
    stays += ["gpu_check/log", "kdfm_ray/__pycache__/a.pyc", ".mypy_cache/a"]
    goes = ["kdfm_ray/data/folder.py", "tests/data/test_folder.py", "constraints.txt"]
    for name in (*stays, *goes):
        (tmp_path / "here" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "here" / name).write_text("x")
    flags = [flag for each in load(path)["rsync_exclude"] for flag in ("--exclude", each)]
    subprocess.run(["rsync", "-az", *flags, f"{tmp_path}/here/", f"{tmp_path}/there/"], check=True)
    there = tmp_path / "there"
    found = {each.relative_to(there).as_posix() for each in there.rglob("*") if each.is_file()}
    assert found == set(goes)


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
def test_the_head_computes_nothing_and_workers_come_when_asked_for(path):
    types = load(path)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    workers = [kind for name, kind in types.items() if name != "head"]
    assert all(kind["min_workers"] == 0 for kind in workers)
    assert all(kind["resources"]["GPU"] == 1 for kind in workers)


def test_the_head_of_own_machines_computes_nothing():
    (start,) = [each for each in load(LOCAL)["head_start_ray_commands"] if "ray start" in each]
    assert "--num-cpus=0 " in start


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


def gpus_of_sweep(sweep):
    """Of its largest trial; and of all that have to run at once, where it says how many."""
    settings = [*sweep.cases, {}]
    workers = [case.get("scale.num_workers", sweep.base.scale.num_workers) for case in settings]
    if "scale.num_workers" in sweep.space:
        workers += sweep.space["scale.num_workers"].values
    return max(workers) * (sweep.max_concurrent or 1)


@pytest.mark.parametrize("path", [*CLOUDS, RAYJOB], ids=lambda path: path.name)
def test_its_gpus_are_as_many_as_presets_sweeps_and_written_commands_ask_for(path):
    from experiments import PRESETS, SWEEPS, paper

    asked = {name: PRESETS[name]().scale.num_workers for name in paper.PRESETS}
    asked |= {name: gpus_of_sweep(make()) for name, make in SWEEPS.items()}
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


@pytest.mark.parametrize("path", [*FILES, RAYJOB], ids=lambda path: path.name)
def test_every_field_is_explained(path):
    """Each field at any depth has a comment in its line, or in the line above."""
    text = path.read_text()
    lines = text.splitlines()
    bare = []
    for name, number in fields(yaml.compose(text)):
        above = lines[number - 1].strip() if number else ""
        if not re.search(r"\s# \w", lines[number]) and not above.startswith("# "):
            bare.append(f"{number + 1}: {name}")
    assert bare == []


def fields(node):
    """Names of the fields below, and the numbers of their lines, from 0."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key.value, key.start_mark.line
            yield from fields(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from fields(each)


@pytest.mark.parametrize("path", [*FILES, RAYJOB], ids=lambda path: path.name)
def test_what_has_to_be_replaced_is_listed_in_the_first_lines(path):
    lines = path.read_text().splitlines()
    length = next(n for n, line in enumerate(lines) if not line.startswith("#"))
    (number,) = re.findall(r"Replace these (\d+) values", "\n".join(lines[:length]))
    after = itertools.dropwhile(lambda line: "Replace these" not in line, lines[:length])
    table = itertools.dropwhile(lambda line: not line.startswith("#   "), after)
    table = itertools.takewhile(lambda line: line.startswith("#   "), table)
    listed = set(re.findall(PLACEHOLDER, "\n".join(table)))
    used = set()
    for line in lines[length:]:
        used |= set(re.findall(PLACEHOLDER, line.partition("# ")[0]))
    assert used == listed
    assert len(used) == int(number)


PLACEHOLDER = r"[\w@-]*REPLACE[\w.-]*|YOUR-[A-Z]+|192\.0\.2\.\d+|~/\.ssh/kdfm_cluster"
