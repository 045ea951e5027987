"""Run folders of every kind, written by the product's own writers from curves that are known: nothing is trained.

A folder is a function of its `Odd`, and so is what is true of it: which cells meet their target, which averages are
ahead, what is unfinished.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import oddwork
from record_rows import record

from sweeps.attempts import Attempt
from sweeps.cells import cells as cells_of
from sweeps.identity import Cell
from sweeps.plan import Trajectory, trajectories
from sweeps.reporter import Begun, Reporter
from sweeps.run_folder import compact, trajectory_folder, write_plan, write_trials
from sweeps.scribe import Scribe
from sweeps.spec import parse_spec
from sweeps.studies import Resolved, union
from sweeps.targets import Target

TARGET = 0.5  # of the way from the first metric to the best one
# How a trajectory ends, and how a cell fares in one that ends well.
ENDS = ("done", "waiting", "unfinished", "diverged", "late diverged", "failed")
FATES = ("met", "missed", "nan", "constant", "at once", "inf", "perfect")
Wa = Mapping[str, Any]

NONE: Wa = {"scheme": "none"}
EMAS: Wa = {"scheme": "ema", "horizon": [0.01, 0.04], "every": 1}
GRID: Wa = {"scheme": "lawa", "k": [2, 5], "every": [1, 3]}
LAWA: Wa = {"scheme": "lawa", "horizon": 0.03, "every": 1}
WSM: Wa = {"scheme": "wsm", "k": 5, "every": 2, "curve": "linear"}
TAIL: Wa = {"scheme": "tail", "start": 0.5, "every": 2}


@dataclass(frozen=True)
class Odd:
    """What a folder holds.

    ends, fates: by (workload, seed) and (workload, seed, scheme); each key may be a part of it, from the left; what is
    not told is done, and met. evaluate: share of the step budget. test: a test split too.
    """

    workloads: tuple[str, ...] = ("Error",)
    seeds: tuple[int, ...] = (0, 1, 2)
    averaging: tuple[Wa, ...] = (NONE, EMAS)
    ends: Mapping[tuple[Any, ...], str] = field(default_factory=dict)
    fates: Mapping[tuple[Any, ...], str] = field(default_factory=dict)
    target: bool = True
    evaluate: float = 0.1
    spread: float = 0.02  # of the step at which the target is met, over seeds
    training: Wa = field(default_factory=dict)  # optimizer, schedule, … of the spec
    studies: tuple[str, ...] = ("odd",)
    report: str | None = None
    question: str | None = None
    fuse: bool = True
    compacted: bool = True

    def end(self, workload: str, seed: int) -> str:
        return _known(self.ends, (workload, seed), "done")

    def fate(self, workload: str, seed: int, scheme: str) -> str:
        return _known(self.fates, (workload, seed, scheme), "met")


def _known(table: Mapping[tuple[Any, ...], str], key: tuple[Any, ...], without: str) -> str:
    """The entry whose key fits best; "*" fits anything."""
    fitting = [held for held in table if all(mine in ("*", theirs) for mine, theirs in zip(held, key, strict=False))]
    return table[max(fitting, key=lambda held: sum(one != "*" for one in held))] if fitting else without


def write(run: Path, odd: Odd) -> Path:
    """The folder as `wa run` leaves it."""
    studies = [_resolved(odd, name) for name in odd.studies]
    planned = trajectories(union(studies), odd.fuse)
    run.mkdir(parents=True)
    write_plan(run, studies, planned)
    for one in planned:
        training = one.cells[0].training
        end = odd.end(short(training.workload), training.seed)
        if end != "waiting":
            _train(run, one, odd, end)
    write_trials(run)
    return run


def short(workload: str) -> str:
    """The class of a workload, as an `Odd` names it."""
    name = workload.partition(":")[2]
    return "LONG" if name == oddwork.LONG.__name__ else name


def _resolved(odd: Odd, study: str) -> Resolved:
    names = [f"oddwork:{getattr(oddwork, name).__name__}" for name in odd.workloads]
    raw = {
        "study": study,
        "workloads": names,
        "seeds": list(odd.seeds),
        "averaging": [dict(one) for one in odd.averaging],
        "evaluate": {"every": odd.evaluate},
        "tracking": {"wandb": "disabled"},
        "fuse": odd.fuse,
        **odd.training,
    }
    raw |= {key: value for key, value in (("report", odd.report), ("question", odd.question)) if value}
    spec = parse_spec(raw)
    return Resolved(spec, cells_of(spec), {name: _target(name) if odd.target else None for name in names})


def _target(name: str) -> Target:
    workload = getattr(oddwork, name.partition(":")[2])
    return Target(
        value=value(workload, TARGET),
        metric=workload.metric,
        higher_is_better=workload.higher_is_better,
        preset="mini",
        rule="half of the way",
        seeds=[100, 101, 102],
        values=[value(workload, TARGET)] * 3,
        versions={"torch": "2"},
        date="2026-01-01",
    )


def value(workload: Any, share: float) -> float:
    """The metric after this share of the way: errors fall from 1 to 0, accuracies rise, scores go from −1 to 1."""
    if not workload.higher_is_better:
        return 1 - share
    return 2 * share - 1 if "score" in workload.metric else share


def met_at(odd: Odd, cell: Cell) -> float:
    """The step at which the curve of a cell that meets its target crosses it."""
    half = 0.6 if cell.scheme is None else 0.5
    return half * (1 + odd.spread * (cell.training.seed - 1)) * cell.training.schedule.length_steps


def _train(run: Path, one: Trajectory, odd: Odd, end: str) -> None:
    folder = trajectory_folder(run, one.name)
    status = {"unfinished": "interrupted", "failed": "failed"}.get(end, "done")
    with Scribe(folder) as scribe:
        attempt = Attempt.begin(0, one.trajectory_id, "cpu", 1.0, Reporter(scribe.take, Begun()).tell)
        scribe.recorder.append(_rows(one, odd, end))
        attempt.end(status)
    (folder / "log").write_text("the last words\n", encoding="utf-8")
    if status == "done" and odd.compacted:
        compact(run, one.name)


def _rows(one: Trajectory, odd: Odd, end: str) -> Iterator[dict[str, Any]]:
    length, every = one.length_steps, one.cells[0].evaluate_every_steps
    last = length // 2 if end in ("unfinished", "failed") else length
    broken = {"diverged": 0.3 * length, "late diverged": 0.8 * length}.get(end, math.inf)
    for number, step in enumerate([*range(every, length, every), length], start=1):
        if step > last:
            return
        gone = step >= broken
        for cell in one.cells:
            if cell.scheme is not None and not cell.scheme.exists(step):
                continue
            metric = math.nan if gone else _metric(odd, cell, step)
            averaging = 0.0 if cell.scheme is None else 0.001 * step
            clocks = {"train_seconds": 0.01 * step, "average_seconds": averaging, "eval_seconds": 0.1 * number}
            of = {"trajectory_id": cell.trajectory_id, "loss": metric, "metric": metric, "diverged": gone}
            yield record(step, cell.cell_id, examples=64, **of, **clocks)
        if gone:
            return


def _metric(odd: Odd, cell: Cell, step: int) -> float:
    training, name = cell.training, short(cell.training.workload)
    workload = getattr(oddwork, name)
    scheme = "none" if cell.scheme is None else type(cell.scheme).__name__.lower()
    fate = odd.fate(name, training.seed, scheme)
    share = TARGET * step / met_at(odd, cell)  # TARGET of the way at the crossing, linear
    best = 0.96
    known = {
        "met": value(workload, min(share, best)),
        "missed": value(workload, min(share, 0.9) * 0.5),
        "nan": math.nan,
        "constant": value(workload, 0.2),
        "at once": value(workload, 0.7),
        "inf": math.inf if step % 3 == 0 else value(workload, min(share, best)),
        "perfect": value(workload, min(2 * share, 1.0)),
    }
    return known[fate]
