"""`evaluate: {test: true}`: one record more a cell, of the test split, at the end of training."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from trained import assert_same, run, stop_at

from analysis.run_folder import study
from analysis.run_folder.records import read_live
from analysis.sections import generalization
from analysis.statistics.generalization import metrics_by_cell
from analysis.statistics.pairs import pair, score
from sweeps import run_folder, training, trajectory
from sweeps.attempts import Attempt
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.plan import Trajectory, cost, trajectories
from sweeps.reporter import Begun, Reporter
from sweeps.scribe import Scribe
from sweeps.spec import parse_spec
from sweeps.studies import resolve

TESTED = textwrap.dedent('''
    import numpy as np
    from tinywork import Diverging, Tiny, draw

    class Tested(Tiny):
        splits = ("validation", "test")

        def eval_batches(self, split):
            rng = np.random.default_rng({"validation": 7, "test": 11}[split])
            return [draw(rng, {"validation": 100, "test": 60}[split]) for _ in range(2)]

    class Swapped(Tested):
        """Its validation split is the other's test split."""

        def eval_batches(self, split):
            return super().eval_batches({"validation": "test", "test": "validation"}[split])

    class Diverged(Diverging):
        splits = ("validation", "test")
''')
IDS = ["cell_id", "trajectory_id"]
AVERAGES = [
    {"scheme": "none"},
    {"scheme": "ema", "decay": 0.9, "buffers": ["live", "recompute"]},
    {"scheme": "wsm", "k": 4, "every": 3, "curve": "cosine"},
    {"scheme": "lawa", "k": 3, "every": 15, "until_full": "partial"},
]


@pytest.fixture(autouse=True)
def _tested(outside: Path) -> None:
    (outside / "testedwork.py").write_text(TESTED)


def spec(test: bool = True, workload: str = "testedwork:Tested", **changes: Any) -> dict[str, Any]:
    evaluate = {"every": 20, "test": test}
    return {"study": "t", "workloads": workload, "averaging": AVERAGES, "evaluate": evaluate, **changes}


def one_trajectory(*arguments: Any, **changes: Any) -> Trajectory:
    (one,) = trajectories(cells(parse_spec(spec(*arguments, **changes))), fuse=True)
    return one


def begin(folder: Path) -> None:
    """An attempt that says no more."""
    with Scribe(folder) as scribe:
        Attempt.begin(0, folder.name, "cpu", 1.0, Reporter(scribe.take, Begun()).tell)


def test_every_cell_has_one_record_of_the_test_split_at_the_end(tmp_path: Path) -> None:
    one, without = one_trajectory(), one_trajectory(False)
    assert [cell.cell_id for cell in one.cells] == [cell.cell_id for cell in without.cells]
    found = run(one, tmp_path / "with")
    validation = found[found["split"] == "validation"].reset_index(drop=True)
    assert_same(validation, run(without, tmp_path / "without"))
    test = found[found["split"] == "test"].set_index("cell_id")
    assert set(test.index) == {cell.cell_id for cell in one.cells}
    assert set(test["step"]) == {60}
    assert set(test["examples"]) == {120}
    other = one_trajectory(False, "testedwork:Swapped")
    there = run(other, tmp_path / "swapped").query("step == 60").set_index("cell_id")
    for mine, theirs in zip(one.cells, other.cells, strict=True):
        columns = ["loss", "metric", "examples"]
        assert test.loc[mine.cell_id, columns].tolist() == there.loc[theirs.cell_id, columns].tolist()


def test_the_seconds_of_a_split_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of a cell's turn, its summary and the making of the batches, which five cells share, is a second.
    ticks = iter(range(10**6))
    monkeypatch.setattr(training, "clock_of", lambda device: lambda: float(next(ticks)))
    trajectory.run(one_trajectory(), tmp_path / "a")
    last = [row for row in read_live(tmp_path / "a" / "records.jsonl") if row["step"] == 60]
    raw = {row["split"]: row["eval_seconds"] for row in last if row["cell_id"] == last[0]["cell_id"]}
    assert raw == pytest.approx({"validation": 3 * 2.2, "test": 2.2})


@pytest.mark.parametrize("step", [20, 60])
def test_resuming_does_not_double_it(tmp_path: Path, step: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(one_trajectory(), tmp_path / "a", checkpoint_seconds=0, report=stop_at(step, KeyboardInterrupt))
    resumed = run(one_trajectory(), tmp_path / "a")
    assert_same(resumed, run(one_trajectory(), tmp_path / "b"))


@pytest.mark.parametrize("kept", [1, 3, 6, 8])
def test_a_kill_within_the_last_write_loses_nothing(tmp_path: Path, kept: int) -> None:
    """Ten lines are written at the end, five a split; a kill leaves some of them."""
    undisturbed = run(one_trajectory(), tmp_path / "b")

    with pytest.raises(KeyboardInterrupt):
        run(one_trajectory(), tmp_path / "a", checkpoint_seconds=0, report=stop_at(60, KeyboardInterrupt))
    path = tmp_path / "a" / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) - 10 + kept]) + b'{"cell_id"')
    resumed = run(one_trajectory(), tmp_path / "a")
    assert_same(resumed, undisturbed)


@pytest.mark.parametrize("every", [20, 60])  # it diverges at step 31, so before the last evaluation and at it
def test_a_diverged_run_is_not_tested(every: int, tmp_path: Path) -> None:
    one = one_trajectory(True, "testedwork:Diverged", evaluate={"every": every, "test": True})
    found = run(one, tmp_path / "a")
    assert found["diverged"].iloc[-1]
    assert set(found["split"]) == {"validation"}


@pytest.mark.parametrize("name", ["tinywork:Tiny", "lm"])
def test_a_workload_without_a_test_split_is_bad_input(name: str) -> None:
    with pytest.raises(SpecError, match=rf"evaluate\.test: {name} \(mini\) has no test split") as caught:
        one_trajectory(True, name)
    assert "\n" not in str(caught.value)


def test_a_run_folder_keeps_the_splits_apart(tmp_path: Path) -> None:
    resolved = resolve([parse_spec(spec(seeds=[0, 1], averaging=AVERAGES[:2]))])
    planned = trajectories(resolved[0].cells, fuse=True)
    folder = tmp_path / "run"
    run_folder.write_plan(folder, resolved, planned)
    for one in planned:
        trajectory.run(one, run_folder.trajectory_folder(folder, one.name))
        run_folder.compact(folder, one.name)
    read = study.read(folder)
    assert set(read.records["split"]) == {"validation"}
    assert set(read.test["split"]) == {"test"}
    assert len(read.test) == len(read.cells) == 6
    assert read.cells["evaluate_test"].all()
    best = metrics_by_cell(read.cells, read.records)
    scores = score(read.cells, best, read.cells.assign(ranked_steps=0.0))
    table = generalization.test_metrics(read.cells, read.test, pair(read.cells, scores))
    metric = read.test.set_index("cell_id")["metric"]
    for row in table.to_dict("records"):
        mine = read.cells.loc[read.cells["setting"] == row["setting"], "cell_id"]
        assert row["test_metric"] == pytest.approx(metric[mine].mean())


def test_a_cell_that_was_trained_without_is_not_tested_silently(tmp_path: Path) -> None:
    """Neither in a folder that holds it already nor where another study of the command asks for it without."""
    folder, plain = tmp_path / "run", parse_spec(spec(False))
    resolved = resolve([plain])
    (one,) = trajectories(resolved[0].cells, fuse=True)
    run_folder.write_plan(folder, resolved, [one])
    begin(run_folder.trajectory_folder(folder, one.name))
    asked = parse_spec({**spec(), "study": "u"})
    with pytest.raises(SpecError, match=r"evaluate\.test: .* with false, the spec says true; .*another --out"):
        run_folder.check_compatible(folder, resolve([asked])[0].cells, asked)
    with pytest.raises(SpecError, match=r"evaluate\.test: true here, false in"):
        resolve([plain, asked])


def test_it_costs_one_evaluation_a_cell() -> None:
    with_test, without = cost(one_trajectory()), cost(one_trajectory(False))
    assert with_test.eval_seconds == pytest.approx(without.eval_seconds * 4 / 3)
