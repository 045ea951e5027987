"""The batch script, run for real: two Ray nodes and a command, with srun and scontrol played by local scripts."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

End = Callable[["subprocess.Popen[bytes]"], None]
SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "ray.sbatch"

# One machine plays both nodes, so the second Ray node needs worker ports of its own.
SRUN = """#!/usr/bin/env bash
echo "srun $*" >> "$CALLS"
while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#*=}; shift; done
if [[ "$1 $2 $3" == "ray start --block" ]]; then
  set -- "$@" --min-worker-port=21000 --max-worker-port=21200 --dashboard-agent-listen-port="$AGENT_PORT"
fi
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
if [[ $1 == show ]]; then printf 'node-1\\nnode-2\\n'; fi
"""
PROBE = """
import json, os, signal, sys, time
import ray
*studies, _, run, _, address = sys.argv[1:]
ray.init(address=address, log_to_driver=False)

@ray.remote(num_cpus=1)
def where():
    time.sleep(1)
    return ray.get_runtime_context().get_node_id()

told = {"nodes": len(ray.nodes()), "used": len(set(ray.get([where.remote(), where.remote()]))),
        "studies": studies, "mode": os.environ["RAY_AUTH_MODE"], "token": len(os.environ["RAY_AUTH_TOKEN"])}
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
with open(run + "/told.tmp", "w") as file:
    json.dump(told, file)
os.rename(run + "/told.tmp", run + "/told")
while not stopped:
    time.sleep(0.1)
time.sleep(1)
open(run + "/saved", "w").close()
ray.shutdown()
sys.exit(1)
"""


@pytest.fixture
def job(tmp_path: Path, ray_env: dict[str, str], free_ports: Callable[[int], list[int]]) -> dict[str, str]:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    (tmp_path / "probe.py").write_text(PROBE)
    env = {name: value for name, value in ray_env.items() if not name.startswith(("RAY_AUTH", "SLURM"))}
    port, agent = free_ports(2)
    job_id = str(os.getpid())
    return env | {
        "PATH": f"{tools}:{Path(sys.executable).parent}:{env['PATH']}",
        "CALLS": str(tmp_path / "calls"),
        "AGENT_PORT": str(agent),
        "STUDY": f"{tmp_path / 'a study.yaml'}\n{tmp_path / 'another.yaml'}",
        "RUN": str(tmp_path / "run 1"),
        "WA_COMMAND": f"python {tmp_path}/probe.py",
        "RAY_PORT": str(port),
        "OBJECT_STORE_MEMORY": "100000000",
        "SLURM_JOB_ID": job_id,
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_CPUS_PER_TASK": "1",
    }


def start(job: dict[str, str]) -> "subprocess.Popen[bytes]":
    log = Path(job["CALLS"]).with_name("log").open("wb")
    with log:
        return subprocess.Popen(
            ["bash", str(SCRIPT)], env=job, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def group(leader: int) -> list[str]:
    """Names of the living processes of a session."""
    names = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().rsplit(")", 1)
        except OSError:
            continue
        state, _, _, session = rest.split()[:4]
        if int(session) == leader and state != "Z":
            names.append(name)
    return names


@pytest.mark.slow
def test_two_nodes_run_the_command_and_running_out_of_time_requeues(job: dict[str, str], end_group: End) -> None:
    process = start(job)
    try:
        told = Path(job["RUN"]) / "told"
        deadline = time.monotonic() + 70
        while not told.exists():
            log = Path(job["CALLS"]).with_name("log").read_text()
            assert process.poll() is None, log
            assert time.monotonic() < deadline, log
            time.sleep(0.2)
        os.kill(process.pid, signal.SIGUSR1)
        status = process.wait(40)
        left = group(process.pid)
    finally:
        end_group(process)
    assert json.loads(told.read_text()) == {
        "nodes": 2,
        "used": 2,
        "studies": job["STUDY"].split("\n"),
        "mode": "token",
        "token": 64,
    }
    assert (told.parent / "saved").exists()
    assert status == 1
    assert left == []
    assert not Path(f"/tmp/ray-{job['SLURM_JOB_ID']}").exists()
    calls = Path(job["CALLS"]).read_text().splitlines()
    assert calls[0] == "scontrol show hostnames node-[1-2]"
    assert calls[-1] == f"scontrol requeue {job['SLURM_JOB_ID']}"
    workers = [call for call in calls if "ray start --block" in call]
    assert len(workers) == 1
    assert "--nodelist=node-2" in workers[0]
    assert "--num-cpus=1" in workers[0]


def test_a_head_that_cannot_start_ends_the_job(job: dict[str, str], end_group: End) -> None:
    stub = Path(job["PATH"].split(":")[0]) / "srun"
    stub.write_text(SRUN.replace("exec", "[[ $1 == ray ]] && exit 3\nexec"))
    process = start(job)
    try:
        status = process.wait(30)
    finally:
        end_group(process)
    assert status == 1
    assert "head on node-1 did not start" in Path(job["CALLS"]).with_name("log").read_text()
    assert "requeue" not in Path(job["CALLS"]).read_text()


def test_without_a_study_nothing_starts(job: dict[str, str]) -> None:
    process = start({name: value for name, value in job.items() if name != "STUDY"})
    assert process.wait(10) == 1
    assert not Path(job["CALLS"]).exists()
    assert "set STUDY" in Path(job["CALLS"]).with_name("log").read_text()
