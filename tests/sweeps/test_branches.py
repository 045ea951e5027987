"""Branches: what starts from which trunk, and that the records are those of trainings from the first step."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trained import ALL_SCHEMES, Stop, assert_same, rows, run, stop_at, tiny

from sweeps import forks, plan
from sweeps.branches import branched
from sweeps.identity import Cell
from sweeps.plan import Branch, Trajectory, cost, trajectories
from sweeps.room import num_snapshots
from sweeps.schedules import Schedule, shared_steps
from sweeps.storage import Place
from sweeps.trace import Trace

TRUNK = {"shape": "constant", "warmup": 6}
COOLDOWNS = {"shape": "1-sqrt", "warmup": 6, "length": [0.5, 1.0], "lr_decay": 0.2}
SHORT = {"shape": "power", "warmup": 6, "lr_decay": 0.1}
EMA = {"scheme": "ema", "decay": 0.8, "every": 2, "burn_in": 10, "buffers": "recompute"}


def planned(cells: list[Cell], **more: Any) -> list[Trajectory]:
    return branched(trajectories(cells, fuse=True), **more)


LONG = {"scheme": "lawa", "k": 12}  # whose sum is of blocks of snapshots


def tree() -> list[Trajectory]:
    """A constant run and its cooldowns, two of which ask for averages that it does not."""
    return planned(tiny(EMA, schedule=[TRUNK, SHORT]) + tiny([*ALL_SCHEMES, LONG], schedule=COOLDOWNS))


def alone(one: Trajectory) -> Trajectory:
    return Trajectory(one.name, one.cells)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_cooldowns_branch_from_the_constant_run(outside: Path) -> None:
    found = planned(tiny({"scheme": "none"}, schedule=[TRUNK, {**COOLDOWNS, "lr_decay": [0.1, 0.2]}], seeds=[0, 1]))
    assert len(found) == 10
    for trunk in found[:2]:  # what the others wait for comes first
        mine = {(one.length_steps, one.branch) for one in found if one.cells[0].training.seed == _seed(trunk)}
        steps = {(30, 28), (30, 25), (60, 55), (60, 49)}  # 28: the first step of the decay of 3 is at the peak
        assert mine == {(60, None), *((length, Branch(trunk.name, step)) for length, step in steps)}
        assert (trunk.forks, trunk.branch_lengths, trunk.riders) == ((25, 28, 49, 55), (30, 60), ())
    assert sum(one.num_steps for one in found) == 2 * (60 + 2 + 5 + 5 + 11)
    assert [plan.from_dict(plan.to_dict(one)) for one in found] == found


def _seed(one: Trajectory) -> int:
    return one.cells[0].training.seed


def test_a_trunk_carries_what_branches_alone_ask_for(outside: Path) -> None:
    trunk, *branches = tree()
    assert {one.branch for one in branches} == {Branch(trunk.name, step) for step in (25, 49, 55)}
    carried = [cell.scheme for cell in (*trunk.cells, *trunk.riders)]
    assert len(carried) == len(ALL_SCHEMES) + 7 == len(set(carried))
    assert {cell.trajectory_id for cell in trunk.riders} == {trunk.trajectory_id}
    assert cost(trunk).seconds > cost(alone(trunk)).seconds
    (late,) = [one for one in branches if one.first_step == 49]
    assert cost(late).train_seconds == pytest.approx(cost(alone(late)).train_seconds * 11 / 60)


@pytest.mark.parametrize(
    "other",
    [
        {"seeds": 1},
        {"optimizer": {"lr": 0.01}},
        {"training": {"precision": "bf16"}},
        {"evaluate": {"every": 5}},
        {"schedule": {**COOLDOWNS, "warmup": 7, "length": 0.5}},
        {"schedule": {"shape": "cosine", "warmup": 2}},  # what it shares is less than a tenth
    ],
    ids=str,
)
def test_what_differs_from_the_trunk_is_trained_by_itself(outside: Path, other: dict[str, Any]) -> None:
    found = planned(tiny(EMA, schedule=TRUNK) + tiny(EMA, **{"schedule": {**COOLDOWNS, "length": 0.5}, **other}))
    assert [(one.branch, one.forks) for one in found] == [(None, ())] * 2


def test_what_keeps_a_trace_branches_from_what_keeps_the_same(outside: Path) -> None:
    def firsts(trunk: Any, cooldowns: Any) -> set[int]:
        cells = tiny(EMA, schedule=TRUNK, keep=trunk) + tiny(EMA, schedule=COOLDOWNS, keep=cooldowns)
        return {one.first_step for one in planned(cells) if one.schedule.shape != "constant"}

    assert firsts({"every": 5}, {"every": 5}) == firsts({"every": 5}, {}) == {25, 49}
    # A trace has all steps of its training, so without the trunk's a branch would have none of the first.
    assert firsts({}, {"every": 5}) == firsts({"every": 10}, {"every": 5}) == {0, 25}


def test_another_step_budget_is_no_other_training(outside: Path) -> None:
    trunk, branch = planned(tiny(EMA, schedule=TRUNK) + tiny(EMA, schedule=TRUNK, step_budget=80))
    assert (trunk.length_steps, branch.length_steps) == (60, 80) or (branch.length_steps, trunk.length_steps) == (
        60,
        80,
    )
    assert branch.branch is not None
    assert branch.branch.step == 59  # the shorter one's end, off the grid, is its own


LENGTHS, DECAYS = (20, 40, 60), (0, 4, 10)


@settings(deadline=None, max_examples=50)  # the first one loads a workload
@given(st.data(), st.lists(st.tuples(st.sampled_from(LENGTHS), st.sampled_from(DECAYS), st.sampled_from([0, 0.5]))))
def test_whatever_the_schedules_a_branch_shares_its_steps_and_a_trunk_is_no_branch(
    data: st.DataObject, drawn: list[tuple[int, int, float]]
) -> None:
    base = plain_cell()
    cells = []
    for length, decay, final in dict.fromkeys(drawn):
        schedule = Schedule("linear" if decay else "constant", length, data.draw(st.sampled_from([2, 5])), decay, final)
        cells.append(replace(base, training=replace(base.training, schedule=schedule)))
    unbranched = trajectories(list(dict.fromkeys(cells)), fuse=True)
    found = {one.name: one for one in branched(unbranched)}
    assert {name: one.cells for name, one in found.items()} == {one.name: one.cells for one in unbranched}
    for one in found.values():
        if one.branch is not None:
            trunk = found[one.branch.trunk]
            assert trunk.branch is None
            assert one.branch.step in trunk.forks
            assert 0 < one.branch.step < one.length_steps
            assert one.branch.step <= shared_steps(one.schedule, trunk.schedule)


def plain_cell() -> Cell:
    from sweeps.cells import cells
    from sweeps.spec import parse_spec

    spec = {"study": "p", "workloads": "lm", "step_budget": 60, "averaging": {"scheme": "none"}}
    return cells(parse_spec({**spec, "evaluate": {"every": 10}}))[0]


def test_what_was_only_planned_joins_a_trunk_that_has_begun(outside: Path) -> None:
    trunk, *branches = found = tree()
    assert branched([trunk, *map(alone, branches)], [trunk]) == found
    # Done, and one state is still there: a longer branch has the steps after it to train.
    left = branched([*map(alone, branches)], [replace(trunk, forks=(25,))])
    assert {one.branch for one in left} == {Branch(trunk.name, 25)}
    more = trajectories(tiny({"scheme": "lawa", "k": 9}, schedule=COOLDOWNS), fuse=True)  # which it does not carry
    assert all(one.branch is None or one.branch.trunk != trunk.name for one in branched(more, [trunk]))


# --- the loop ---------------------------------------------------------------------------------------------------------


Folders = tuple[Path, list[Trajectory], dict[str, pd.DataFrame]]


@pytest.fixture(scope="module")
def folders(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Path, list[Trajectory], dict[str, pd.DataFrame]]]:
    """Trunk and branches, all schemes and policies of buffers, trained each by itself: the reference."""
    from tiny_workload import write_tiny

    folder = tmp_path_factory.mktemp("alone")
    write_tiny(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        found = tree()
        yield folder, found, {one.name: run(alone(one), folder / one.name) for one in found}


def check(folders: Folders, found: list[Trajectory], run_folder: Path, resumed: bool = False) -> None:
    """Train what is left of it and hold all records against the reference."""
    for one in found:
        assert_same(run(one, run_folder / one.name, checkpoint_seconds=0), folders[2][one.name])
        log = (run_folder / one.name / "log").read_text()
        assert one.branch is None or resumed or f"on from step {one.first_step} of {found[0].name}" in log


def test_records_are_those_of_the_training_from_the_start(folders: Folders, tmp_path: Path) -> None:
    found = folders[1]
    check(folders, found, tmp_path)
    late = next(one for one in found if one.first_step == 49)
    trunk, branch = (rows(tmp_path / one.name) for one in (found[0], late))
    (ema,) = [cell.cell_id for cell in late.cells if cell.scheme == found[0].cells[0].scheme]
    until = branch[(branch["cell_id"] == ema) & (branch["step"] <= 49)].reset_index(drop=True)
    # Up to where they part the clocks are the trunk's, and go on from there.
    clocks = ["step", "train_seconds", "average_seconds", "eval_seconds"]
    pd.testing.assert_frame_equal(until[clocks], trunk.head(len(until))[clocks])
    assert (branch.groupby("cell_id")[clocks[1:]].diff().dropna() >= 0).all(axis=None)


def test_free_removes_the_states_that_no_unfinished_branch_starts_from(tmp_path: Path) -> None:
    base = plain_cell()
    waiting = Trajectory("b", (base,), branch=Branch("trunk", 25))
    folder = tmp_path / "trajectories" / "trunk"
    folder.mkdir(parents=True)
    for name in ("fork-25", "fork-49", "checkpoint-0-49"):
        (folder / name).write_bytes(b"state")
        (folder / f"{name}.json").write_text(json.dumps({"path": name, "step": 1}))
    forks.free(tmp_path, Place.of(tmp_path), [waiting])
    left = {"fork-25", "fork-25.json", "checkpoint-0-49", "checkpoint-0-49.json"}
    assert {path.name for path in folder.iterdir()} == left
    trunk = Trajectory("trunk", (base,), forks=(25, 49))
    assert forks.offered(tmp_path, trunk, is_done=True).forks == (25,)
    assert forks.offered(tmp_path, trunk, is_done=False).forks == (25, 49)


@pytest.mark.parametrize("step", [21, 28])
def test_a_trunk_and_a_branch_go_on_after_an_interruption(folders: Folders, tmp_path: Path, step: int) -> None:
    found = folders[1]
    with pytest.raises(Stop):
        run(found[0], tmp_path / found[0].name, checkpoint_seconds=0, report=stop_at(step))
    run(found[0], tmp_path / found[0].name)
    branch = next(one for one in found if one.first_step == 49)
    with pytest.raises(Stop):  # before its first checkpoint of its own
        run(branch, tmp_path / branch.name, checkpoint_seconds=1000, report=stop_at(56))
    check(folders, found, tmp_path, resumed=True)


@pytest.mark.parametrize("state", ["missing", "broken"])
def test_without_its_trunks_state_a_branch_is_trained_from_the_start(
    folders: Folders, tmp_path: Path, state: str
) -> None:
    found = folders[1]
    branch = next(one for one in found if one.first_step == 25)
    if state == "broken":
        (tmp_path / found[0].name).mkdir()
        (tmp_path / found[0].name / "fork-25").write_bytes(b"rubbish" * 20)
    check(folders, [branch], tmp_path, resumed=True)
    assert "training from the start" in (tmp_path / branch.name / "log").read_text()


KILLED = """
import json, os, signal, sys
from pathlib import Path
from sweeps import durable, plan, trajectory, training_state

