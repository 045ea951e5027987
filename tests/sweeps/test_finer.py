"""Cells that are done, asked for at more steps or on the test split: a replay records what is missing, no training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from trained import Stop, done, stop_at

from analysis.run_folder import study as study_reader
from analysis.run_folder.records import KEY, load, load_records, load_trials
from analysis.run_folder.schema import MEASURED
from analysis.statistics.device_hours import hours_to_target, sweep_hours
from sweeps import run_folder, trajectory
from sweeps.blocks import SpecError
from sweeps.expected import as_json
from sweeps.run import why_trained
from sweeps.spec import Spec, parse_spec
from sweeps.training import Trainer
from sweeps.work import work

AVERAGING = [{"scheme": "none"}, {"scheme": "lawa", "k": 3, "every": 2}, {"scheme": "ema", "decay": 0.9, "every": 4}]
WORK = """
from tinywork import Tiny

class Split(Tiny):
    splits = ("validation", "test")

    def eval_batches(self, split):
        return super().eval_batches(split)[: 1 if split == "test" else 2]

class Diverging(Split):
    def loss(self, model, batch):
        value = super().loss(model, batch)
        self.calls = getattr(self, "calls", 0) + 1
        return value * float("nan") if self.calls > 32 else value
"""


@pytest.fixture
def run(outside: Path) -> Path:
    (outside / "splitwork.py").write_text(WORK)
    return outside / "run"


def asked(every: int = 20, test: bool = False, **changes: Any) -> Spec:
    spec = {"study": "grid", "workloads": "splitwork:Split", "evaluate": {"every": every, "test": test}}
    return parse_spec({**spec, "averaging": AVERAGING, **changes})


KEEP = {"keep": {"every": 1}}


@pytest.fixture
def untrained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda: monkeypatch.setattr(Trainer, "_backward", None)  # to call it is an error


def stored(run: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in (run / "records").glob("*.parquet")])


def test_more_steps_and_another_split_are_replayed_into_the_same_cells(
    run: Path, tmp_path: Path, untrained: Any
) -> None:
    done(asked(**KEEP), run)
    before = load_records(run)
    done(asked(5, True), tmp_path / "alone")
    untrained()
    steps = []
    for every, test in ((10, False), (10, True), (5, True)):
        (one,) = done(asked(every, test, **KEEP), run).trajectories
        assert one.replays == one.trajectory_id
        steps.append(sorted({*pd.read_parquet(run / "records" / f"{one.name}.parquet")["step"]}))
        assert work([asked(every, test, **KEEP)], run).trajectories == []
    assert steps == [[10, 30, 50], [60], [*range(5, 60, 10)]]
    assert not stored(run).duplicated(KEY).any()  # on disk, and not by the reader's grace
    here, alone = load(run), load(tmp_path / "alone")
    same = [name for name in alone.columns if name not in (*MEASURED, "train_loss")]
    pd.testing.assert_frame_equal(here[same], alone[same], check_exact=True)
    at = ~here["step"].isin(before["step"]) & (here["step"] % 10 != 0)
    assert (here["train_loss"] == alone["train_loss"])[at].all()  # others tell of the steps of the grid they had


def test_clocks_of_several_trials_are_one_series(run: Path) -> None:
    done(asked(**KEEP), run)
    before = load_records(run)
    done(asked(5, **KEEP), run)
    after, trials, cells = load_records(run), load_trials(run), load(run).drop_duplicates("cell_id")
    for name in MEASURED[:3]:
        assert (after.groupby("cell_id")[name].diff().dropna() >= 0).all()
    ends = [one.groupby("cell_id").last() for one in (before, after)]
    assert (ends[0]["train_seconds"] == ends[1]["train_seconds"]).all()  # nothing was trained
    spent = stored(run).merge(before[KEY], on=KEY, how="left", indicator=True)
    parts = spent.groupby(["cell_id", "_merge"], observed=True)["eval_seconds"].max().groupby("cell_id").sum()
    assert ends[1]["eval_seconds"].to_dict() == pytest.approx(parts.to_dict())
    paid = sweep_hours(cells, after, trials).set_index(["way", "part"])["device_hours"]
    assert paid["one trial a trajectory", "training"] * 3600 == pytest.approx(ends[0]["train_seconds"].max())
    steps = pd.DataFrame({"cell_id": ends[1].index, "status": "met", "point": 60.0})
    hours = hours_to_target(cells, after, steps).set_index("cell_id")["device_hours"]
    assert (hours * 3600).to_dict() == pytest.approx((ends[1]["train_seconds"] + ends[1]["average_seconds"]).to_dict())
    assert len(study_reader.read(run).trials) == 2


def test_a_replay_for_more_steps_is_killed_and_resumed(run: Path, tmp_path: Path) -> None:
    done(asked(**KEEP), run)
    done(asked(5), tmp_path / "alone")
    todo = work([asked(5)], run)
    run_folder.write_plan(run, todo.studies, todo.trajectories)
    (one,) = todo.trajectories
    with pytest.raises(Stop):
        trajectory.run(one, run_folder.trajectory_folder(run, one.name), checkpoint_seconds=0, report=stop_at(35))
    assert done(asked(5), run).trajectories == [one]
    columns = [*KEY, "loss", "metric"]
    pd.testing.assert_frame_equal(load(run)[columns], load(tmp_path / "alone")[columns], check_exact=True)


def test_a_training_that_diverged_is_asked_for_more(run: Path) -> None:
    spec = {"workloads": "splitwork:Diverging"}
    done(asked(**KEEP, **spec), run)
    done(asked(5, True, **spec), run)
    rows = load(run)
    assert rows.loc[rows["diverged"], "step"].unique().tolist() == [35, 40]
    assert set(rows["split"]) == {"validation"}
    assert work([asked(5, True, **spec)], run).trajectories == []


def test_the_plan_says_of_each_what_it_does(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done(asked(keep={"every": 2}), run)
    more = [*AVERAGING, {"scheme": "ema", "decay": 0.9, "every": 3}]
    todo = work([asked(10, averaging=more)], run)
    told = json.loads(json.dumps(as_json([asked()], todo)))
    assert told["nothing_to_do"] == [one.name for one in run_folder.started(run)]
    does = {one["does"]: one for one in told["trajectories"]}
    assert (len(does["replay"]["cells"]), does["replay"]["why_not_replayed"]) == (3, None)
    assert len(does["train"]["cells"]) == 1
    assert "takes a snapshot" in does["train"]["why_not_replayed"]
    (line,) = why_trained(todo)
    assert line.startswith(does["train"]["name"])


@pytest.mark.parametrize(
    ("kept", "every", "told"),
    [
        (None, 10, "evaluate.every: .* with 20 steps, the spec says 10 steps, and no trace of their training was kept"),
        (8, 10, "and their trace does not serve, it has not every step at which LAWA"),
        (2, 15, "holds these cells with 20 steps, the spec says 15 steps; allowed"),
        (2, 40, "holds these cells with 20 steps, the spec says 40 steps; allowed"),
    ],
)
def test_what_no_trace_can_answer_is_refused(run: Path, kept: int | None, every: int, told: str) -> None:
    done(asked(**({} if kept is None else {"keep": {"every": kept}})), run)
    with pytest.raises(SpecError, match=told) as caught:
        work([asked(every)], run)
    assert "\n" not in str(caught.value)


def test_cells_of_one_training_keep_one_grid(run: Path) -> None:
    """Else their report would hold averages against a baseline that is evaluated at other steps."""
    done(asked(**KEEP), run)
    other = asked(10, averaging=AVERAGING[:1], study="other")
    with pytest.raises(SpecError, match="as other studies have of it; name these too, with this value"):
        work([other], run)
    (one,) = done([asked(10), other], run).trajectories
    assert one.replays is not None
    for name in ("grid", "other"):  # both pay for the training and for the replay
        read = study_reader.read(run, name)
        assert set(read.trials["name"]) == read.shared == {one.name, one.replays}


def test_what_has_a_trace_is_replayed_on_other_devices(run: Path) -> None:
    done(asked(**KEEP), run)
    later = asked(averaging=[*AVERAGING, {"scheme": "ema", "decay": 0.5, "every": 2}], resources={"cpu": 2})
    (one,) = done(later, run).trajectories
    assert one.replays is not None
    assert set(load(run)["num_devices"]) == {1.0}  # those that the seconds of training are of
    assert work([later], run).trajectories == []
