"""What a run folder holds at this moment, running or finished, read as it grows and without disturbing who writes it.

Live records are read from where the last look ended; those of a finished trajectory once, then its marker is enough.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.finished import finished
from analysis.live_records import LiveRows, again
from analysis.pairs import fixed_settings
from analysis.records import load_cells, load_plan
from analysis.resampling import Interval, stratified_geometric_mean
from analysis.run_files import broken, read_parquet
from analysis.steps_to_target import NEVER, Crossing, Floats, first_crossing
from analysis.study import describe
from sweeps.plan import Trajectory
from sweeps.progress import ETA_SHARE, Progress
from sweeps.run_folder import read_attempt, read_trajectory, trajectory_folder

STALLED_SECONDS = 60.0  # without a sign of life, or five evaluations' expected time where that is longer
LOG_LINES, LOG_BYTES = 3, 4096  # of a failed trajectory's log
Row = Mapping[str, Any]


@dataclass
class Curve:
    """One cell's validation metric as recorded so far; NaN where it is not finite or training has diverged."""

    cell: Row
    steps: list[int] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)
    best: float | None = None
    met: Crossing = NEVER  # where it first meets its target; NEVER without one

    def add(self, step: int, metric: float | None, diverged: bool) -> None:
        if not self.steps or step > self.steps[-1]:  # a (cell, step) counts once
            self.steps.append(step)
            self.metric.append(math.nan if metric is None or diverged else metric)

    def conclude(self) -> None:
        """Bring `best` and `met` up to date."""
        self._conclude(np.asarray(self.steps, dtype=np.float64), np.asarray(self.metric, dtype=np.float64))

    def end(self, records: pd.DataFrame) -> None:
        """Conclude from all records of the cell and keep the last point alone, so that a big folder stays small."""
        rows = records.drop_duplicates("step").sort_values("step")
        metric = rows["metric"].to_numpy(dtype=np.float64)
        metric = np.where(rows["diverged"].to_numpy(dtype=bool), np.nan, metric)
        self._conclude(rows["step"].to_numpy(dtype=np.float64), metric)
        self.steps, self.metric = rows["step"].tolist()[-1:], metric.tolist()[-1:]

    def _conclude(self, steps: Floats, metric: Floats) -> None:
        finite, higher = metric[np.isfinite(metric)], bool(self.cell["higher_is_better"])
        self.best = float(finite.max() if higher else finite.min()) if len(finite) else None
        if not math.isnan(self.cell["target"]):
            self.met = first_crossing(steps, metric, float(self.cell["target"]), higher)


