"""Nodes that join, lack something, or are not up yet: a sweep on real Ray nodes of this machine."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from ray_clusters import TOKEN, autoscaled, nodes
from sweep_processes import STUDY, UNDRAWN, WA, wait

from analysis.run_folder.records import load_records
from analysis.run_folder.schema import MEASURED

pytestmark = pytest.mark.cluster


@pytest.fixture
def study(outside: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, value in TOKEN.items():
        monkeypatch.setenv(name, value)
    (outside / "kills.yaml").write_text(STUDY)
    return outside


def refused(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def at_once(run: Path) -> int:
    """The most trials that ran at one moment, by the attempts' own clocks."""
    rows = [json.loads(path.read_text()) for path in run.glob("trajectories/*/attempt-*.json")]
    return max(sum(other["started"] <= row["started"] < other["ended"] for other in rows) for row in rows)


def test_a_node_that_lacks_something_is_left_out_and_one_that_joins_is_used(
    study: Path, undisturbed: pd.DataFrame
) -> None:
    other = study / "other" / "wa_sweeps-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: wa-sweeps\nVersion: 9.9\n")
    run = study / "run"
    with nodes() as cluster:
        cluster.add(env_vars={"PYTHONPATH": str(other.parent)})
        command = ["run", "kills.yaml", "--out", "run", "--address", cluster.address]
        said = refused(WA, *command)
        assert re.search(r"wa: node \S+: versions: wa-sweeps 9\.9 there, \S+ here; install one version every", said)
        assert not run.exists()
        seen = subprocess.run([WA, "doctor", "--address", cluster.address], capture_output=True, text=True, timeout=180)
        assert seen.returncode == 1, seen.stdout + seen.stderr
        rows = [line.split() for line in seen.stdout.splitlines() if line.startswith(cluster.address[:7])]
        assert sorted(row[3] for row in rows) == ["BAD", "as"], seen.stdout
        assert seen.stdout.count(": versions: wa-sweeps 9.9 there") == 1
        with (study / "log").open("wb") as log:
            more = ["--bad-nodes", "skip", "--checkpoint-seconds", "0", "--set", f"seeds={[*range(40)]}"]
            driver = subprocess.Popen([*UNDRAWN, *command, *more], cwd=study, stdout=log, stderr=log)
        wait(lambda: bool(list(run.glob("trajectories/*/done"))) or driver.poll() is not None)
        assert at_once(run) == 1  # two nodes of one CPU, one of them left out
        cluster.add()
        wait(lambda: at_once(run) == 2 or driver.poll() is not None)
        driver.send_signal(signal.SIGINT)
        driver.wait(120)
    assert at_once(run) == 2, (study / "log").read_text()
    assert "is left out: versions: wa-sweeps 9.9 there" in (study / "log").read_text()
    done = pd.concat([pd.read_parquet(path) for path in run.glob("records/*.parquet")])["cell_id"].unique()
    equal = undisturbed[undisturbed["cell_id"].isin(done)].reset_index(drop=True)
    found = load_records(run)
    found = found[found["cell_id"].isin(set(equal["cell_id"]))].reset_index(drop=True)
    pd.testing.assert_frame_equal(found.drop(columns=MEASURED), equal.drop(columns=MEASURED), check_exact=True)


def test_a_cluster_that_starts_at_zero_is_waited_for(study: Path, undisturbed: pd.DataFrame) -> None:
    small = {"resources": {"CPU": 1, "object_store_memory": 100 << 20}, "min_workers": 0, "max_workers": 2}
    gpu = {"resources": {"CPU": 1, "GPU": 1, "object_store_memory": 100 << 20}, "min_workers": 0, "max_workers": 1}
    with autoscaled({"small": small, "gpu": gpu}) as address:
        command = ["run", "kills.yaml", "--out", "run", "--address", address]
        assert "a trial needs 1 CPU and 8 GPU; a node here has 0 CPU" in refused(
            WA, *command, "--set", "resources={cpu: 1, gpu: 8, processes: 1}"
        )
        done = subprocess.run([*UNDRAWN, *command], cwd=study, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        assert re.search(
            r"waiting for a node with 1 CPU and 0 GPU \(of type small\): \d+ s so far, at most 15 min", done.stdout
        )
        too_long = refused(WA, *command[:3], "late", *command[4:], "--set", "resources.gpu=1", "--wait", "0.03")
        assert "no node with 1 CPU and 1 GPU has come within" in too_long
        assert not (study / "late").exists()
    assert at_once(study / "run") > 1  # more of them were asked for than the first
    pd.testing.assert_frame_equal(
        load_records(study / "run").drop(columns=MEASURED), undisturbed.drop(columns=MEASURED), check_exact=True
    )
