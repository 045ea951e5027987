"""A run folder with a trunk and its branches, of two studies: every reader sees every row once, and what it cost."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console
from trained import rows

from analysis import load
from analysis.run_folder import study
from sweeps import durable, forks, run_folder, trajectory
from sweeps.expected import as_json, expected
from sweeps.plan import Trajectory
from sweeps.plan_text import show
from sweeps.spec import Spec, parse_spec
from sweeps.status import Status
from sweeps.storage import Place
from sweeps.work import Work, work

AVERAGING = [{"scheme": "none"}, {"scheme": "ema", "decay": 0.8}]
TRUNK = {"shape": "constant", "warmup": 6}
COOLDOWNS = {"shape": "1-sqrt", "warmup": 6, "length": [0.5, 1.0], "lr_decay": 0.2}


def spec(name: str, schedule: Any, **more: Any) -> Spec:
    told = {"study": name, "workloads": "tinywork:Tiny", "averaging": AVERAGING, "evaluate": {"every": 7}}
    return parse_spec({**told, "schedule": schedule, **more})


def train(run: Path, one: Trajectory) -> pd.DataFrame:
    folder = run_folder.trajectory_folder(run, one.name)
    trajectory.run(one, folder)
    found = rows(folder)
    run_folder.compact(run, one.name)
    return found


def planned(run: Path, specs: list[Spec]) -> Work:
    todo = work(specs, run)
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    return todo


def test_each_row_is_there_once_and_the_trunk_is_paid_for_once(outside: Path) -> None:
    run, specs = outside / "run", [spec("trunk", TRUNK), spec("cooldowns", COOLDOWNS)]
    with durable.locked(run):
        trunk, *branches = planned(run, specs).trajectories
        assert [one.branch is None for one in (trunk, *branches)] == [True, False, False]
        train(run, trunk)
        left = list(run.glob("trajectories/*/fork-*"))
        assert {path.name for path in left} == {"fork-25", "fork-49", "fork-25.json", "fork-49.json"}
        # Each is a file of torch's, whose own names and paddings outweigh the few weights here.
        assert sum(path.stat().st_size for path in left) > forks.most_bytes(trunk) > 0

        # Another `wa run`: what was only planned starts from the trunk that is done, and rows come while it trains.
        again = planned(run, specs)
        assert again.trajectories == branches
        assert again.done == (trunk.name,)
        late, early = sorted(branches, key=lambda one: -one.first_step)
        trained = {late.name: train(run, late)}
        forks.free(run, Place.of(run), planned(run, specs).trajectories)
        assert {path.name for path in run.glob("trajectories/*/fork-*")} == {"fork-25", "fork-25.json"}
        trained[early.name] = train(run, early)
        forks.free(run, Place.of(run), planned(run, specs).trajectories)
        assert not list(run.glob("trajectories/*/fork-*"))
        run_folder.write_trials(run)
    records = load(run)
    assert not records.duplicated(["cell_id", "split", "step"]).any()
    for one in branches:
        mine = records[records["cell_id"].isin([cell.cell_id for cell in one.cells])]
        assert len(mine) == len(trained[one.name])
        assert mine["step"].min() == 7
        assert mine["step"].max() == one.length_steps
    assert Status(run).is_done

    own, other = study.read(run, "trunk"), study.read(run, "cooldowns")
    assert set(own.trials["name"]) == {trunk.name}
    assert set(other.trials["name"]) == {one.name for one in (trunk, *branches)}  # in full, and said so
    assert own.shared == other.shared == {trunk.name}
    assert len(study.read(run).trials) == 3


def test_the_plan_counts_the_steps_that_are_trained(outside: Path) -> None:
    both = [TRUNK, COOLDOWNS]
    todo, apart = work([spec("s", both)], None), work([spec("s", both, branch=False)], None)
    told = [expected(one)["tinywork:Tiny"] for one in (todo, apart)]
    assert [one["steps"] for one in told] == [60 + 5 + 11, 60 + 30 + 60]
    assert [one["steps_saved"] for one in told] == [25 + 49, 0]
    assert told[0]["unfused_device_hours"] == told[1]["unfused_device_hours"]
    assert told[0]["device_hours"] < told[1]["device_hours"]
    listed = {(one["first_step"], one["branch_of"]) for one in as_json([todo.studies[0].spec], todo)["trajectories"]}
    trunk = todo.trajectories[0].name
    assert listed == {(0, None), (25, trunk), (49, trunk)}
    console = Console(record=True, width=200, file=io.StringIO())
    show([todo.studies[0].spec], todo, None, [], console)
    assert f"2 branches of {trunk}, from step 25, 49: 74 training steps saved" in console.export_text()
    unfused = work([spec("s", both, fuse=False)], None)
    assert all(one.branch is None for one in unfused.trajectories)


def test_progress_of_a_branch_is_that_of_its_own_steps(outside: Path) -> None:
    run = outside / "run"
    with durable.locked(run):
        trunk, *branches = planned(run, [spec("s", [TRUNK, COOLDOWNS])]).trajectories
        train(run, trunk)
        late = next(one for one in branches if one.first_step == 49)

        def stop(step: int) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):  # at step 56
            trajectory.run(late, run_folder.trajectory_folder(run, late.name), report=stop)
        status = Status(run)
        status.look()
    assert status.trials[late.name].share == 7 / 11
    assert work([spec("s", [TRUNK, COOLDOWNS])], run).trajectories[0].branch is not None
