"""The cluster files: by Ray's own validation, by what it misses, and on an AWS that moto plays on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto import mock_aws

from orchestrator.cluster.machines import EXPECTS_GPUS
from tests.factories import AWS, OWN, ROOT, read

REGION = "eu-central-1"


def prepared(config: dict[str, Any]) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    made: dict[str, Any] = prepare_config(config)
    validate_config(made)
    return made


@pytest.mark.parametrize("path", [AWS, OWN], ids=lambda path: path.name)
def test_ray_itself_takes_the_file(path: Path) -> None:
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    made = AutoscalingConfig(prepared(read(path)), skip_content_hash=True)
    assert made.get_idle_timeout_s() > 0
    if path == AWS:
        assert made.get_head_node_type() == "head"
        types = made.get_node_type_configs()
        assert {name: (types[name].min_worker_nodes, types[name].max_worker_nodes) for name in ("spot_t4", "on_demand_t4")} == {
            "spot_t4": (0, 8),
            "on_demand_t4": (0, 2),
        }


def test_ray_itself_refuses_what_is_not_in_its_schema() -> None:
    """That the test above can fail."""
    with pytest.raises(Exception, match="max_worker"):
        prepared({**read(AWS), "max_worker": 3})


@pytest.mark.parametrize("path", [AWS, OWN], ids=lambda path: path.name)
def test_what_the_schema_misses(path: Path) -> None:
    file, made = read(path), prepared(read(path))
    for key in ("setup_commands", "head_setup_commands", "worker_setup_commands"):
        assert file[key] == made[key] == [], "left out, Ray installs a nightly over the image"
    assert re.search(r":[^/]+$|@sha256:", file["docker"]["image"]), "by tag or digest"
    assert not {"head_image", "worker_image"} & set(file["docker"]), "image alone: the two pass here and fail in autoscaler v2"
    options = " ".join(file["docker"]["run_options"])
    assert "RAY_AUTH_MODE=token" in options
    secret = "/home/conclave/.ray/{}"
    assert file["file_mounts"] == {secret.format(name): f"~/.ray/{name}" for name in ("auth_token", "tracking_password")}
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        assert file[key][0] == f"chmod 600 {secret.format('auth_token')} {secret.format('tracking_password')}"
        [start] = [c for c in file[key] if "ray start" in c]
        assert "MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=$(cat ~/.ray/tracking_password)" in start
    [server] = [c for c in file["head_start_ray_commands"] if "conclave server" in c]
    assert {"--background", "--home", "--allow"} < set(server.split())
    assert server.startswith("MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "), "in the environment: a command line can be read by all"
    [head] = [c for c in file["head_start_ray_commands"] if "ray start" in c]
    assert "--dashboard-host=127.0.0.1" in head
    assert "RAY_enable_autoscaler_v2=1" in head
    assert head.startswith('CONCLAVE_TRACKING_URI=http://$(hostname -I | cut -d" " -f1):5000 ')
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in head
    text = path.read_text()
    assert not re.search(r"AKIA|aws_secret|aws_access", text), "roles, no keys"


def test_the_head_trains_nothing_and_spot_comes_before_on_demand() -> None:
    types = read(AWS)["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert "InstanceMarketOptions" not in types["head"]["node_config"]
    assert types["spot_t4"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert "InstanceMarketOptions" not in types["on_demand_t4"]["node_config"]
    assert [types[name]["labels"]["market"] for name in ("spot_t4", "on_demand_t4")] == ["spot", "on-demand"]
    assert read(AWS)["provider"]["cache_stopped_nodes"] is False
    for kind in types.values():
        assert kind["node_config"]["ImageId"].startswith("ami-"), "left out, it is an Ubuntu of 2018"
        assert kind["node_config"]["SecurityGroupIds"], "left out, Ray makes one that lets the world try SSH"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """EC2 and IAM as moto plays them; what Ray writes to the home goes to a folder of the test."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    from ray.autoscaler._private.aws import config, utils

    monkeypatch.setattr(config.time, "sleep", lambda seconds: None)  # for IAM to spread
    with mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        for cached in (utils.resource_cache, utils.client_cache):
            cached.cache_clear()
        yield boto3.client("ec2", REGION)
    for cached in (utils.resource_cache, utils.client_cache):
        cached.cache_clear()


