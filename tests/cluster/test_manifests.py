"""The files users hand to AWS and Kubernetes, against the schemas of those who read them.

AWS: Ray's own schema and preparation, from the installed wheel. KubeRay: the parts used, by a strict schema kept
here (KubeRay's own CRDs come in no package that pip can install), Ray's own reader of a RayCluster, and, where
the package kubernetes-validate is installed, Kubernetes' own schemas for pods and claims.
"""

import copy
import json
import logging
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CLUSTER = Path(__file__).parents[2] / "cluster"
SCHEMA = json.loads(Path(__file__).with_name("raycluster_schema.json").read_text())
AWS = CLUSTER / "ray" / "aws.yaml"
MANIFESTS = sorted((CLUSTER / "kuberay").glob("*.yaml"))


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def ray_documents() -> list[dict[str, Any]]:
    return [each for path in MANIFESTS for each in documents(path) if each["apiVersion"] == "ray.io/v1"]


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec if document["kind"] == "RayCluster" else spec["rayClusterSpec"]


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    spec = cluster_spec(document)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def check_aws(config: dict[str, Any]) -> dict[str, Any]:
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    shipped = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(shipped.read_text()))

    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    prepared: dict[str, Any] = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


def test_aws_is_what_ray_up_takes() -> None:
    prepared = check_aws(documents(AWS)[0])
    types = prepared["available_node_types"]
    assert prepared["head_node_type"] in types
    assert types["gpu"]["max_workers"] == types["gpu"]["min_workers"] == prepared["max_workers"]


@pytest.mark.parametrize(
    "wrong", [{"max_wokers": 2}, {"max_workers": "2"}, {"setup_commands": "pip install"}, {"head_node_type": "gone"}]
)
def test_aws_check_refuses_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises((jsonschema.ValidationError, ValueError)):
        check_aws(documents(AWS)[0] | wrong)


def test_aws_passes_the_token_by_file_and_asks_for_it() -> None:
    config = documents(AWS)[0]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    starts = [line for key in ("head", "worker") for line in config[f"{key}_start_ray_commands"] if "start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)


@pytest.mark.parametrize("document", ray_documents(), ids=lambda each: each["kind"])
def test_kuberay_manifests_fit_the_schema(document: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(SCHEMA).validate(document)
    wrong = copy.deepcopy(document)
    cluster_spec(wrong)["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(wrong)


@pytest.mark.parametrize("document", ray_documents(), ids=lambda each: each["kind"])
def test_ray_reads_the_resources_of_every_group(document: dict[str, Any]) -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    custom = {"metadata": {"name": "wa", "namespace": "default"}, "spec": cluster_spec(document)}
    types = _derive_autoscaling_config_from_ray_cr(custom)["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 1, "memory": 32 << 30}
    assert types["gpu"]["min_workers"] == types["gpu"]["max_workers"] == 2


@pytest.mark.parametrize("document", ray_documents(), ids=lambda each: each["kind"])
def test_pods_share_the_run_folder_and_hold_no_secret(document: dict[str, Any]) -> None:
    claims = {each["metadata"]["name"] for each in documents(CLUSTER / "kuberay" / "raycluster.yaml")[:1]}
    for pod in pods(document):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        (container,) = pod["containers"]
        mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounts["/runs"]["persistentVolumeClaim"]["claimName"] in claims
        for variable in container.get("env", []):
            assert "value" not in variable, "keys come by reference"
            assert set(variable["valueFrom"]) == {"secretKeyRef"}


def test_the_job_runs_a_mounted_study_into_the_shared_folder() -> None:
    (job,) = documents(CLUSTER / "kuberay" / "rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[:2] == ["wa", "run"]
    paths = {mount["mountPath"] for mount in pods(job)[0]["containers"][0]["volumeMounts"]}
    assert {str(Path(words[2]).parent), str(Path(words[words.index("--out") + 1]).parent)} == paths


def test_pods_and_claims_fit_kubernetes() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    version = validator.latest_version()
    claim = documents(CLUSTER / "kuberay" / "raycluster.yaml")[0]
    validator.validate(claim, version, strict=True)
    for document in ray_documents():
        for pod in pods(document):
            whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "wa"}, "spec": pod}
            validator.validate(whole, version, strict=True)
            wrong = copy.deepcopy(whole)
            wrong["spec"]["containers"][0]["imag"] = "x"
            with pytest.raises(validator.ValidationError):
                validator.validate(wrong, version, strict=True)
