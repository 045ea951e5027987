"""The run that nothing disturbed, which every disturbed one must equal: in this process, without Ray."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from sweep_processes import STUDY

from analysis.run_folder.records import load_records
from sweeps import durable, origins, run_folder, trajectory
from sweeps.spec import load_spec
from sweeps.work import work


def undisturbed_records(folder: Path) -> pd.DataFrame:
    """Of STUDY, in `folder`, which has its workload."""
    run = folder / "run"
    (folder / "kills.yaml").write_text(STUDY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        patch.delitem(sys.modules, "tinywork", raising=False)
        patch.setattr(time, "sleep", lambda seconds: None)  # the workload's steps, made long to be killed in
        specs = [load_spec(folder / "kills.yaml")]
        with durable.locked(run):
            todo = work(specs, run)
            run_folder.write_plan(run, todo.studies, todo.trajectories, origins.of_studies(specs))
            for one in todo.trajectories:
                trajectory.run(one, run_folder.trajectory_folder(run, one.name))
                run_folder.compact(run, one.name)
            run_folder.write_trials(run)
    return load_records(run)
