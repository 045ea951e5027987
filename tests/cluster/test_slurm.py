"""The batch script, run: SLURM's commands are stand-ins; Ray and `wa` too, where only the script is asked."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sweep_processes import STUDY, UNDRAWN, num_records, wait

from analysis.run_folder.records import load_records

End = Callable[["subprocess.Popen[bytes]"], None]
SCRIPT = Path(__file__).parents[2] / "cluster" / "slurm" / "ray.sbatch"

# As SLURM since 22.05: a step has the CPUs that it asks for itself, else one.
SRUN = """#!/usr/bin/env bash
echo "srun ${*//$'\\n'/ }" >> "$CALLS"
unset SLURM_CPUS_PER_TASK
while [[ $1 == --* ]]; do [[ $1 == --cpus-per-task=* ]] && export SLURM_CPUS_PER_TASK=${1#*=}; shift; done
export SLURM_GPUS_ON_NODE=${STEP_GPUS:-0}
exec "$@"
"""
SCONTROL = """#!/usr/bin/env bash
echo "scontrol $*" >> "$CALLS"
case "$1 $2" in
  "show hostnames") printf 'node-%s\\n' $(seq "$NODES") ;;
  "show job") echo "   PreemptEligibleTime=2026-01-01T00:00:00 PreemptTime=${PREEMPTED:-None}" ;;
