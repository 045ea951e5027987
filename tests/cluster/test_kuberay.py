"""What users hand to Kubernetes, against the schemas of those who read it, and what it makes pods run, run here.

By a strict schema of the parts used, kept here (KubeRay's own come in no package that pip can install), Ray's own
reader of a RayCluster, and, where kubernetes-validate is installed, Kubernetes' schemas of pods, claims and accounts.
"""

import copy
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from jsonschema import Draft7Validator

KUBERAY = Path(__file__).parents[2] / "cluster" / "kuberay"
SCHEMA = Draft7Validator(json.loads(Path(__file__).with_name("raycluster_schema.json").read_text()))


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((KUBERAY / name).read_text()))


CLAIM, ACCOUNT = documents("common.yaml")
(CLUSTER,) = documents("raycluster.yaml")
(JOB,) = documents("rayjob.yaml")


def spec_of(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The head's and the workers'."""
    spec = spec_of(document)
    (workers,) = spec["workerGroupSpecs"]
    return spec["headGroupSpec"]["template"]["spec"], workers["template"]["spec"]


def mounts(pod: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Path -> the volume there."""
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    return {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}


@pytest.mark.parametrize("document", [CLUSTER, JOB], ids=lambda each: each["kind"])
def test_they_fit_the_schema(document: dict[str, Any]) -> None:
    SCHEMA.validate(document)
    wrong = copy.deepcopy(document)
    spec_of(wrong)["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        SCHEMA.validate(wrong)


def test_the_job_has_the_cluster_s_cluster_and_its_study_beside() -> None:
    spec = copy.deepcopy(spec_of(JOB))
    head = spec["headGroupSpec"]["template"]["spec"]
    head["containers"][0]["volumeMounts"].remove({"name": "study", "mountPath": "/study", "readOnly": True})
    head["volumes"].remove({"name": "study", "configMap": {"name": "wa-study"}})
    assert spec == spec_of(CLUSTER)


def test_ray_reads_workers_that_come_from_none() -> None:
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    config = _derive_autoscaling_config_from_ray_cr(CLUSTER | {"metadata": {"name": "wa", "namespace": "default"}})
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"] == {"CPU": 8, "GPU": 1, "memory": 32 << 30}
    assert (types["gpu"]["min_workers"], types["gpu"]["max_workers"]) == (0, 8)
    assert config["idle_timeout_minutes"] == 5
    assert spec_of(CLUSTER)["enableInTreeAutoscaling"] is True


@pytest.mark.parametrize("group", ["head", "worker"])
def test_ray_start_takes_what_kuberay_makes_of_it(group: str) -> None:
    """The command that KubeRay writes: the parameters, and CPUs and memory from the pod's limits."""
    from ray.scripts.scripts import start

    spec = spec_of(CLUSTER)
    of = spec["headGroupSpec"] if group == "head" else spec["workerGroupSpecs"][0]
    asked = {"num-cpus": "8", "memory": str(32 << 30), "dashboard-host": "0.0.0.0", "metrics-export-port": "8080"}
    words = [f"--{key}={value}" for key, value in (asked | of["rayStartParams"]).items()]
    first = ["--head"] if group == "head" else ["--address=wa-head-svc:6379"]
    taken = start.make_context("ray start", [*first, "--block", *words]).params
    (container,) = of["template"]["spec"]["containers"]
    room = mounts(of["template"]["spec"])["/dev/shm"]["emptyDir"]["sizeLimit"]
    assert taken["num_cpus"] == (0 if group == "head" else 8)
    assert taken["object_store_memory"] < int(room.removesuffix("Gi")) << 30, "or Ray takes the disk"
    assert container["resources"]["limits"]["cpu"] == ("2" if group == "head" else "8")


def test_run_folders_are_the_head_s_alone() -> None:
    head, workers = pods(JOB)
    assert mounts(head)["/runs"]["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert "/runs" not in mounts(workers)


@pytest.mark.parametrize("pod", pods(CLUSTER), ids=["head", "worker"])
def test_every_pod_has_the_data_room_for_the_object_store_and_no_key_in_the_file(pod: dict[str, Any]) -> None:
    assert pod["serviceAccountName"] == ACCOUNT["metadata"]["name"]
    assert pod["securityContext"]["fsGroup"] == 100, "the group of the user in Ray's images"
    (container,) = pod["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables == {"WA_DATA_DIR": "/data"}
    assert "/data" in mounts(pod)
    assert mounts(pod)["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    assert {"secretRef": {"name": "wa-storage", "optional": True}} in container["envFrom"]
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_workers_may_go_to_spot_nodes_with_gpus_and_the_head_may_not() -> None:
    head, workers = pods(CLUSTER)
    assert {one["key"] for one in workers["tolerations"]} >= {"nvidia.com/gpu", "cloud.google.com/gke-spot"}
    required = head["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = required["nodeSelectorTerms"]
    assert {one["operator"] for one in term["matchExpressions"]} == {"NotIn"}, "true also where the label is not"
    assert "tolerations" not in head


def test_pods_claims_and_accounts_fit_kubernetes() -> None:
    validator = pytest.importorskip("kubernetes_validate")
    version = validator.latest_version()
    for plain in (CLAIM, ACCOUNT):
        validator.validate(plain, version, strict=True)
    for pod in (*pods(CLUSTER), *pods(JOB)):
        whole = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "wa"}, "spec": pod}
        validator.validate(whole, version, strict=True)
        wrong = copy.deepcopy(whole)
        wrong["spec"]["containers"][0]["imag"] = "x"
        with pytest.raises(validator.ValidationError):
            validator.validate(wrong, version, strict=True)


def test_the_job_runs_a_mounted_study_in_a_folder_that_lasts(tmp_path: Path) -> None:
    """Its entrypoint, through a shell as Ray Jobs starts it."""
    (tmp_path / "wa").write_text(f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n")
    (tmp_path / "wa").chmod(0o755)
    entrypoint = JOB["spec"]["entrypoint"]
    done = subprocess.run(entrypoint, shell=True, env={"PATH": str(tmp_path)}, capture_output=True, check=True)
    words = json.loads(done.stdout)
    assert words == shlex.split(entrypoint)[1:]
    head = mounts(pods(JOB)[0])
    study, out = Path(words[1]), Path(words[words.index("--out") + 1])
    assert words[0] == "run"
    assert "configMap" in head[str(study.parent)]
    assert "persistentVolumeClaim" in head[str(out.parent)]


def test_a_pod_that_ends_asks_its_trials_first() -> None:
    """The hook, among processes by the names of Ray's, in a process namespace of its own."""
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S

    _, workers = pods(CLUSTER)
    hook = workers["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
    trial = "trap 'sleep 0.5; echo saved; exit' TERM; while :; do sleep 0.05; done"
    script = f"""
        [ "$(ls -d /proc/[0-9]* | wc -l)" -lt 10 ] || exit 9  # every process of the machine: touch none
        (exec -a ray::train bash -c {shlex.quote(trial)}) & trial=$!
        (exec -a raylet sleep 600) & raylet=$!
        (exec -a ray::DashboardAgent sleep 600) & agent=$!
        sleep 0.5
        {shlex.join(hook)}
        echo hook
        wait $trial
        kill -0 $raylet && kill -0 $agent && echo 'the rest lives'  # a raylet ends with its agents
    """
    own = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*own, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no process namespaces here")
    done = subprocess.run([*own, "bash", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout.split("\n")[:3] == ["hook", "saved", "the rest lives"], done.stderr
    grace = workers["terminationGracePeriodSeconds"]
    assert grace > RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
