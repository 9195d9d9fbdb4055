"""What Ray makes of the cluster files of clouds: its set-up of AWS, and which nodes it starts.

AWS is simulated in this process (moto); the scheduler is Ray's own, without a cluster.
"""

import copy
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent
AWS = ROOT / "cluster.yaml"
CLOUDS = [AWS, ROOT / "experiments" / "cluster" / "gcp.yaml"]
WORLD = "0.0.0.0/0"

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def prepared(path):
    from ray.autoscaler._private.util import prepare_config

    return prepare_config(yaml.safe_load(path.read_text()))


@pytest.fixture
def ec2(tmp_path, monkeypatch):
    """A simulated AWS with a default network, and what the AWS part of Ray keeps of it."""
    moto, boto3 = pytest.importorskip("moto"), pytest.importorskip("boto3")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray writes the private key there
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # 15 s each for roles to be known
    with moto.mock_aws():
        yield boto3.client("ec2", region_name="us-east-1")


def with_own_group(ec2, config):
    """The file with the placeholder of its group replaced."""
    (network,) = ec2.describe_vpcs()["Vpcs"]
    made = ec2.create_security_group(GroupName="g", Description="d", VpcId=network["VpcId"])
    for kind in config["available_node_types"].values():
        kind["node_config"]["SecurityGroupIds"] = [made["GroupId"]]
    return config


def groups_open_to_all(ec2):
    return [
        (group["GroupName"], rule["FromPort"])
        for group in ec2.describe_security_groups()["SecurityGroups"]
        for rule in group["IpPermissions"]
        if any(each["CidrIp"] == WORLD for each in rule["IpRanges"])
    ]


def bootstrapped(config):
    from ray.autoscaler._private.aws.config import bootstrap_aws

    return bootstrap_aws(config)


def test_ray_takes_images_group_and_profiles_of_the_file(ec2):
    config = with_own_group(ec2, prepared(AWS))
    asked = copy.deepcopy(config["available_node_types"])
    done = bootstrapped(config)
    assert "IamInstanceProfile" not in done.get("head_node", {})  # that of Ray: all of EC2 and S3
    for name, kind in done["available_node_types"].items():
        for field in ("ImageId", "SecurityGroupIds", "IamInstanceProfile"):
            assert kind["node_config"][field] == asked[name]["node_config"][field], name
    assert groups_open_to_all(ec2) == []


def test_a_group_that_ray_makes_is_open_to_the_world(ec2):
    """Why the file names one: whatever rules `security_group` of the provider has."""
    config = prepared(AWS)
    rule = {"FromPort": 22, "ToPort": 22, "IpProtocol": "TCP"}
    rule["IpRanges"] = [{"CidrIp": "203.0.113.7/32"}]
    config["provider"]["security_group"] = {"GroupName": "ray", "IpPermissions": [rule]}
    for kind in config["available_node_types"].values():
        del kind["node_config"]["SecurityGroupIds"]
    bootstrapped(config)
    assert groups_open_to_all(ec2) == [("ray", 22)]


def test_ray_stops_at_the_group_that_nobody_has_replaced(ec2, capsys):
    with pytest.raises(AssertionError):
        bootstrapped(prepared(AWS))
    assert "Failed to detect a security group" in capsys.readouterr().err
    assert ec2.describe_instances()["Reservations"] == []


def launched(path, demand, *, constraint=(), failures=()):
    """How many nodes of each kind Ray's autoscaler would start on that cluster, for what is asked.

    Args:
        path: of the cluster file.
        demand: resources of one process each, that pending tasks ask for.
        constraint: the same, that `request_resources` asks for.
        failures: kinds of which a start was refused just now.
    """
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
    from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import (
        CloudResourceMonitor,
    )
    from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
    from ray.autoscaler.v2.utils import ResourceRequestUtil
    from ray.core.generated.autoscaler_pb2 import ClusterResourceConstraint
    from ray.core.generated.instance_manager_pb2 import Instance, InstanceUpdateEvent

    config = AutoscalingConfig(yaml.safe_load(path.read_text()), skip_content_hash=True)
    monitor = CloudResourceMonitor()
    refused = Instance.ALLOCATION_FAILED
    monitor.notify(
        [InstanceUpdateEvent(instance_type=kind, new_instance_status=refused) for kind in failures]
    )

    def grouped(bundles):
        made = [ResourceRequestUtil.make(bundle) for bundle in bundles]
        return ResourceRequestUtil.group_by_count(made)

    asked = ClusterResourceConstraint(resource_requests=grouped(constraint))
    reply = ResourceDemandScheduler().schedule(
        SchedulingRequest(
            node_type_configs=config.get_node_type_configs(),
            max_num_nodes=config.get_max_num_worker_nodes(),  # the head is left out here
            disable_launch_config_check=True,
            resource_requests=grouped(demand),
            cluster_resource_constraints=[asked] if constraint else [],
            cloud_resource_availabilities=monitor.get_resource_availabilities(),
            recoverable_resource_availabilities=monitor.get_recoverable_resource_availabilities(),
        )
    )
    return {each.instance_type: each.count for each in reply.to_launch}


WORKER = {"CPU": 3, "GPU": 1}


@pytest.mark.parametrize("path", CLOUDS, ids=lambda path: path.name)
class TestWhichNodesStart:
    def test_spot_is_the_first_choice(self, path):
        assert launched(path, [WORKER] * 4) == {"gpu_spot": 4}
        assert launched(path, [{"CPU": 1}]) == {"gpu_spot": 1}
        assert launched(path, [{"CPU": 1, "GPU": 0.5}]) == {"gpu_spot": 1}

    def test_never_more_than_the_file_allows(self, path):
        assert launched(path, [WORKER] * 20) == {"gpu_spot": 8}

    def test_on_demand_comes_when_it_is_asked_for(self, path):
        asked = [{"on_demand": 1}] * 2
        assert launched(path, [], constraint=asked) == {"gpu_on_demand": 2}
        # They serve what waits already.
        both = launched(path, [WORKER] * 4, constraint=asked)
        assert both == {"gpu_on_demand": 2, "gpu_spot": 2}

    def test_a_refused_start_of_spot_changes_nothing(self, path):
        """What the comments warn of; if Ray learns it, they have to be rewritten."""
        assert launched(path, [WORKER] * 4, failures=["gpu_spot"]) == {"gpu_spot": 4}

    def test_the_command_of_the_guide_brings_them(self, path, monkeypatch):
        guide = (ROOT / "docs" / "cluster.md").read_text()
        (code,) = re.findall(r"""'RAY_ADDRESS=auto python -c "(.+)"'""", guide)
        asked = []
        monkeypatch.setattr("ray.init", lambda: None)
        monkeypatch.setattr(
            "ray.autoscaler.sdk.request_resources", lambda bundles: asked.extend(bundles)
        )
        exec(code, {})
        assert launched(path, [], constraint=asked) == {"gpu_on_demand": 2}
