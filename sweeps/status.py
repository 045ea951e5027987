"""The state of a run folder: what waits, runs, is done or has failed, and how far it is; read as it grows.

One computation for the line of `wa run`, for `wa watch` and for its --json. Live records are read from where the last
look ended; those of a finished trajectory once, then its marker is enough.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.run_folder.live_records import LiveRows, again, finished
from analysis.run_folder.records import load_cells, load_plan
from analysis.run_folder.run_files import broken, read_parquet
from analysis.run_folder.study import describe
from analysis.statistics.pairs import fixed_settings
from analysis.statistics.steps_to_target import NEVER, Crossing, first_crossing
from sweeps.attempts import attempts_of
from sweeps.failures import tail
from sweeps.plan import Trajectory
from sweeps.run_folder import read_trajectory, trajectory_folder
from sweeps.wording import duration

STALLED_SECONDS = 60.0  # without a sign of life, or five evaluations' expected time where that is longer
TICK_SECONDS = 2.0  # two changes of a folder this near may bear one time
LOG_LINES = 3  # of a failed trajectory's log
ETA_SHARE = 0.05  # of the work to be done before there is an eta
Row = Mapping[str, Any]


@dataclass
class Curve:
    """One cell's validation metric as recorded so far; NaN where it is not finite or training has diverged."""

    cell: Row
    steps: list[int] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)
    best: float | None = None
    met: Crossing = NEVER  # where it first meets its target; NEVER without one

    @property
    def scheme(self) -> str:
        return str(self.cell["scheme"])

    def add(self, step: int, metric: float | None, diverged: bool) -> None:
        if not self.steps or step > self.steps[-1]:  # a (cell, step) counts once
            self.steps.append(step)
            self.metric.append(math.nan if metric is None or diverged else metric)

    def conclude(self) -> None:
        """Bring `best` and `met` up to date."""
        metric, higher = np.asarray(self.metric, dtype=np.float64), bool(self.cell["higher_is_better"])
        self.best = (max if higher else min)(metric[np.isfinite(metric)].tolist(), default=None)
        if not math.isnan(self.cell["target"]):
            steps = np.asarray(self.steps, dtype=np.float64)
            self.met = first_crossing(steps, metric, float(self.cell["target"]), higher)

    def end(self, records: pd.DataFrame) -> None:
        """Conclude from all records of the cell and keep the last point alone, so that a big folder stays small."""
        rows = records.drop_duplicates("step").sort_values("step")
        self.steps, self.metric = rows["step"].tolist(), rows["metric"].mask(rows["diverged"].astype(bool)).tolist()
        self.conclude()
        self.steps, self.metric = self.steps[-1:], self.metric[-1:]


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
    changed: float = 0.0  # when something was last put into its folder

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

    @property
    def share(self) -> float:
        mine = max(0, self.step - self.plan.first_step) / self.plan.num_steps
        return 1.0 if self.state == "done" else min(1.0, mine)

    @property
    def best(self) -> float | None:
        bests = [curve.best for curve in self.curves.values() if curve.best is not None]
        return (max if self.first["higher_is_better"] else min)(bests, default=None)

    def look(self, now: float) -> None:
        """Take in what has changed on disk since the last look."""
        if self.state == "done":
            return
        try:
            changed = self.folder.stat().st_mtime
            if self.state == "waiting" and changed == self.changed and now - changed > TICK_SECONDS:
                return
            self.changed = changed
            names = {entry.name: entry.stat().st_mtime for entry in self.folder.iterdir()}
        except FileNotFoundError:  # a file was replaced or moved between listing and asking
            return
        attempts = attempts_of(self.folder)
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
            if self.state == "running" and self.quiet_seconds > self.patience():
                self.state = "stalled"
            elif self.state == "running":  # its file tells of its last checkpoint
                self.seconds += max(0.0, now - began - float(last["seconds"]))

    def patience(self) -> float:
        return max(STALLED_SECONDS, 5 * self.expected_seconds / max(1, self.plan.num_evaluations))

    def log_tail(self) -> list[str]:
        return tail(self.folder / "log")[-LOG_LINES:] or ["its process died before it could say why"]

    def as_json(self) -> dict[str, Any]:
        cell = self.first
        return {
            "name": self.name,
            **{key: cell[key] for key in ("workload", "preset", "seed")},
            "training": cell["training_label"],
            "state": self.state,
            "step": self.step,
            "length_steps": self.plan.length_steps,
            "seconds": self.seconds,
            "expected_seconds": self.expected_seconds,
            "seconds_since_last_record": self.age,
            "cells": [
                {
                    "cell_id": name,
                    "scheme": one.scheme,
                    "label": one.cell["scheme_label"],
                    "metric": one.cell["metric_name"],
                    "target": _number(one.cell["target"]),
                    "best": one.best,
                    "met_at_step": _number(one.met.point),
                }
                for name, one in self.curves.items()
            ],
        }

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
        for curve in self.curves.values() if new else ():
            curve.conclude()

    def _read_compacted(self) -> None:
        path, done = self.folder.parents[1] / "records" / f"{self.folder.name}.parquet", finished(self.folder)
        try:
            table, sha256 = read_parquet(path, remedy=again(self.folder))
        except FileNotFoundError:
            if done is not None and not self.live.path.exists() and not path.exists():
                raise broken(path, "missing, though its trajectory is done", again(self.folder)) from None
            return  # done and not compacted yet: its live records have been read
        if done is not None:
            done.check(table, path, again(self.folder), sha256)
        table = table.select(["cell_id", "split", "step", "metric", "diverged"]).to_pandas()
        for cell_id, rows in table[table["split"] == "validation"].groupby("cell_id", sort=False):
            if str(cell_id) in self.curves:
                self.curves[str(cell_id)].end(rows)