sys.path.append(sys.argv[1])
one, folder, when = plan.from_dict(json.loads(sys.argv[2])), Path(sys.argv[3]), sys.argv[4]
save, replace = training_state.save, os.replace

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def saving(state, path, *more, **named):
    save(state, path, *more, **named)
    if path.name == "fork-49" and when == "after": die()

def replacing(source, target, **named):
    if Path(target).name == "fork-49" and when == "amid": die()
    replace(source, target, **named)

training_state.save, os.replace = saving, replacing
trajectory.run(one, folder, checkpoint_seconds=0)
"""


def test_a_trunk_killed_around_the_parting_step_leaves_the_same_state(folders: Folders, tmp_path: Path) -> None:
    folder, (trunk, *branches), _ = folders
    told = json.dumps(plan.to_dict(trunk))
    at = ("amid", "after")
    command = [sys.executable, "-c", KILLED, str(folder), told]
    started = [subprocess.Popen([*command, str(tmp_path / when / trunk.name), when]) for when in at]
    assert [process.wait(300) for process in started] == [-9, -9]
    for when in at:
        fork = tmp_path / when / trunk.name / "fork-49"
        assert fork.exists() == (when == "after")
        run(trunk, tmp_path / when / trunk.name)
        check(folders, [one for one in branches if one.first_step == 49], tmp_path / when, resumed=True)


def test_the_trace_of_a_branch_has_the_steps_of_its_trunk_and_is_replayed(outside: Path, tmp_path: Path) -> None:
    keep = {"every": 3}
    trunk, branch = planned(tiny(EMA, schedule=[TRUNK, {**COOLDOWNS, "length": 1.0}], keep=keep))
    assert branch.branch == Branch(trunk.name, 49)
    trajectories_of = tmp_path / "trajectories"
    with pytest.raises(Stop):  # between two evaluations in the trunk, after what it has kept of them
        run(trunk, trajectories_of / trunk.name, checkpoint_seconds=0, report=stop_at(42))
    for one in (trunk, branch):
        run(one, trajectories_of / one.name)
    steps = Trace.of(tmp_path / "traces" / branch.name).steps
    assert steps == sorted({*range(3, 61, 3), *range(7, 61, 7), 60})
    assert num_snapshots(branch) == sum(step > 49 for step in steps)
    (asked,) = trajectories(
        tiny([{"scheme": "none"}, {"scheme": "lawa", "k": 4, "every": 3}], schedule={**COOLDOWNS, "length": 1.0}), True
    )
    replayed = run(replace(asked, name="asked", replays=branch.name), trajectories_of / "asked")
    assert_same(replayed, run(asked, tmp_path / "trained"))


def test_a_branch_of_a_trunk_that_diverged_before_is_its_own_divergence(outside: Path, tmp_path: Path) -> None:
    averaging = [{"scheme": "none"}, {"scheme": "ema", "decay": 0.8}]
    trunk, branch = planned(tiny(averaging, "tinywork:Diverging", schedule=[TRUNK, {**COOLDOWNS, "length": 1.0}]))
    for one in (trunk, branch):
        frame = run(one, tmp_path / one.name)
        assert frame["step"].max() == 35
        assert (tmp_path / one.name / "done").exists()
    assert_same(frame, run(alone(branch), tmp_path / "alone"))


@pytest.mark.slow
def test_a_branch_of_two_processes_goes_on_from_a_trunk_of_two(outside: Path, tmp_path: Path) -> None:
    short = tiny({"scheme": "none"}, "tinywork:Parted", schedule=[TRUNK, SHORT])
    found = planned(short + tiny([EMA, LONG], "tinywork:Parted", schedule={**COOLDOWNS, "length": 1.0}))
    trunk, (branch,) = found[0], [one for one in found if one.first_step == 49]
    assert len(trunk.riders) == 2
    on_two = {"processes": 2, "num_devices": 2}
    run(trunk, tmp_path / trunk.name, **on_two)
    records = run(branch, tmp_path / branch.name, **on_two)
    assert f"on from step 49 of {trunk.name}" in (tmp_path / branch.name / "log").read_text()
    assert_same(records, run(alone(branch), tmp_path / "alone", **on_two))
