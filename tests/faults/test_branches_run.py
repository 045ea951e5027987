"""A real run of a trunk and its branches, whose trunk first fails for good and is then killed where they part."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from sweep_processes import UNDRAWN, wait, workers
from trained import assert_same
from trained import run as train

from analysis.run_folder.records import load_records
from sweeps.plan import Trajectory
from sweeps.run_folder import started

WORK = """
import os, time
from tinywork import Tiny

class Fragile(Tiny):
    step_budget = 150

    def batches(self, seed, first_step):
        for step, batch in enumerate(super().batches(seed, first_step), first_step):
            if step == 20 and os.path.exists(SWITCH):
                raise RuntimeError("no such luck")
            yield batch

    def loss(self, model, batch):
        time.sleep(0.02)
        return super().loss(model, batch)
"""
STUDY = """
study: branches
workloads: "fragile:Fragile"
schedule:
  - {shape: constant, warmup: 6}
  - {shape: 1-sqrt, warmup: 6, length: [0.5, 1.0], lr_decay: 0.2}
averaging:
  - {scheme: none}
  - {scheme: lawa, k: 5, every: 3}
  - {scheme: ema, decay: 0.9, buffers: average}
evaluate: {every: 10}
tracking: {wandb: disabled}
"""
COMMAND = [*UNDRAWN, "run", "study.yaml", "--out", "run"]


@pytest.mark.slow
def test_a_failed_trunk_takes_its_branches_along_and_the_next_run_mends_it(outside: Path, tmp_path: Path) -> None:
    switch = outside / "switch"
    (outside / "fragile.py").write_text(f"SWITCH = {str(switch)!r}\n{WORK}")
    (outside / "study.yaml").write_text(STUDY)
    switch.touch()
    failed = subprocess.run(COMMAND, capture_output=True, text=True)
    assert failed.returncode == 1, failed.stdout + failed.stderr
    run = outside / "run"
    (trunk,) = started(run)  # no branch has begun
    assert trunk.forks == (61, 121)
    assert failed.stdout.count(f"of {trunk.name}, which has failed before") == 2

    switch.unlink()
    going_on = subprocess.Popen(COMMAND, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait(lambda: (run / "trajectories" / trunk.name / "fork-61.json").exists())
    os.kill(workers(run / "trajectories" / trunk.name)[0], signal.SIGKILL)
    said, _ = going_on.communicate(timeout=300)
    assert going_on.returncode == 0, said
    assert not list(run.glob("trajectories/*/fork-*")), "their states are freed"

    found = started(run)
    assert {one.first_step for one in found} == {0, 61, 121}
    records = load_records(run)
    for one in found:
        mine = records[records["cell_id"].isin([cell.cell_id for cell in one.cells])]
        alone = train(Trajectory(one.name, one.cells), tmp_path / one.name)
        columns = [name for name in alone.columns if name in mine.columns]
        assert_same(mine[columns].reset_index(drop=True), alone[columns])
        log = (run / "trajectories" / one.name / "log").read_text()
        assert one.branch is None or f"on from step {one.first_step} of {trunk.name}" in log
    assert len(list(run.glob(f"trajectories/{trunk.name}/attempt-*.json"))) == 3