@dataclass
class Trial:
    """A trajectory of the folder. state: waiting | running | stalled | interrupted | failed | done."""

    folder: Path
    plan: Trajectory
    expected_seconds: float
    curves: dict[str, Curve]
    state: str = "waiting"
    seconds: float = 0.0  # wall seconds of its attempts so far
    age: float | None = None  # seconds since its last record, or since it began
    quiet_seconds: float = 0.0  # since any of its files changed

    def __post_init__(self) -> None:
        self.live = LiveRows(self.folder / "records.jsonl")  # what of it has been read

    @property
    def name(self) -> str:
        return self.plan.name

    @property
    def first(self) -> Row:
        return next(iter(self.curves.values())).cell

    @property
    def step(self) -> int:
        return max((curve.steps[-1] for curve in self.curves.values() if curve.steps), default=0)

    def share(self) -> float:
        return 1.0 if self.state == "done" else min(1.0, self.step / self.plan.length_steps)

    def look(self, now: float) -> None:
        """Take in what has changed on disk since the last look."""
        if self.state == "done":
            return
        try:
            names = {entry.name: entry.stat().st_mtime for entry in self.folder.iterdir()}
        except FileNotFoundError:  # a file was replaced or moved between listing and asking
            return
        attempts = [read_attempt(path) for path in self.folder.glob("attempt-*.json")]
        attempts.sort(key=lambda row: int(row["attempt"]))
        self.seconds = sum(float(row["seconds"]) for row in attempts)
        self._read_live()
        if "done" in names:
            self._read_compacted()
            self.state = "done"
        elif attempts:
            last = attempts[-1]
            began = datetime.fromisoformat(last["started"]).timestamp()
            self.state = str(last["status"])
            self.age = max(0.0, now - max(names.get("records.jsonl", 0.0), began))
            self.quiet_seconds = now - max(when for name, when in names.items() if name != "trajectory.json")
            if self.state == "running":
                if self.quiet_seconds > self.patience():
                    self.state = "stalled"
                else:  # its file tells of its last checkpoint
                    self.seconds += max(0.0, now - began - float(last["seconds"]))

    def patience(self) -> float:
        return max(STALLED_SECONDS, 5 * self.expected_seconds / self.plan.num_evaluations)

    def log_tail(self) -> list[str]:
        try:
            with open(self.folder / "log", "rb") as stream:
                stream.seek(max(0, stream.seek(0, 2) - LOG_BYTES))
                return stream.read().decode(errors="replace").strip().splitlines()[-LOG_LINES:]
        except FileNotFoundError:
            return ["its process died before it could say why"]

    def _read_live(self) -> None:
        try:
            with open(self.live.path, "rb") as stream:
                if stream.seek(0, 2) < self.live.offset:  # another file than before: begun anew
                    self.live = LiveRows(self.live.path)
                    self.curves = {name: Curve(curve.cell) for name, curve in self.curves.items()}
                stream.seek(self.live.offset)
                data = stream.read()
        except FileNotFoundError:  # not begun, or compacted
            return
        except OSError as error:
            raise broken(self.live.path, str(error.strerror), again(self.folder)) from None
        new = self.live.feed(data, growing=True)
        self.live.rows.clear()  # a big folder stays small
        for row in new:
            if row["cell_id"] in self.curves and row["split"] == "validation":
                self.curves[row["cell_id"]].add(row["step"], row["metric"], row["diverged"])
        if new:
            for curve in self.curves.values():
                curve.conclude()

    def _read_compacted(self) -> None:
        path = self.folder.parents[1] / "records" / f"{self.folder.name}.parquet"
        done = finished(self.folder)
        try:
            table, sha256 = read_parquet(path, remedy=again(self.folder))
        except FileNotFoundError:
            promised = done is not None and done.rows is not None
            if promised and not self.live.path.exists() and not path.exists():
                raise broken(path, "missing, though its trajectory is done", again(self.folder)) from None
            return  # done and not compacted yet: its live records have been read
        if done is not None:
            done.check(table, path, again(self.folder), sha256=sha256)
        table = table.select(["cell_id", "split", "step", "metric", "diverged"]).to_pandas()
        for cell_id, rows in table[table["split"] == "validation"].groupby("cell_id", sort=False):
            if str(cell_id) in self.curves:
                self.curves[str(cell_id)].end(rows)


