"""The run folder: compaction can be killed anywhere, a changed spec adds or conflicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.run_folder.records import load, load_cells, load_records, load_trials
from sweeps import durable, plan, run_folder, trajectory
from sweeps.attempts import Attempt
from sweeps.blocks import SpecError
from sweeps.reporter import Begun, Reporter
from sweeps.scribe import Scribe
from sweeps.spec import parse_spec
from sweeps.work import Work, work

AVERAGING = [{"scheme": "none"}, {"scheme": "ema", "decay": 0.9}]


def spec(**changes: Any) -> Any:
    raw = {"study": "r", "workloads": "tinywork:Tiny", "averaging": AVERAGING, "evaluate": {"every": 20}}
    return parse_spec({**raw, **changes})


def train(run: Path, todo: Work, only: int | None = None) -> None:
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    for one in todo.trajectories[:only]:
        trajectory.run(one, run_folder.trajectory_folder(run, one.name))
        run_folder.compact(run, one.name)


@pytest.fixture
def run(outside: Path) -> Path:
    folder = outside / "run"
    train(folder, work([spec()], folder))
    return folder


def begin(folder: Path) -> None:
    """An attempt that says no more."""
    with Scribe(folder) as scribe:
        Attempt.begin(0, folder.name, "cpu", 1.0, Reporter(scribe.take, Begun()).tell)


def test_the_folder_holds_what_the_face_says(run: Path) -> None:
    run_folder.write_trials(run)
    for name in ("spec.yaml", "plan.json", "cells.parquet", "trials.parquet", "records", "trajectories"):
        assert (run / name).exists(), name
    document = json.loads((run / "plan.json").read_text())
    assert {"study", "targets", "trajectories", "versions", "cells", "seeds"} <= set(document)
    frame = load(run)
    assert frame["step"].tolist() == [20, 40, 60] * 2
    trials = load_trials(run)
    assert trials["status"].tolist() == ["done"]
    assert json.loads(trials["versions"][0])["torch"]


@pytest.mark.parametrize("killed_after", ["nothing", "parquet", "all"])
def test_compaction_repeats_after_a_kill(outside: Path, killed_after: str) -> None:
    folder = outside / "run"
    todo = work([spec()], folder)
    run_folder.write_plan(folder, todo.studies, todo.trajectories)
    (one,) = todo.trajectories
    home = run_folder.trajectory_folder(folder, one.name)
    trajectory.run(one, home)
    live = (home / "records.jsonl").read_bytes()
    before = load_records(folder)
    if killed_after != "nothing":
        run_folder.compact(folder, one.name)
    if killed_after == "parquet":
        (home / "records.jsonl").write_bytes(live)
    assert load_records(folder).equals(before)
    run_folder.compact(folder, one.name)
    run_folder.compact(folder, one.name)
    assert load_records(folder).equals(before)
    assert not (home / "records.jsonl").exists()
    assert not list(home.glob("checkpoint*"))


def test_nothing_is_left_to_do_in_a_finished_folder(run: Path) -> None:
    assert work([spec()], run).trajectories == []
    assert work([spec(fuse=False)], run).trajectories == []


def test_a_changed_spec_keeps_and_adds(run: Path) -> None:
    before = load_records(run)
    asked = spec(seeds=[0, 1], averaging=[*AVERAGING, {"scheme": "lawa", "k": 3, "every": 2}])
    todo = work([asked], run)
    added = {(cell.training.seed, cell.scheme is None) for one in todo.trajectories for cell in one.cells}
    assert sum(len(one.cells) for one in todo.trajectories) == 4
    assert (0, True) not in added
    train(run, todo)
    after = load_records(run)
    assert after.merge(before).shape[0] == len(before)
    assert len(load_cells(run)) == 6
    # and back: cells the spec no longer names keep their rows and records
    train(run, work([spec()], run))
    assert len(load_cells(run)) == 6
    assert load_records(run).equals(after)


def test_an_unfinished_trajectory_goes_on_with_its_cells(outside: Path) -> None:
    folder = outside / "run"
    train(folder, work([spec()], folder), only=0)
    (planned,) = (folder / "trajectories").iterdir()
    asked = spec(averaging=[*AVERAGING, {"scheme": "lawa", "k": 3}])
    assert [len(one.cells) for one in work([asked], folder).trajectories] == [3]  # not begun: planned anew
    begin(planned)
    todo = work([asked], folder)
    assert [len(one.cells) for one in todo.trajectories] == [2, 1]
    assert len({one.name for one in todo.trajectories}) == 2


@pytest.mark.parametrize(
    ("change", "key"), [({"evaluate": {"every": 10}}, "evaluate.every"), ({"resources": {"cpu": 2}}, "resources")]
)
def test_a_conflict_is_one_clear_error(run: Path, change: dict[str, Any], key: str) -> None:
    with pytest.raises(SpecError, match="another --out folder") as caught:
        work([spec(**change)], run)
    assert caught.value.path == key
    assert "\n" not in str(caught.value)


def test_somebody_elses_folder_is_refused(outside: Path) -> None:
    folder = outside / "thesis"
    folder.mkdir()
    (folder / "chapter1.tex").write_text("x")
    with pytest.raises(SpecError, match="not a run folder"):
        work([spec()], folder)


def test_one_driver_at_a_time(run: Path) -> None:
    with durable.locked(run), pytest.raises(SpecError, match="another `wa run`"), durable.locked(run):
        pass


def test_an_attempt_that_never_ended_was_interrupted(run: Path) -> None:
    (one,) = run_folder.started(run)
    path = run_folder.trajectory_folder(run, one.name) / "attempt-0.json"
    path.write_text(path.read_text().replace('"done"', '"running"'))
    run_folder.write_trials(run)
    assert load_trials(run)["status"].tolist() == ["interrupted"]
    assert plan.from_dict(plan.to_dict(one)) == one
