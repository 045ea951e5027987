"""Rays of several nodes on this machine, in processes of their own, which tests steer by lines and end by pid."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweeps import engine

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef", "RAY_USAGE_STATS_ENABLED": "0"}
HEAD_ID = "f" * 51 + "00000"  # as Ray's fake provider calls its head

# A process of its own, since a Ray in the test process would outlive the test's environment.
NODES = """
import json, sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
print(cluster.address, flush=True)
for line in sys.stdin:
    word, _, told = line.strip().partition(" ")
    if word == "add":
        last = cluster.add_node(num_cpus=1, object_store_memory=100 << 20, **json.loads(told or "{}"))
    elif word == "lose":
        cluster.remove_node(last, allow_graceful=False)
    print("done", flush=True)
cluster.shutdown()
"""


class Nodes:
    """A head of one CPU, to which nodes of one CPU are added, and from which the last one is taken."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.address = next(line.strip() for line in self._lines() if ":" in line)

    def _lines(self) -> Iterator[str]:
        assert self.process.stdout is not None
        return iter(self.process.stdout)

    def add(self, **options: Any) -> None:
        self._say(f"add {json.dumps(options)}")

    def lose(self) -> None:
        self._say("lose")

    def _say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert "done" in next(self._lines())


@contextmanager
def nodes() -> Iterator[Nodes]:
    with tempfile.TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()  # where Ray keeps its sessions under RAY_TMPDIR
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        environment = os.environ | TOKEN | {"RAY_TMPDIR": folder}
        with subprocess.Popen([sys.executable, "-c", NODES], text=True, env=environment, **pipes) as process:
            yield Nodes(process)
            process.communicate(timeout=60)


@contextmanager
def autoscaled(types: dict[str, dict[str, Any]]) -> Iterator[str]:
    """The address of a head without a CPU, whose autoscaler starts fake nodes of these types.

    Not by `ray.cluster_utils.AutoscalingCluster`, which begins with a `ray stop` of every Ray on the machine.
    """
    from ray._private.services import get_node_ip_address

    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
    address = f"{get_node_ip_address()}:{port}"
    module = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
    provider = {"type": "external", "module": module, "gcs_address": address, "launch_multiple": True}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    config = {
        "cluster_name": "fake",
        "max_workers": 8,
        "head_node_type": "ray.head.default",
        "idle_timeout_minutes": 5,
        "provider": {**provider, "head_node_id": HEAD_ID},
        "available_node_types": {"ray.head.default": head}
        | {name: {"node_config": {}, **one} for name, one in types.items()},
        **{key: [] for key in ("initialization_commands", "setup_commands", "head_setup_commands")},
        **{key: [] for key in ("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")},
        "auth": {},
        "file_mounts": {},
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "file_mounts_sync_continuously": False,
    }
    fake = {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_enable_autoscaler_v2": "1"}
    fake |= {"RAY_CLOUD_INSTANCE_ID": HEAD_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID}
    ray = str(Path(sys.executable).with_name("ray"))
    with tempfile.TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as root:
        (Path(root) / "r").mkdir()
        (Path(root) / "config.json").write_text(json.dumps(config))
        command = [ray, "start", "--head", f"--port={port}", "--num-cpus=0", f"--object-store-memory={100 << 20}"]
        command += ["--include-dashboard=false", f"--temp-dir={root}/r", f"--autoscaling-config={root}/config.json"]
        try:
            environment = os.environ | TOKEN | fake | {engine.MARK: root}
            subprocess.run(command, check=True, env=environment, capture_output=True, timeout=120)
            yield address
        finally:
            engine.end_leftovers(Path(root))
