"""Run folders made from closed-form learning curves, so that every crossing step and ratio is known."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from analysis import report, sections
from analysis.presentation import figure_files
from analysis.report import Report
from analysis.run_folder.records import CELLS, RECORDS, TRIALS
from analysis.run_folder.schema import FORMAT
from analysis.run_folder.study import Study

BUDGET = 1000
GRID = 20  # evaluated every 2 %


@dataclass(frozen=True)
class Task:
    """One workload: its metric runs from `start` at step 0 to `end` at the end of a full schedule."""

    name: str
    metric: str
    higher: bool
    start: float
    end: float
    target: float | None


LM = Task("lm", "loss", False, 5.0, 1.0, 2.0)  # linear curve: raw meets 2.0 at step 750
VIT = Task("imagenet_vit", "accuracy", True, 0.1, 0.5, 0.4)  # raw meets 0.4 at step 750


@dataclass(frozen=True)
class Average:
    """One averaging setting: reaches at step ratio · s what raw weights reach at step s."""

    scheme: str
    horizon: float  # share of the budget
    ratio: float
    every: int = 2
    first: int = 0  # no record at or before this step


def averages() -> list[Average]:
    made = []
    for horizon, ratio in [(0.005, 0.95), (0.01, 0.9), (0.02, 0.9), (0.04, 0.92), (0.08, 1.02)]:
        made.append(Average("ema", horizon, ratio, first=0))
        made.append(Average("lawa", horizon, ratio + 0.01, first=int(horizon * BUDGET)))
    return made


@dataclass
class Plan:
    """What a run folder is to hold."""

    tasks: list[Task] = field(default_factory=lambda: [LM, VIT])
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    lengths: list[float] = field(default_factory=lambda: [0.5, 0.75, 1.0])
    averages: list[Average] = field(default_factory=averages)
    budget: int = BUDGET
    study: str = "horizon"
    # Share of the metric's range, equal for all cells of a seed and step. Never 0: equal seeds have no interval.
    noise: float = 1e-8
    spread: float = 0.0  # of the ratio over seeds: ratio · (1 + spread · (seed − 1))
    shape: str = "linear"  # linear | bent (fast at first, as real runs)
    seed_shift: float = 0.0  # seed s trains slower by (1 + seed_shift · (s − 1))
    stop: dict[str, int] = field(default_factory=dict)  # trajectory id -> last step recorded (unfinished)
    diverge: dict[str, int] = field(default_factory=dict)  # trajectory id -> step of divergence
    missing: tuple[str, ...] = ()  # trajectory ids without a record
    none: bool = True


def value(task: Task, plan: Plan, length: float, progress: float) -> float:
    """The metric after a share `progress` of a schedule of this length."""
    end = task.end + 0.15 * (1 - length) * (task.start - task.end)
    progress = min(max(progress, 0.0), 1.0)
    done = progress if plan.shape == "linear" else (1 - math.exp(-3 * progress)) / (1 - math.exp(-3))
    return task.start + (end - task.start) * done


def write_run(folder: Path, plan: Plan) -> Path:
    """A finished run folder (but for `stop`, `missing`, `diverge`)."""
    cells, records, trials, trajectories = [], [], [], []
    for task in plan.tasks:
        for length in plan.lengths:
            for seed in plan.seeds:
                trajectory = f"{re.sub(r'[^A-Za-z0-9._-]', 'x', task.name.replace(':', '.'))}-{length}-{seed}"
                settings = [Average("none", math.nan, 1.0)] if plan.none else []
                mine = [_cell(task, plan, length, seed, trajectory, one) for one in settings + plan.averages]
                cells += mine
                trajectories.append(
                    {
                        "trajectory_id": trajectory,
                        "name": trajectory,
                        "cells": [c["cell_id"] for c in mine],
                        "expected_seconds": 9.0,
                    }
                )
                if trajectory in plan.missing:
                    continue
                for one, cell in zip(settings + plan.averages, mine, strict=True):
                    records += _records(task, plan, length, seed, one, cell)
                trials.append(_trial(trajectory, "interrupted" if trajectory in plan.stop else "done"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "records").mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(cells, schema=CELLS), folder / "cells.parquet")
    pq.write_table(pa.Table.from_pylist(records, schema=RECORDS), folder / "records" / "part-0.parquet")
    pq.write_table(pa.Table.from_pylist(trials, schema=TRIALS), folder / "trials.parquet")
    (folder / "spec.yaml").write_text("study: horizon\n")
    (folder / "plan.json").write_text(json.dumps(_plan_json(plan, trajectories, len(cells))))
    return folder


def _cell(task: Task, plan: Plan, length: float, seed: int, trajectory: str, average: Average) -> dict[str, Any]:
    raw, lawa = average.scheme == "none", average.scheme == "lawa"
    horizon = average.horizon * plan.budget
    row = dict.fromkeys(CELLS.names)
    row |= {
        "cell_id": f"{trajectory}-{average.scheme}-{average.horizon}-{average.every}",
        "trajectory_id": trajectory,
        "study": plan.study,
        "studies": [plan.study],
        "workload": task.name,
        "preset": "mini",
        "seed": seed,
        "step_budget": plan.budget,
        "optimizer": "nadamw",
        "lr": 0.01,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "schedule": "cosine",
        "length_steps": int(length * plan.budget),
        "length_fraction": length,
        "warmup_steps": int(0.05 * length * plan.budget),
        "final_lr": 0.0,
        "scheme": average.scheme,
        "k": max(1, round(horizon / average.every)) if lawa else None,
        "every_steps": None if raw else average.every,
        "ema_decay": (horizon - average.every) / (horizon + average.every) if average.scheme == "ema" else None,
        "horizon_steps": None if raw else horizon,
        "horizon_fraction": None if raw else average.horizon,
        "burn_in_steps": None if raw else 0,
        "init": "first" if average.scheme == "ema" else None,
        "until_full": "absent" if lawa else None,
        "buffers": None if raw else "live",
        "evaluate_every_steps": GRID,
        "metric": task.metric,
        "higher_is_better": task.higher,
        "target": task.target,
        "num_devices": 2.0,
        "device": "cpu",
    }
    return row


def _records(task: Task, plan: Plan, length: float, seed: int, average: Average, cell: dict[str, Any]) -> Any:
    end = int(length * plan.budget)
    trajectory = cell["trajectory_id"]
    end = min(plan.stop.get(trajectory, end), end)
    steps = [*range(GRID, end, GRID), end]
    noise = np.random.default_rng([seed, int(100 * length), len(task.name)]).normal(size=plan.budget + 1)
    span = abs(task.start - task.end)
    slow = 1 + plan.seed_shift * (seed - 1)
    rows = []
    for number, step in enumerate(steps, start=1):
        diverged = step >= plan.diverge.get(trajectory, plan.budget + 1)
        if step <= average.first and average.scheme != "none":
            continue
        ratio = average.ratio * (1 + plan.spread * (seed - 1) * (average.scheme != "none"))
        metric = value(task, plan, length, step / (length * plan.budget) / ratio / slow)
        metric += plan.noise * span * noise[step] * (0.4 if average.scheme != "none" else 1.0)
        rows.append(
            {
                "cell_id": cell["cell_id"],
                "trajectory_id": trajectory,
                "step": step,
                "split": "validation",
                "loss": math.nan if diverged else metric,
                "metric": math.nan if diverged else metric,
                "examples": 512,
                "train_seconds": 0.01 * step,
                "average_seconds": 0.0 if average.scheme == "none" else 0.001 * step,
                "eval_seconds": 0.1 * number,
                "diverged": diverged,
                "metrics": [],
            }
        )
        if diverged:
            break
    return rows


def _trial(trajectory: str, status: str) -> dict[str, Any]:
    return {
        "trajectory_id": trajectory,
        "name": trajectory,
        "attempt": 1,
        "host": "node-a",
        "device_name": "a CPU",
        "num_devices": 2.0,
        "versions": json.dumps({"torch": "2.13.0"}),
        "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:00:36+00:00",
        "seconds": 36.0,
        "status": status,
    }


def _plan_json(plan: Plan, trajectories: list[dict[str, Any]], num_cells: int) -> dict[str, Any]:
    targets: dict[str, Any] = {}
    for task in plan.tasks:
        targets[task.name] = None if task.target is None else _target(task)
    study = {
        "study": plan.study,
        "question": "Does averaging reach the target in fewer steps?",
        "fuse": True,
        "seeds": plan.seeds,
        "targets": targets,
    }
    return {
        **study,
        "format": FORMAT,
        "created": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.13.0", "ray": "2.50"},
        "studies": [study],
        "trajectories": trajectories,
        "cells": num_cells,
    }


def _target(task: Task) -> dict[str, Any]:
    return {
        "value": task.target,
        "metric": task.metric,
        "higher_is_better": task.higher,
        "preset": "mini",
        "rule": "median over seeds of the best validation metric of the baseline at schedule length 0.75",
        "seeds": [100, 101, 102],
        "values": [task.target] * 3,
        "versions": {"torch": "2.13.0"},
        "date": "2026-01-01",
    }


@pytest.fixture(scope="session")
def _small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [Average(s, h, r) for s in ("ema", "lawa") for h, r in ((0.01, 0.9), (0.04, 0.95))]
    plan = Plan(lengths=[0.75, 1.0], averages=made, spread=0.02, seeds=[0, 1])
    return write_run(tmp_path_factory.mktemp("report") / "run", plan)


@pytest.fixture(scope="session")
def small_report(_small_run: Path) -> Report:
    """The report of a small run with two schedules, computed once for the tests that only read it."""
    (found,) = report.of_run(_small_run)
    return found


@pytest.fixture(scope="session")
def small(_small_run: Path, small_report: Report) -> Path:
    """Its folder, written once."""
    report.write(_small_run, [small_report])
    return _small_run


def chart_of(made: Report, name: str) -> dict[str, Any] | None:
    """One figure of a report, by its section's name, where making all of them would take seconds."""
    return figure_files.spec(sections.call(sections.named(name).chart, made.known))


MakeRun = Callable[..., Path]


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """make_run(**fields of Plan) -> a new run folder."""
    count = iter(range(1000))

    def make(**fields: Any) -> Path:
        return write_run(tmp_path / f"run{next(count)}", Plan(**fields))

    return make


@pytest.fixture
def tasks() -> dict[str, Task]:
    return {"lm": LM, "vit": VIT}


@pytest.fixture
def average() -> type[Average]:
    return Average


@pytest.fixture
def task() -> type[Task]:
    return Task


@pytest.fixture
def frame_of() -> Callable[..., pd.DataFrame]:
    """frame_of(name=value or list, …) -> DataFrame; scalars are repeated."""

    def make(**columns: Any) -> pd.DataFrame:
        return pd.DataFrame(columns)

    return make


@pytest.fixture
def frames_of() -> Callable[[Study], SimpleNamespace]:
    """frames_of(study) -> every table of its report, as attributes."""
    return lambda study: SimpleNamespace(**Report(study).frames)
