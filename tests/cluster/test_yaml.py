"""Cluster files against Ray's own schema, and against what must not be open or unpinned."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
FILES = [ROOT / "cluster.yaml", *sorted((ROOT / "experiments" / "cluster").glob("*.yaml"))]
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


def test_the_papers_presets_fit_on_it():
    """As many workers as a preset asks for, with a GPU each."""
    from experiments import PRESETS, paper

    config = load(ROOT / "cluster.yaml")
    for name in paper.PRESETS:
        assert PRESETS[name]().scale.num_workers <= config["max_workers"]
