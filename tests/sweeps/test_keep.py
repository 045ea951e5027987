"""`keep:` in a study: what is asked later of the same trainings is replayed, and the plan says so."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from trained import Stop, done, stop_at

from analysis.run_folder.records import load
from analysis.run_folder.run_files import BadRun
from analysis.run_folder.schema import MEASURED
from sweeps import cli, run_folder, trace, trajectory
from sweeps.blocks import SpecError
from sweeps.cells import cells
from sweeps.expected import as_json
from sweeps.run import why_trained
from sweeps.spec import Spec, parse_spec
from sweeps.training import Trainer
from sweeps.work import work

NONE = {"scheme": "none"}


def study(name: str, averaging: Any, **changes: Any) -> Spec:
    spec = {"study": name, "workloads": "tinywork:Tiny", "seeds": [0, 1], "evaluate": {"every": 10}}
    return parse_spec({**spec, "averaging": averaging, **changes})


LATER = [{"scheme": "ema", "decay": [0.5, 0.9], "every": 4}, {"scheme": "lawa", "k": 3, "every": 2}]


def test_a_later_question_is_replayed(outside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done(study("first", [NONE], keep={"every": 2}), tmp_path / "run")
    later = study("later", LATER)
    done(later, tmp_path / "alone")
    monkeypatch.setattr(Trainer, "_backward", None)  # to call it is an error
    todo = done(later, tmp_path / "run")
    assert len(todo.trajectories) == 2
    assert all(one.replays == one.trajectory_id != one.name for one in todo.trajectories)
    assert [one["replays"] is not None for one in as_json([later], todo)["trajectories"]] == [True, True]
    here, alone = (load(tmp_path / run, study="later") for run in ("run", "alone"))
    same = [name for name in alone.columns if name not in MEASURED]
    pd.testing.assert_frame_equal(here[same], alone[same], check_exact=True, check_dtype=False)
    assert work([later], tmp_path / "run").trajectories == []


def test_the_plan_says_what_is_replayed_and_why_a_trace_does_not_serve(
    outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    done(study("first", [NONE], keep={"every": 4}, seeds=[0]), run)
    text = "study: later\nworkloads: 'tinywork:Tiny'\nseeds: [{}]\naveraging: {{scheme: ema, decay: 0.9, every: {}}}\n"
    text += "evaluate: {{every: 10}}\n"
    for seeds, every, told in (
        ("0", 4, "1 trajectory to replay"),
        ("0, 1", 8, "1 trajectory to train, 1 to replay"),
        ("0", 3, "is trained again: its trace does not serve, it has not every step at which EMA(decay=0.9, every=3"),
    ):
        (outside / "later.yaml").write_text(text.format(seeds, every))
        cli.main(["plan", "later.yaml", "--out", str(run)], standalone_mode=False)
        assert told in " ".join(capsys.readouterr().out.split())


def test_traces_are_listed_and_freed(outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    (one, _) = done(study("first", [NONE], keep={"every": 0.1}), run).trajectories
    cli.main(["traces", str(run)], standalone_mode=False)
    listed = capsys.readouterr().out
    assert one.name in listed
    assert {"14", "60", "exact"} <= set(listed.split())  # snapshots, and the last step
    cli.main(["traces", str(run), "--drop"], standalone_mode=False)
    assert "MiB freed" in capsys.readouterr().out
    assert not (run / "traces").exists()
    assert work([study("later", LATER, keep={"every": 2})], run).trajectories[0].replays is None
    with pytest.raises(Exception, match="not a run folder; there is no"):
        cli.main(["traces", str(tmp_path)], standalone_mode=False)


def test_a_replay_that_was_begun_is_refused_when_its_trace_is_gone(outside: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done(study("first", [NONE], keep={"every": 2}, seeds=[0]), run)
    later = study("later", LATER, seeds=[0])
    todo = work([later], run)
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    folder = run_folder.trajectory_folder(run, todo.trajectories[0].name)
    with pytest.raises(Stop):
        trajectory.run(todo.trajectories[0], folder, report=stop_at(20))
    assert work([later], run).trajectories == todo.trajectories
    trace.drop(run)
    with pytest.raises(BadRun, match=f"remove trajectories/{folder.name}, whose weights come from it"):
        work([later], run)
    shutil.rmtree(folder)
    (one,) = work([later], run).trajectories
    assert one.replays is None


def test_nothing_is_kept_unless_it_is_asked_for_in_time(outside: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done(study("first", [NONE]), run)
    assert not (run / "traces").exists()
    (line,) = why_trained(work([study("first", [NONE], keep={"every": 2})], run))
    assert line.startswith("keep: no trace of 2 trajectories done already, such as ")
    todo = done(study("first", [NONE, *LATER], keep={"every": 2}), run)
    assert (len(todo.trajectories), len(why_trained(todo))) == (2, 1)  # the same training again, and kept now
    assert why_trained(work([study("first", [NONE, *LATER], keep={"every": 2})], run)) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": {"every": 100}}, "keep.every: 100 steps; allowed: at most the step budget, 60 steps"),
        ({"keep": {"every": 0}}, "keep.every: got 0; allowed: an int ≥ 1 (steps) or a float in"),
        ({"keep": {"steps": 8}}, "keep.steps: unknown key"),
        ({"keep": {"every": 2, "dtype": "fp16"}}, "keep.dtype: got 'fp16' (did you mean 'bf16'?); allowed: bf16"),
        ({"keep": {"dtype": "bf16"}}, "keep.dtype: nothing is kept without `every`; allowed: both"),
    ],
)
def test_what_cannot_be_kept_is_refused(outside: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError) as caught:
        cells(study("first", [NONE], **changes))
    assert message in str(caught.value)
