"""A bracket records a part of what evaluating all records, bit for bit, and the same steps-to-target."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from trained import ALL_SCHEMES, Stop, assert_same, run, stop_at, tiny

from analysis.run_folder.records import KEY, load_cells
from analysis.statistics.steps_to_target import HELD, curves, first_crossing
from sweeps import bracket, room, trajectory
from sweeps.blocks import SpecError
from sweeps.evaluate import Evaluator
from sweeps.grace import Terminated
from sweeps.plan import Trajectory, from_dict, to_dict, trajectories
from sweeps.run_folder import write_plan
from sweeps.spec import parse_spec
from sweeps.studies import resolve, union
from sweeps.trace import Trace
from sweeps.training import Trainer
from sweeps.work import work

SOME = [ALL_SCHEMES[0], ALL_SCHEMES[2], {"scheme": "ema", "decay": [0.5, 0.9], "every": 2}]
RECOMPUTED = {"scheme": "lawa", "k": 2, "every": 9, "buffers": "recompute"}


def asked(how: str, averaging: Any = tuple(SOME), target: float | None = None, **changes: Any) -> Trajectory:
    evaluate = {"every": 2, "averages": how}
    (one,) = trajectories(tiny(list(averaging), evaluate=evaluate, **changes), fuse=True)
    return from_dict(to_dict(replace(one, target=target)))


def folder(tmp_path: Path, one: Trajectory) -> Path:
    return tmp_path / "trajectories" / one.name


def part_of(full: pd.DataFrame, one: Trajectory) -> pd.DataFrame:
    """The rows of `full` that a bracket asks for, by the pure function."""
    some = bracket.part(one.cells, full.to_dict("records"), one.target)
    assert not some.missing
    return pd.DataFrame(some.records, columns=full.columns).sort_values(KEY).reset_index(drop=True)


def target_of(full: pd.DataFrame) -> float:
    return float(full["metric"].quantile(0.6))


@pytest.fixture
def full(outside: Path, tmp_path: Path) -> pd.DataFrame:
    return run(asked("all"), tmp_path / "all")


def test_its_records_are_some_of_those_of_all_and_cross_the_target_where_they_do(outside: Path, tmp_path: Path) -> None:
    averaging = [*SOME, ALL_SCHEMES[-1], RECOMPUTED]
    full = run(asked("all", averaging), tmp_path / "all")
    target = target_of(full)
    one = asked("bracket", averaging, target)
    some = run(one, folder(tmp_path, one))
    assert len(some) < 0.9 * len(full)
    assert_same(some, part_of(full, one))
    here, there = curves(some), curves(full)
    assert here.keys() == there.keys()
    for cell_id, (steps, metric) in there.items():
        for in_a_row in (1, HELD):
            expected = first_crossing(steps, metric, target, True, in_a_row)
            assert np.array_equal(first_crossing(*here[cell_id], target, True, in_a_row), expected, equal_nan=True)
    clocks = some.sort_values("step").groupby("cell_id")[["train_seconds", "average_seconds"]]
    assert all((part.diff().dropna() >= 0).all(axis=None) for _, part in clocks)


@pytest.mark.parametrize("steps", [(24,), (26, 60)])
def test_killed_as_it_trains_and_as_it_asks_it_goes_on(
    full: pd.DataFrame, tmp_path: Path, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = asked("bracket", target=target_of(full))
    for step in steps:
        with pytest.raises(Stop):
            run(one, folder(tmp_path, one), checkpoint_seconds=0.0, report=stop_at(step))
    if 60 in steps:  # the training has ended, and is not done again

        def never(*_: Any) -> None:
            raise AssertionError("trained again")

        monkeypatch.setattr(Trainer, "_backward", never)
        again = []

        def twice(step: int) -> None:
            again.append(step)
            if len(again) == 1:
                raise Stop

        with pytest.raises(Stop):
            run(one, folder(tmp_path, one), report=twice)  # after the first round
    some = run(one, folder(tmp_path, one))
    assert_same(some, part_of(full, one))


def test_asked_to_end_between_its_rounds_it_ends_and_goes_on(
    full: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, fill, before = asked("bracket", target=target_of(full)), Evaluator.fill, signal.getsignal(signal.SIGTERM)

    def filled(self: Evaluator, cells: Any) -> None:
        fill(self, cells)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "fill", filled)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what comes once the trial has ended
        with pytest.raises(Terminated):
            run(one, folder(tmp_path, one))
        signal.signal(signal.SIGTERM, before)
    assert_same(run(one, folder(tmp_path, one)), part_of(full, one))


def test_a_trace_that_is_damaged_is_trained_again(full: pd.DataFrame, tmp_path: Path) -> None:
    one = asked("bracket", target=target_of(full))
    with pytest.raises(Stop):
        run(one, folder(tmp_path, one), checkpoint_seconds=0.0, report=stop_at(30))
    part = min((folder(tmp_path, one) / "trace").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-10])
    some = run(one, folder(tmp_path, one))
    assert_same(some, part_of(full, one))
    assert "is not whole; training from the start" in (folder(tmp_path, one) / "log").read_text()


def test_a_diverged_training_is_asked_up_to_where_it_ended(outside: Path, tmp_path: Path) -> None:
    full = run(asked("all", workload="tinywork:Diverging"), tmp_path / "all")
    one = asked("bracket", workload="tinywork:Diverging", target=target_of(full[np.isfinite(full["metric"])]))
    some = run(one, folder(tmp_path, one))
    assert_same(some, part_of(full, one))
    assert some.groupby("cell_id")["step"].max().nunique() == 1


def test_a_replay_asks_its_own_trace(full: pd.DataFrame, tmp_path: Path) -> None:
    source = asked("all", SOME[:1], keep={"every": 1})
    run(source, folder(tmp_path, source))
    one = replace(asked("bracket", target=target_of(full)), name="again", replays=source.name)
    some = run(one, folder(tmp_path, one))
    assert len(some) < len(full)
    assert_same(some, part_of(full, one))


def test_what_cannot_be_asked_is_evaluated_in_full(outside: Path) -> None:
    alone = {cell.averages for cell in tiny(SOME[1:], evaluate={"averages": "bracket"})}
    unfused = {cell.averages for cell in tiny(SOME, evaluate={"averages": "bracket"}, fuse=False)}
    several = {"workload": "lm", "resources": {"cpu": 2, "processes": 2}}
    parallel = {cell.averages for cell in tiny(SOME, evaluate={"averages": "bracket"}, **several)}
    assert alone == unfused == parallel == {"all"}
    assert [cell.averages for cell in tiny(SOME, evaluate={"averages": "bracket"})] == ["all"] + ["bracket"] * 3


def spec(how: str, study: str = "one", every: int = 10, **changes: Any) -> Any:
    evaluate = {"every": every, "averages": how}
    raw = {"study": study, "workloads": "tinywork:Tiny", "averaging": SOME, "evaluate": evaluate, **changes}
    return parse_spec(raw)


def test_of_two_studies_the_fuller_one_is_recorded(outside: Path) -> None:
    for first, second in (("all", "bracket"), ("bracket", "all")):
        cells = union(resolve([spec(first), spec(second, "two")]))
        assert [cell.averages for cell in cells] == ["all"] * 4
    assert tiny(SOME, evaluate={"averages": "bracket"})[1].cell_id == tiny(SOME)[1].cell_id


def test_a_folder_that_has_some_is_not_asked_for_all_and_not_the_other_way_round(outside: Path, tmp_path: Path) -> None:
    for held, asked in (("bracket", "all"), ("all", "bracket")):
        run_folder = tmp_path / held
        todo = work([spec(held)], None)
        write_plan(run_folder, todo.studies, todo.trajectories)
        for one in todo.trajectories:
            run(one, run_folder / "trajectories" / one.name)
        assert work([spec(held)], run_folder).trajectories == []
        if held == "all":
            again = work([spec(asked)], run_folder)
            assert again.trajectories == []
            write_plan(run_folder, again.studies, again.trajectories)
            assert set(load_cells(run_folder)["evaluate_averages"]) == {"all"}
            continue
        with pytest.raises(SpecError, match=r"evaluate.averages: .* holds these cells with bracket, the spec says all"):
            work([spec(asked)], run_folder)
        with pytest.raises(SpecError, match=r"evaluate.every: .* 10 steps, the spec says 5 steps"):
            work([spec(held, every=5)], run_folder)


def test_a_folder_of_before_there_were_brackets_is_read(outside: Path, tmp_path: Path) -> None:
    todo = work([spec("all")], None)
    write_plan(tmp_path / "run", todo.studies, todo.trajectories)
    path = tmp_path / "run" / "cells.parquet"
    pq.write_table(pq.read_table(path).drop_columns("evaluate_averages"), path)
    assert load_cells(path.parent)["evaluate_averages"].isna().all()
    assert len(work([spec("all")], path.parent).trajectories) == 1


def test_the_room_for_its_own_trace_is_told_and_checked(
    full: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = asked("bracket")
    close, there = trajectory.rounds.close, list[tuple[int, int]]()

    def closing(evaluator: Any, trace: Trace, *more: Any) -> None:
        there.append((len(trace.steps), trace.nbytes))
        close(evaluator, trace, *more)

    with monkeypatch.context() as patch:
        patch.setattr(trajectory.rounds, "close", closing)
        run(one, folder(tmp_path, one))
    ((steps, nbytes),) = there
    assert room.num_snapshots(one) == steps == 30
    assert nbytes == pytest.approx(room.trace_bytes(one), rel=0.1)
    assert not Trace.of(folder(tmp_path, one) / "trace").steps, "it goes when it is no longer needed"
    monkeypatch.setattr(room.shutil, "disk_usage", lambda _: SimpleNamespace(free=room.trace_bytes(one) - 1))
    with pytest.raises(SpecError, match=r"evaluate.averages: the traces of 1 trajectory .* allowed: all"):
        room.check(tmp_path, [one, one], [spec("bracket")])
    room.check(tmp_path, [asked("all")], [spec("all")])
