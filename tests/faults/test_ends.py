"""What died, and what then: each end of a run says what happened, leaves no process behind, and can be gone on from."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from sweep_processes import STUDY, UNDRAWN, WA, family, num_records, wait

from analysis.run_folder.records import load_records, load_trials
from analysis.run_folder.schema import MEASURED
from sweeps import cli
from sweeps.desk import MOST_FAILURES

pytestmark = pytest.mark.slow

CRASHES = """
import ctypes, os, signal, sys
from pathlib import Path
from tinywork import Tiny

class Segfault(Tiny):
    def loss(self, model, batch):
        ctypes.string_at(0)

class Exits(Tiny):
    def loss(self, model, batch):
        sys.exit(0)

class KilledAtFirst(Tiny):
    def loss(self, model, batch):
        count = Path("MARKS") / f"mark-{os.getpid()}"
        if len(list(count.parent.glob("mark-*"))) < RETRIES:
            count.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().loss(model, batch)
"""
CRASH_STUDY = """
study: crashes
workloads: ["crashes:Segfault", "crashes:Exits", "crashes:KilledAtFirst"]
seeds: [7]
averaging: [{scheme: none}, {scheme: ema, decay: 0.9}]
evaluate: {every: 20}
tracking: {wandb: disabled}
"""


def begin(folder: Path, study: str = "kills.yaml", wa: Sequence[str] = UNDRAWN) -> subprocess.Popen[bytes]:
    command = [*wa, "run", study, "--out", "run", "--checkpoint-seconds", "0"]
    with open(folder / "log", "ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env=os.environ | {"AWS_SECRET_ACCESS_KEY": "hunter2"},
        )


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_a_ray_that_dies_ends_the_run_in_a_line_and_the_next_goes_on(
    outside: Path, undisturbed: pd.DataFrame, name: str
) -> None:
    (outside / "kills.yaml").write_text(STUDY)
    run = (outside / "run").resolve()
    process = begin(outside)
    wait(lambda: num_records(run) >= 4 or process.poll() is not None)
    (victim,) = (pid for pid, known in family(process.pid).items() if known == name)
    os.kill(victim, signal.SIGKILL)
    assert process.wait(120) == 1
    log = (outside / "log").read_text()
    assert f"Ray on this machine died ({name} killed by SIGKILL); records up to here are kept" in log
    assert "`wa run kills.yaml --out run` continues it" in log
    assert "Traceback" not in log
    assert "(raylet)" not in log  # which is in ray.log
    assert family(process.pid) == {}
    assert len(load_records(run)) >= 4
    if name == "raylet":
        assert begin(outside).wait(180) == 0, (outside / "log").read_text()
        pd.testing.assert_frame_equal(
            load_records(run).drop(columns=MEASURED), undisturbed.drop(columns=MEASURED), check_exact=True
        )
        assert not (run / "ray.log").exists() or "Traceback" not in (outside / "log").read_text()


def test_an_interrupt_while_ray_starts_leaves_nothing(outside: Path) -> None:
    (outside / "kills.yaml").write_text(STUDY)
    process = begin(outside)
    wait(lambda: "gcs_server" in family(process.pid).values() or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    assert process.wait(90) == 1, (outside / "log").read_text()
    assert not (outside / "run").exists()
    assert "Traceback" not in (outside / "log").read_text()
    assert "interrupted" in (outside / "log").read_text()
    assert family(process.pid) == {}


def test_crashes_are_told_apart_and_retried_as_often_as_promised(outside: Path) -> None:
    code = CRASHES.replace("MARKS", str(outside)).replace("RETRIES", str(MOST_FAILURES - 1))
    (outside / "crashes.py").write_text(code)
    (outside / "crashes.yaml").write_text(CRASH_STUDY)
    process = begin(outside, "crashes.yaml")
    assert process.wait(400) == 1
    lines = (outside / "log").read_text().splitlines()
    said = {
        name: [line for line in lines if line.startswith(f"crashes:{name} · none, ema · seed 7 failed")]
        for name in ("Segfault", "Exits", "KilledAtFirst")
    }
    assert "crashed: segmentation fault in crashes.py, line 8" in said["Segfault"][-1]
    assert "it called exit(0)" in said["Exits"][0]
    assert len(said["Exits"]) == 1  # which it would call again
    assert all("SIGKILL" in line for line in said["KilledAtFirst"])
    trials = load_trials(outside / "run")
    status = trials.set_index("trajectory_id")["status"]
    done = trials.loc[trials["status"] == "done", "trajectory_id"]
    # Killed as often as there are retries, and done by the last of them; what crashes always is tried once more.
    assert len(done) == 1
    assert (trials["trajectory_id"] == done.iloc[0]).sum() == MOST_FAILURES == len(said["KilledAtFirst"]) + 1
    assert len(said["Segfault"]) == MOST_FAILURES
    assert "tried again" not in said["Segfault"][-1]
    assert len(status) == 2 * MOST_FAILURES + 1
    assert not [line for line in lines if "Traceback" in line or line.startswith("ray::")]
    assert "Traceback" in (outside / "run" / "ray.log").read_text()
    assert (outside / "run" / "ray.log").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_end_while_the_report_is_written_costs_the_report_alone(
    outside: Path, tiny_folder: Path, undisturbed: pd.DataFrame, number: signal.Signals
) -> None:
    run = outside / "run"
    shutil.copytree(tiny_folder / "run", run)
    (outside / "kills.yaml").write_text(STUDY)
    process = begin(outside, wa=[WA])
    wait(lambda: (run / "tables").exists() or process.poll() is not None)
    process.send_signal(number)
    assert process.wait(60) == (1 if number == signal.SIGTERM else -number)
    wait(lambda: not family(process.pid))  # also what published to W&B
    assert not (run / "report.html").exists()
    log = (outside / "log").read_text()
    assert "Traceback" not in log
    assert ("interrupted" in log) == (number == signal.SIGTERM)
    cli.main(["run", "kills.yaml", "--out", "run"], standalone_mode=False)
    assert "</html>" in (run / "report.html").read_text(encoding="utf-8")
    made = {"report.html", "tables", "figures", "wandb", "wandb.log"}
    assert {path.name for path in run.iterdir()} == {path.name for path in (tiny_folder / "run").iterdir()} | made
    pd.testing.assert_frame_equal(load_records(run), undisturbed, check_exact=True)