@dataclass(frozen=True)
class Pairs:
    """The non-averaged baseline against one scheme on the same training and seed, at the pre-specified horizon.

    ratio: of the points of meeting, average ÷ baseline, over the pairs of which both have met: the geometric mean over
    trainings of that over seeds; no interval, since the rest is to come. The other counts say what it leaves out;
    neither: trained to the end, and neither has met; open: not begun, or going on and not met.
    """

    workload: str
    scheme: str  # its label
    ratio: float | None
    both: int
    only_average: int
    only_baseline: int
    neither: int
    open: int


class Status:
    """A run folder, looked at again and again. Raises: analysis.run_folder.records.BadRun where it is none.

    only: of what is not done, these trajectories alone. `told`: states that its files do not say, by name.
    """

    def __init__(self, run: Path, only: Collection[str] | None = None) -> None:
        self.run, self.only = run, only
        self.told: dict[str, str] = {}
        self.trials: dict[str, Trial] = {}
        self.num_imported = 0
        self._plan_stamp: tuple[int, int] | None = None
        self.look()

    def look(self, now: float | None = None) -> None:
        """Read what is new. now: seconds since the epoch, the clock that file times are compared with."""
        self._read_plan()
        for trial in self.trials.values():
            trial.look(time.time() if now is None else now)
            if trial.state != "done":
                trial.state = self.told.get(trial.name, trial.state)

    def _read_plan(self) -> None:
        stamp = None
        with suppress(FileNotFoundError):
            stat = (self.run / "plan.json").stat()
            stamp = stat.st_mtime_ns, stat.st_size
            if stamp == self._plan_stamp:
                return
        cells = describe(load_cells(self.run))
        settings = fixed_settings(cells)
        cells = cells.assign(prespecified=cells["setting"].isin(settings.loc[settings["near"], "setting"]))
        self.plan = load_plan(self.run)
        rows = {row["cell_id"]: {str(k): v for k, v in row.items()} for row in cells.to_dict("records")}
        self.trials, self.num_imported, self._plan_stamp = {}, 0, stamp
        for one in self.plan["trajectories"]:
            folder = trajectory_folder(self.run, one["name"])
            if self.only is not None and one["name"] not in self.only and not (folder / "done").exists():
                continue
            curves = {cell: Curve(rows[cell]) for cell in one["cells"] if cell in rows}
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

    def share_done(self) -> float:
        """Share of the expected work that is done."""
        expected = sum(trial.expected_seconds for trial in self.trials.values())
        done = sum(trial.expected_seconds * trial.share for trial in self.trials.values())
        return done / expected if expected else float(self.is_done)

    def eta_seconds(self) -> float | None:
        """Expected time of what is left, times how long trials have taken against theirs, on the slots in use."""
        slots, trials = len(self.named("running")), self.trials.values()
        if self.is_done:
            return 0.0
        worked = sum(trial.expected_seconds * trial.share for trial in trials if trial.seconds > 0)
        if not slots or not worked or worked < ETA_SHARE * sum(trial.expected_seconds for trial in trials):
            return None
        left = [trial.expected_seconds * (1 - trial.share) for trial in trials if trial.state != "failed"]
        return sum(trial.seconds for trial in trials) / worked * max(sum(left) / slots, max(left, default=0.0))

    def line(self) -> str:
        """Counts, eta and the best value of each workload."""
        states = Counter(trial.state for trial in self.trials.values())
        parts = [
            f"{states['done'] + self.num_imported} of {len(self.trials) + self.num_imported} trials done",
            f"{states['running']} running",
            f"{states['failed']} failed",
            *(f"{states[state]} {state}" for state in ("waiting", "interrupted", "stalled") if states[state]),
        ]
        if eta := self.eta_seconds():
            parts.append(f"eta {duration(eta)}")
        best: dict[str, Trial] = {}
        for trial in self.trials.values():
            workload, mine = str(trial.first["workload"]), trial.best
            held = best[workload].best if workload in best else None
            if mine is not None and (held is None or (mine > held) == trial.first["higher_is_better"]):
                best[workload] = trial
        parts += [f"best {name} {best[name].first['metric_name']} {best[name].best:.4g}" for name in sorted(best)]
        return " · ".join(parts)

    def pairs(self) -> list[Pairs]:
        """The baseline against averages so far, a row a workload and scheme."""
        together: dict[str, list[tuple[Curve, bool]]] = {}  # of one training and seed, also where two trials train it
        for trial in self.trials.values():
            for curve in trial.curves.values() if trial.plan.recorded is None else ():  # else they are there already
                together.setdefault(str(curve.cell["trajectory_id"]), []).append((curve, trial.state == "done"))
        groups: dict[tuple[str, str], list[tuple[Curve, Curve, bool]]] = {}
        for found in together.values():
            base = next((curve for curve, _ in found if curve.scheme == "none"), None)
            if base is not None and not math.isnan(base.cell["target"]):
                for curve in prespecified(curve for curve, _ in found):
                    key = str(curve.cell["workload"]), curve.scheme
                    groups.setdefault(key, []).append((curve, base, all(is_done for _, is_done in found)))
        return [_pairs(workload, found) for (workload, _), found in sorted(groups.items(), key=lambda item: item[0])]

    def as_json(self) -> dict[str, Any]:
        """What `wa watch --json` prints."""
        return {
            "run": str(self.run),
            "studies": [{key: entry[key] for key in ("study", "question")} for entry in self.plan["studies"]],
            "done": self.is_done,
            "eta_seconds": self.eta_seconds(),
            "imported": self.num_imported,
            "trajectories": [trial.as_json() for trial in self.trials.values()],
            "to_target_so_far": [asdict(row) for row in self.pairs()],
        }


def prespecified(curves: Iterable[Curve]) -> list[Curve]:
    """Of each scheme the one at the pre-specified horizon, where one is near: as in the report."""
    return sorted((curve for curve in curves if curve.cell["prespecified"]), key=lambda curve: curve.scheme)


def _pairs(workload: str, found: list[tuple[Curve, Curve, bool]]) -> Pairs:
    counts, logs = Counter[tuple[bool, bool, bool]](), dict[int, list[float]]()
    for curve, base, ended in found:
        met, base_met = (not math.isnan(one.met.point) for one in (curve, base))
        counts[met, base_met, ended and not met and not base_met] += 1
        if met and base_met:
            logs.setdefault(curve.cell["training"], []).append(math.log(curve.met.point / base.met.point))
    return Pairs(
        workload,
        str(found[0][0].cell["scheme_label"]),
        math.exp(np.mean([np.mean(each) for each in logs.values()])) if logs else None,
        both=counts[True, True, False],
        only_average=counts[True, False, False],
        only_baseline=counts[False, True, False],
        neither=counts[False, False, True],
        open=counts[False, False, False],
    )


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
