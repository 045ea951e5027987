"""A sweep over two Ray nodes on this machine; one of them is lost on the way."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from sweep_processes import STUDY, UNDRAWN, WA, num_records, wait, workers

from analysis.run_folder.records import load_records
from analysis.run_folder.schema import MEASURED

pytestmark = pytest.mark.slow

# A process of its own, since a Ray in the test process would outlive the test's environment.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 100 << 20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
second = cluster.add_node(num_cpus=1, object_store_memory=100 << 20)
print(cluster.address, flush=True)
for line in sys.stdin:
    if line.strip() == "lose":
        cluster.remove_node(second, allow_graceful=False)
        print("lost", flush=True)
cluster.shutdown()
"""


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(prefix="wa-", ignore_cleanup_errors=True) as folder:
        Path(folder, "ray").mkdir()  # where Ray keeps its sessions under RAY_TMPDIR
        command = [sys.executable, "-c", CLUSTER]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, text=True, env={**os.environ, "RAY_TMPDIR": folder}, **pipes) as cluster:
            yield cluster
            cluster.communicate(timeout=60)


def test_a_sweep_over_two_nodes_survives_the_loss_of_one(
    outside: Path, undisturbed: pd.DataFrame, two_nodes: subprocess.Popen[str]
) -> None:
    assert two_nodes.stdout is not None
    assert two_nodes.stdin is not None
    address = next(line.strip() for line in two_nodes.stdout if ":" in line)
    (outside / "kills.yaml").write_text(STUDY)
    run = (outside / "run").resolve()
    command = [*UNDRAWN, "run", "kills.yaml", "--out", "run", "--checkpoint-seconds", "0", "--address", address]
    with (outside / "log").open("wb") as log:
        driver = subprocess.Popen(command, cwd=outside, stdout=log, stderr=log)
    # Two at once, on nodes of one CPU each: both nodes train.
    wait(lambda: len(workers(run)) == 2 or driver.poll() is not None)
    wait(lambda: num_records(run) >= 12 or driver.poll() is not None)
    assert driver.poll() is None, (outside / "log").read_text()
    two_nodes.stdin.write("lose\n")
    two_nodes.stdin.flush()
    assert driver.wait(240) == 0, (outside / "log").read_text()
    pd.testing.assert_frame_equal(
        load_records(run).drop(columns=MEASURED), undisturbed.drop(columns=MEASURED), check_exact=True
    )


def test_an_address_where_nobody_answers_is_one_line(outside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef0123456789abcdef")
    (outside / "kills.yaml").write_text(STUDY)
    command = [WA, "run", "kills.yaml", "--out", "run", "--address", "127.0.0.1:1"]
    done = subprocess.run(command, cwd=outside, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((outside / "run").glob("trajectories/*/records.jsonl"))
