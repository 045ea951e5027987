"""The nodes of the Ray that this process has joined: how many trials fit on each, and what an autoscaler brings up."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.placement_group import placement_group

NODE_ID = "ray.io/node-id"  # Ray's own label of every node


@dataclass(frozen=True)
class Node:
    """One that is up; `resources` as Ray counts them."""

    id: str
    name: str  # its address
    resources: Mapping[str, float]

    def slots(self, cpu: float, gpu: float) -> int:
        """How many trials of so many CPUs and GPUs it holds at once."""
        return slots(self.resources, cpu, gpu)


def alive() -> list[Node]:
    """The nodes that are up. Raises, or hangs, where Ray does not answer."""
    return [
        Node(node["NodeID"], node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]
    ]


def slots(resources: Mapping[str, float], cpu: float, gpu: float) -> int:
    """How many trials of so many CPUs and GPUs fit into a node with these resources."""
    by_cpu = int(resources.get("CPU", 0) / cpu + 1e-9)
    if not gpu:
        return by_cpu
    gpus = int(resources.get("GPU", 0))
    # a fraction spans no two GPUs
    return min(by_cpu, gpus // int(gpu) if gpu >= 1 else gpus * int(1 / gpu + 1e-9))


def occupy(node: Node) -> Any:
    """Take all CPUs and GPUs of a node for as long as this process lives, so that nothing else is placed there.

    Not by a label selector of what is to be placed elsewhere (`!in(…)`): once in two experiments with Ray 2.60,
    placement groups that waited with one were not placed on a node that joined.
    """
    all_of_it = {name: node.resources[name] for name in ("CPU", "GPU") if node.resources.get(name)}
    return placement_group([all_of_it], bundle_label_selector=[{NODE_ID: node.id}])


@dataclass(frozen=True)
class Autoscaler:
    """What one says of itself; `types`: of the nodes that it is bringing up."""

    types: tuple[str, ...] = ()
    failed: str = ""  # why the latest launch failed, in its words
    hopeless: tuple[Mapping[str, float], ...] = ()  # bundles that are asked for now and fit no type that it knows


def autoscaler() -> Autoscaler | None:
    """What the cluster's autoscaler is doing about the demands that there are; None where it says nothing.

    Version 2 (Ray's default) tells the GCS; version 1 leaves JSON in its key-value store.
    """
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply

    client = GcsClient(ray.get_runtime_context().gcs_address)
    reply = GetClusterStatusReply()
    reply.ParseFromString(client.get_cluster_status(timeout_s=10))
    if reply.HasField("autoscaling_state"):
        state = reply.autoscaling_state
        pending = [*state.pending_instance_requests, *state.pending_instances]
        failures = [one.reason for one in state.failed_instance_requests]
        return Autoscaler(
            tuple(dict.fromkeys(one.ray_node_type_name for one in pending)),
            " ".join(failures[-1].split()) if failures else "",
            tuple(
                dict(one.resources_bundle) for gang in state.infeasible_gang_resource_requests for one in gang.requests
            ),
        )
    told = client.internal_kv_get(b"__autoscaling_status", None)
    report: dict[str, Any] = (json.loads(told) if told else {}).get("autoscaler_report") or {}
    if not report:
        return None
    types = [*report.get("pending_launches", {}), *(node[1] for node in report.get("pending_nodes", []))]
    return Autoscaler(tuple(dict.fromkeys(types)))