def edited(ec2: Any) -> dict[str, Any]:
    """The file as a user edits it: an image, and a security group that opens SSH to one address."""
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    group = ec2.create_security_group(GroupName="conclave", Description="conclave", VpcId=vpc)["GroupId"]
    ssh = {"IpProtocol": "tcp", "FromPort": 22, "ToPort": 22, "IpRanges": [{"CidrIp": "203.0.113.7/32"}]}
    inside = {"IpProtocol": "-1", "UserIdGroupPairs": [{"GroupId": group}]}
    ec2.authorize_security_group_ingress(GroupId=group, IpPermissions=[ssh, inside])
    image = ec2.describe_images()["Images"][0]["ImageId"]
    config = read(AWS)
    for kind in config["available_node_types"].values():
        kind["node_config"] = {**kind["node_config"], "ImageId": image, "SecurityGroupIds": [group]}
    return config


def test_the_head_and_two_spot_workers_are_created_on_aws(aws: Any) -> None:
    """Ray's own bootstrap and node provider; boto3 checks every parameter's shape."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_NAME, TAG_RAY_USER_NODE_TYPE

    made = bootstrap_aws(prepared(edited(aws)))
    provider = AWSNodeProvider(made["provider"], made["cluster_name"])
    for kind, role in (("head", "head"), ("spot_t4", "worker"), ("spot_t4", "worker")):
        config = made["available_node_types"][kind]["node_config"]
        if role == "head":
            config = {**config, **made["head_node"]}
        tags = {TAG_RAY_NODE_KIND: role, TAG_RAY_NODE_NAME: f"ray-conclave-{role}", TAG_RAY_USER_NODE_TYPE: kind}
        provider.create_node(config, tags, 1)
    found = [i for r in aws.describe_instances()["Reservations"] for i in r["Instances"]]
    by_kind: dict[str, list[Any]] = {}
    for instance in found:
        tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
        assert tags["ray-cluster-name"] == "conclave"
        by_kind.setdefault(tags[TAG_RAY_USER_NODE_TYPE], []).append(instance)
    assert {kind: len(of) for kind, of in by_kind.items()} == {"head": 1, "spot_t4": 2}
    [head] = by_kind["head"]
    assert (head["InstanceType"], head.get("InstanceLifecycle")) == ("m6i.xlarge", None)
    assert "ray-autoscaler" in head["IamInstanceProfile"]["Arn"], "a role, no keys"
    for worker in by_kind["spot_t4"]:
        assert (worker["InstanceType"], worker["InstanceLifecycle"]) == ("g4dn.xlarge", "spot")
        assert "IamInstanceProfile" not in worker
    for instance in found:
        [disk] = instance["BlockDeviceMappings"]
        volume = aws.describe_volumes(VolumeIds=[disk["Ebs"]["VolumeId"]])["Volumes"][0]
        assert (volume["Size"], volume["Encrypted"], disk["Ebs"]["DeleteOnTermination"]) == (100, True, True)
        [group] = instance["SecurityGroups"]
        rules = aws.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"][0]["IpPermissions"]
        assert "0.0.0.0/0" not in str(rules), "no SSH from everywhere"


def test_on_kubernetes_ray_reads_the_same_machines() -> None:
    """By Ray's own reading of KubeRay's resource; the file was also held against KubeRay's schema, unknown keys refused."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
    from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig

    job = read(ROOT / "examples" / "clusters" / "kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["spec"]["shutdownAfterJobFinishes"] is True
    assert job["spec"]["entrypoint"].startswith("conclave sweep ")
    spec = job["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["rayVersion"] == version("ray")
    resource = {"metadata": {"name": "conclave", "namespace": "default"}, "spec": spec}
    made = AutoscalingConfig(_derive_autoscaling_config_from_ray_cr(resource), skip_content_hash=True)
    types = made.get_node_type_configs()
    assert types["headgroup"].resources["CPU"] == 0, "the head trains nothing"
    found = {name: (one.resources["GPU"], one.max_worker_nodes, one.labels) for name, one in types.items() if name != "headgroup"}
    assert found == {"spot": (1, 8, {"market": "spot"}), "on-demand": (1, 2, {"market": "on-demand"})}
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        assert container["image"] == read(AWS)["docker"]["image"]
        assert container["securityContext"]["runAsNonRoot"] is True
        assert {"name": EXPECTS_GPUS, "value": "1"} in container["env"]