@dataclass
class StatusLine(Progress):
    """The line of `wa run`, of a folder: costs as the plan wrote them down, eta from the trials' own pace."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # expected, by trajectory
    left: float | None = None

    def __post_init__(self) -> None:
        self.by_name = {one.name: one for one in self.trajectories}
        self.expected = dict(self.seconds)
        self.began = self.said = time.monotonic()
        self.live = None  # who watches draws

    def eta_seconds(self) -> float | None:
        return self.left


@dataclass(frozen=True)
class Pairs:
    """Raw weights against one scheme on the same training and seed, at the horizon fixed beforehand.

    ratio: of the points of meeting, average ÷ raw, over the pairs of which both have met: the geometric mean over
    trainings of that over seeds, with its 95 % interval. The other counts say what it leaves out; neither: trained
    to the end, and neither has met.
    """

    workload: str
    scheme: str  # its label
    ratio: Interval
    both: int
    only_average: int
    only_raw: int
    neither: int
    open: int  # not begun, or going on and not met


class RunWatch:
    """A run folder, looked at again and again. Raises: analysis.records.BadRun where it is none."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self.trials: dict[str, Trial] = {}
        self.num_imported = 0
        self._plan_stamp: tuple[int, int] | None = None
        self.look()

    def look(self, now: float | None = None) -> None:
        """Read what is new. now: seconds since the epoch, the clock that file times are compared with."""
        self._read_plan()
        for trial in self.trials.values():
            trial.look(time.time() if now is None else now)

    def _read_plan(self) -> None:
        try:
            stat = (self.run / "plan.json").stat()
        except FileNotFoundError:
            stat = None
        stamp = None if stat is None else (stat.st_mtime_ns, stat.st_size)
        if stamp is not None and stamp == self._plan_stamp:
            return
        cells = describe(load_cells(self.run))
        fixed = fixed_settings(cells).loc[lambda settings: settings["near"], "setting"]
        cells = cells.assign(fixed=cells["setting"].isin(fixed))
        self.plan = load_plan(self.run)
        self.rows: dict[str, Row] = {
            row["cell_id"]: {str(k): v for k, v in row.items()} for row in cells.to_dict("records")
        }
        self.trials, self.num_imported, self._plan_stamp = {}, 0, stamp
        for one in self.plan["trajectories"]:
            folder = trajectory_folder(self.run, one["name"])
            curves = {cell: Curve(self.rows[cell]) for cell in one["cells"] if cell in self.rows}
            try:
                trained = read_trajectory(folder / "trajectory.json")
            except FileNotFoundError:  # another benchmark's logs, which end as they came
                self.num_imported += 1
                continue
            if curves:
                self.trials[trained.name] = Trial(folder, trained, float(one["expected_seconds"] or 0.0), curves)

    def named(self, *states: str) -> list[Trial]:
        """The trials in one of these states, in the plan's order."""
        return [trial for trial in self.trials.values() if trial.state in states]

    @property
    def is_done(self) -> bool:
        return len(self.named("done")) == len(self.trials)

    def eta_seconds(self) -> float | None:
        """Expected time of what is left, times how long trials have taken against theirs, on the slots in use."""
        slots = len(self.named("running"))
        begun = [trial for trial in self.trials.values() if trial.seconds > 0]
        worked = sum(trial.expected_seconds * trial.share() for trial in begun)
        left = [trial.expected_seconds * (1 - trial.share()) for trial in self.trials.values()]
        if self.is_done:
            return 0.0
        if not slots or worked < ETA_SHARE * sum(trial.expected_seconds for trial in self.trials.values()):
            return None
        pace = sum(trial.seconds for trial in begun) / worked
        return pace * max(sum(left) / slots, max(left))

    def status(self, console: Any) -> StatusLine:
        """Counts, eta and best values, as `wa run` says them."""
        done = {trial.name for trial in self.named("done")}
        line = StatusLine(
            console,
            [trial.plan for trial in self.trials.values()],
            num_done_before=self.num_imported,
            running={trial.name for trial in self.named("running")},
            finished=done,
            lost={trial.name for trial in self.named("failed")},
            seconds={trial.name: trial.expected_seconds for trial in self.trials.values()},
            left=self.eta_seconds(),
        )
        for trial in self.trials.values():
            bests = [curve.best for curve in trial.curves.values() if curve.best is not None]
            if bests:
                higher = bool(trial.first["higher_is_better"])
                line.progressed(trial.name, trial.step, max(bests) if higher else min(bests))
        return line

    def pairs(self) -> list[Pairs]:
        """Raw against averages so far, a row a workload and scheme."""
        groups: dict[tuple[str, str], list[_Pair]] = {}
        labels: dict[tuple[str, str], str] = {}
        for together in self._by_training().values():
            raw = next((curve for curve, _ in together if curve.cell["scheme"] == "none"), None)
            if raw is None or math.isnan(raw.cell["target"]):
                continue
            ended = all(is_done for _, is_done in together)
            for curve in chosen([curve for curve, _ in together]):
                key = str(curve.cell["workload"]), str(curve.cell["scheme"])
                labels.setdefault(key, str(curve.cell["scheme_label"]))
                groups.setdefault(key, []).append(
                    _Pair(int(curve.cell["training"]), curve.met.point, raw.met.point, ended)
                )
        return [_pairs(*key, labels[key], found) for key, found in sorted(groups.items())]

    def _by_training(self) -> dict[str, list[tuple[Curve, bool]]]:
        """Curves of one training and seed, also where two trajectories train it, and whether theirs is done."""
        together: dict[str, list[tuple[Curve, bool]]] = {}
        for trial in self.trials.values():
            for curve in trial.curves.values():
                key = str(curve.cell["trajectory_id"])
                together.setdefault(key, []).append((curve, trial.state == "done"))
        return together


def chosen(curves: list[Curve]) -> list[Curve]:
    """Of each scheme the one at the horizon fixed beforehand, where one is near: as in the report."""
    return sorted((curve for curve in curves if curve.cell["fixed"]), key=lambda curve: str(curve.cell["scheme"]))


@dataclass(frozen=True)
class _Pair:
    training: int
    average: float  # where it met the target; NaN where it has not
    raw: float
    ended: bool

    @property
    def have_met(self) -> tuple[bool, bool]:
        return not math.isnan(self.average), not math.isnan(self.raw)


def _pairs(workload: str, scheme: str, label: str, found: list[_Pair]) -> Pairs:
    have = [pair.have_met for pair in found]
    ratios: dict[int, list[float]] = {}
    for pair in found:
        if all(pair.have_met):
            ratios.setdefault(pair.training, []).append(pair.average / pair.raw)
    return Pairs(
        workload,
        label,
        stratified_geometric_mean([np.asarray(each, dtype=np.float64) for each in ratios.values()]),
        both=have.count((True, True)),
        only_average=have.count((True, False)),
        only_raw=have.count((False, True)),
        neither=sum(pair.have_met == (False, False) and pair.ended for pair in found),
        open=sum(pair.have_met == (False, False) and not pair.ended for pair in found),
    )