esac
"""
RAY = """#!/usr/bin/env bash
echo "ray $*" >> "$CALLS"
[[ ${RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER:-} == 0 ]] && echo loopback >> "$CALLS"
[[ ${RAY_EXIT:-} ]] && exit "$RAY_EXIT"
for word in "$@"; do [[ $word == --port=* ]] && port=${word#*=}; done
exec python -c 'import socket, sys, time
server = socket.create_server(("", int(sys.argv[1])))
time.sleep(600)' "${port:-0}"
"""
RAY_MODULE = """
import os
init = lambda **_: None
nodes = lambda: [{"Alive": True}] * int(os.environ.get("UP", os.environ["NODES"]))
"""
WA = """#!/usr/bin/env python
import json, os, signal, sys, time
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with open(os.environ["CALLS"], "a") as calls:
    calls.write("wa " + json.dumps(sys.argv[1:]) + "\\n")
while open(os.environ["CALLS"]).read().count("ray start") < 2 * int(os.environ["NODES"]) - 1:
    time.sleep(0.05)  # until every worker's step, and what runs in it, has begun
if os.environ.get("WA_EXIT"):
    sys.exit(int(os.environ["WA_EXIT"]))
while not asked:
    time.sleep(0.05)
time.sleep(0.5)
print("saved", flush=True)
sys.exit(1)
"""


class Job:
    """What SLURM would set for a batch job, and what came of it."""

    def __init__(self, folder: Path, env: dict[str, str], end_group: End) -> None:
        self.end_group = end_group
        self.log, self.calls, self.run = folder / "log", folder / "calls", folder / "a run"
        kept = {name: value for name, value in env.items() if not name.startswith(("RAY_AUTH", "SLURM"))}
        self.tools = folder / "bin"
        self.tools.mkdir()
        self.write("srun", SRUN)
        self.write("scontrol", SCONTROL)
        self.env = kept | {
            "PATH": f"{self.tools}:{Path(sys.executable).parent}:{env['PATH']}",
            "CALLS": str(self.calls),
            "NODES": "2",
            "STUDY": f"{folder / 'a study.yaml'}\n{folder / 'another.yaml'}",
            "RUN": str(self.run),
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_CPUS_PER_TASK": "1",
        }

    def write(self, name: str, text: str) -> None:
        (self.tools / name).write_text(text)
        (self.tools / name).chmod(0o755)

    def pretend(self) -> None:
        """Ray and `wa` are stand-ins too."""
        self.write("ray", RAY)
        self.write("wa", WA)
        modules = self.tools.parent / "modules"
        modules.mkdir()
        (modules / "ray.py").write_text(RAY_MODULE)
        self.env["PYTHONPATH"] = str(modules)

    @contextmanager
    def started(self, *arguments: str, **changes: str) -> Iterator["subprocess.Popen[bytes]"]:
        """The script, ended with all that it left."""
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                ["bash", str(SCRIPT), *arguments],
                env=self.env | changes,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            self.end_group(process)

    def ended(self, *arguments: str, **changes: str) -> int:
        """The script's exit code."""
        with self.started(*arguments, **changes) as process:
            return process.wait(30)

    def called(self, command: str) -> list[str]:
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        return [line for line in lines if line.startswith(command)]

    def wa(self) -> list[str]:
        (line,) = self.called("wa ")
        words: list[str] = json.loads(line.removeprefix("wa "))
        return words


@pytest.fixture
def real(tmp_path: Path, ray_env: dict[str, str], end_group: End) -> Job:
    """A job of two nodes whose Ray is real."""
    return Job(tmp_path, ray_env, end_group)


@pytest.fixture
def job(real: Job) -> Job:
    """A job whose Ray and `wa` are stand-ins too."""
    real.pretend()
    return real


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


def option(line: str, name: str) -> str:
    """The value of ``--name=value`` or ``--name value`` in a command."""
    words = shlex.split(line)
    if name in words:
        return words[words.index(name) + 1]
    (value,) = [word.removeprefix(f"{name}=") for word in words if word.startswith(f"{name}=")]
    return value


def asked_to_stop(job: Job, number: signal.Signals, **changes: str) -> int:
    """The exit code after a signal to the script, once `wa` runs."""
    with job.started(WA_EXIT="", **changes) as process:
        wait(lambda: bool(job.called("wa ")), 20)
        os.kill(process.pid, number)
        return process.wait(20)


def test_each_step_asks_for_its_cpus_and_counts_its_own_gpus(job: Job) -> None:
    assert job.ended(NODES="3", SLURM_CPUS_PER_TASK="8", SLURM_GPUS_ON_NODE="8", STEP_GPUS="4", WA_EXIT="0") == 0
    steps = job.called("srun")
    assert {option(step, "--cpus-per-task") for step in steps} == {"8"}
    starts = job.called("ray start")
    assert [option(start, "--num-gpus") for start in starts] == ["8", "4", "4"]
    assert {option(start, "--num-cpus") for start in starts} == {"8"}
    assert sorted(option(step, "--nodelist") for step in steps if "ray start" in step) == ["node-2", "node-3"]
    assert not Path(f"/tmp/wa-ray-{job.env['SLURM_JOB_ID']}").exists()


def test_wa_gets_the_studies_the_folder_the_storage_and_what_else_was_said(job: Job) -> None:
    assert job.ended("--checkpoint-seconds", "30", STORAGE="s3://bucket/a prefix", WA_EXIT="0") == 0
    address = option(job.called("ray start")[1], "--address")
    assert job.wa() == [
        *("run", *job.env["STUDY"].split("\n"), "--out", str(job.run), "--storage", "s3://bucket/a prefix"),
        *("--address", address, "--checkpoint-seconds", "30"),
    ]


@pytest.mark.parametrize("code", [1, 2, 7])
def test_the_exit_code_is_that_of_wa(job: Job, code: int) -> None:
    assert job.ended(NODES="1", WA_EXIT=str(code)) == code
    assert job.called("scontrol requeue") == []


def test_one_node_needs_no_step_and_no_network(job: Job) -> None:
    assert job.ended(NODES="1", WA_EXIT="0") == 0
    assert job.called("srun") == []
    assert option(job.called("ray start")[0], "--node-ip-address") == "127.0.0.1"
    assert job.called("loopback"), "Ray listens there alone"
    assert "--storage" not in job.wa()


def own_address() -> str:
    """An address of this machine that is not its loopback's."""
    words = subprocess.run(["hostname", "-I"], capture_output=True, text=True, check=False).stdout.split()
    found = [word for word in words if "." in word and not word.startswith("127.")]
    return found[0] if found else pytest.skip("this machine has no address but its loopback's")


def test_the_head_is_where_the_last_node_reaches_it(job: Job) -> None:
    """Of a name that stands for the loopback, a network that leads nowhere and the right one."""
    address = own_address()
    job.write("hostname", f"#!/bin/sh\necho 127.0.1.1 255.255.255.255 fd00::7 {address}")
    job.write("getent", "#!/bin/sh\necho '127.0.1.1       STREAM node-1'")
    assert job.ended(NODES="3", WA_EXIT="0") == 0
    head, *others = job.called("ray start")
    assert option(head, "--node-ip-address") == address
    assert {option(other, "--address") for other in others} == {f"{address}:{option(head, '--port')}"}
    assert option(job.called("srun")[0], "--nodelist") == "node-3"
    assert job.called("loopback") == []


def test_the_network_may_be_named(job: Job) -> None:
    shown = f"2: ib0    inet {own_address()}/24 brd 192.0.2.255 scope global ib0"
    job.write("ip", f"#!/bin/sh\n[ $6 = ib0 ] && echo '{shown}'")
    job.write("getent", "#!/bin/sh\necho never >> $CALLS")
    assert job.ended(WA_INTERFACE="ib0", WA_EXIT="0") == 0
    assert option(job.called("ray start")[0], "--node-ip-address") == own_address()
    assert job.called("never") == []


def test_a_head_that_nobody_reaches_ends_the_job_in_a_line(job: Job) -> None:
    job.write("hostname", "#!/bin/sh\necho 127.0.1.1 255.255.255.255")
    job.write("getent", "#!/bin/sh\nexit 2")
    assert job.ended() == 1
    assert "node-2 reaches node-1, port" in job.log.read_text()
    assert job.called("ray") == []


def test_two_jobs_on_one_node_take_different_ports(job: Job) -> None:
    with job.started(NODES="1") as first:
        wait(lambda: bool(job.called("wa ")), 20)
        assert job.ended(NODES="1", WA_EXIT="0", SLURM_JOB_ID=str(int(job.env["SLURM_JOB_ID"]) + 4000)) == 0
        first.terminate()
        first.wait(20)
    ports = [int(option(start, "--port")) for start in job.called("ray start")]
    assert len(ports) == 2
    assert abs(ports[0] - ports[1]) >= 3
    assert all(port + 2 < 32768 for port in ports), "below what the system hands out"


def test_each_task_of_an_array_runs_its_line_in_a_folder_of_its_own(job: Job) -> None:
    array = {"NODES": "1", "SLURM_ARRAY_JOB_ID": "70", "STUDY": "a.yaml\n/b/two words.yaml:c.yaml\nd.yaml"}
    assert job.ended(**array, SLURM_ARRAY_TASK_ID="1", WA_EXIT="0") == 0
    words = job.wa()
    assert words[: words.index("--address")] == ["run", "/b/two words.yaml", "c.yaml", "--out", f"{job.run}/two words"]
    assert job.ended(**array, SLURM_ARRAY_TASK_ID="3") == 2
    assert len(job.called("ray start")) == 1
    assert "array index 3: STUDY has 3 lines" in job.log.read_text()


def test_out_of_time_an_array_queues_its_own_task_again(job: Job) -> None:
    """The number of the job alone would stand for the whole array in its first task."""
    array = {"NODES": "1", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "0"}
    assert asked_to_stop(job, signal.SIGUSR1, **array) == 1
    assert job.called("scontrol requeue") == ["scontrol requeue 70_0"]
    assert "saved" in job.log.read_text()


@pytest.mark.parametrize(
    ("changes", "queued"),
    [({}, False), ({"PREEMPTED": "2026-11-29T09:00:00"}, True)],
    ids=["cancelled", "preempted"],
)
def test_a_preempted_job_goes_on_later_a_cancelled_one_does_not(
    job: Job, changes: dict[str, str], queued: bool
) -> None:
    assert asked_to_stop(job, signal.SIGTERM, NODES="1", **changes) == 1
    assert bool(job.called("scontrol requeue")) is queued
    assert "saved" in job.log.read_text()


def test_restarts_have_an_end(job: Job) -> None:
    assert asked_to_stop(job, signal.SIGUSR1, NODES="1", SLURM_RESTART_COUNT="20") == 1
    assert job.called("scontrol requeue") == []


def test_a_head_that_cannot_start_ends_the_job(job: Job) -> None:
    assert job.ended(RAY_EXIT="3") == 1
    assert "head on node-1 did not start" in job.log.read_text()
    assert job.called("wa ") == job.called("scontrol requeue") == []


def test_a_node_that_does_not_come_is_said_and_holds_nobody_up(job: Job) -> None:
    assert job.ended(UP="1", START_TIMEOUT="1", WA_EXIT="0") == 0
    assert "1 of 2 nodes joined within 1 s; beginning with these" in job.log.read_text()


def test_without_a_study_nothing_starts(job: Job) -> None:
    del job.env["STUDY"]
    assert job.ended() == 1
    assert not job.calls.exists()
    assert "set STUDY" in job.log.read_text()


def test_without_the_environment_nothing_starts(job: Job) -> None:
    for name in ("bash", "env"):
        (job.tools / name).symlink_to(shutil.which(name) or "")
    (job.tools / "ray").unlink()
    assert job.ended(PATH=str(job.tools)) == 2
    assert "activate the environment" in job.log.read_text()


@pytest.mark.cluster
def test_a_study_over_two_nodes_goes_on_when_it_is_queued_again(real: Job, outside: Path) -> None:
    """Ray and `wa` in earnest: stopped when time runs out, and continued to the end by the next start, on one."""
    (outside / "kills.yaml").write_text(STUDY.replace("[0, 1, 2]", "[0, 1]"))
    changes = {
        "STUDY": str(outside / "kills.yaml"),
        "WA_COMMAND": shlex.join([*UNDRAWN, "run"]),
        "OBJECT_STORE_MEMORY": "100000000",
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    with real.started(**changes) as process:
        wait(lambda: process.poll() is not None or num_records(real.run) > 8, 180)
        assert process.poll() is None, real.log.read_text()
        os.kill(process.pid, signal.SIGUSR1)
        assert process.wait(120) == 1, real.log.read_text()
        assert group(process.pid) == []
    assert real.called("scontrol requeue") == [f"scontrol requeue {real.env['SLURM_JOB_ID']}"]
    with real.started(**changes, SLURM_RESTART_COUNT="1", NODES="1") as process:
        assert process.wait(240) == 0, real.log.read_text()
        assert group(process.pid) == []
    records = load_records(real.run)
    assert (records.groupby("cell_id")["step"].max() == 150).all()
    assert records["cell_id"].nunique() == 8
    assert "joined within" not in real.log.read_text(), "both nodes were there"
    assert not Path(f"/tmp/wa-ray-{real.env['SLURM_JOB_ID']}").exists()
