"""Two studies run into one folder, killed on the way and run again: each has the records it has alone."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from sweep_processes import STUDY, UNDRAWN, WA, num_records, wait

from analysis.run_folder.records import load, load_cells, load_trials
from analysis.run_folder.schema import MEASURED
from sweeps import cli, run_folder, trajectory
from sweeps.spec import load_spec
from sweeps.work import work

pytestmark = pytest.mark.slow
OTHER = """
study: other
workloads: "tinywork:Slow"
seeds: [0, 1]
step_budget: 150
schedule: {length: [0.5, 1.0]}
averaging:
  - {scheme: none}
  - {scheme: lawa, k: 9, every: 3}
evaluate: {every: 10}
tracking: {wandb: offline, project: p}
"""


@pytest.mark.usefixtures("undrawn")
def test_kill_9_of_a_run_of_two_studies(outside: Path, undisturbed: pd.DataFrame) -> None:
    (outside / "kills.yaml").write_text(STUDY)
    (outside / "other.yaml").write_text(OTHER)
    alone = outside / "alone"
    todo = work([load_spec(outside / "other.yaml")], alone)
    run_folder.write_plan(alone, todo.studies, todo.trajectories)
    for one in todo.trajectories:
        trajectory.run(one, run_folder.trajectory_folder(alone, one.name))
        run_folder.compact(alone, one.name)
    run = (outside / "run").resolve()
    command = [*UNDRAWN, "run", "kills.yaml", "other.yaml", "--out", "run", "--checkpoint-seconds", "0"]
    with (outside / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=outside, stdout=log, stderr=log, start_new_session=True)
    wait(lambda: num_records(run) >= 60 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run([WA, *command[3:]], cwd=outside, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    for study, own in (("kills", undisturbed), ("other", load(alone))):
        mine = load(run, study=study)[list(undisturbed.columns)].drop(columns=MEASURED)
        expected = own[list(undisturbed.columns)].drop(columns=MEASURED)
        pd.testing.assert_frame_equal(mine, expected, check_exact=True)
    trials = load_trials(run)
    assert (trials["status"] == "done").sum() == trials["trajectory_id"].nunique() == 3 + 2
    assert len(load_cells(run)) == 3 * 4 + 2 * 1 + 2 * 2  # on full length, only its LAWA is new
    for study in ("kills", "other"):
        assert (run / "reports" / study / "report.html").stat().st_size > 10_000
    assert "reports/other/report.html" in (run / "report.html").read_text()
    # One of them alone finds nothing left to do in the folder of both, and leaves the other as it is.
    assert work([load_spec(outside / "other.yaml")], run).trajectories == []
    cli.main(["run", "other.yaml", "--out", "run"], standalone_mode=False)
    assert len(load_trials(run)) == len(trials)
    assert len(load_cells(run)) == 3 * 4 + 2 * 1 + 2 * 2
