"""A run folder that grows as trials would have it, without training."""

from __future__ import annotations

import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from record_rows import record
from rich.console import Console

from sweeps import run_folder
from sweeps.cell_row import cell_to_row
from sweeps.plan import Trajectory
from sweeps.recorder import Recorder
from sweeps.spec import parse_spec
from sweeps.work import work

TARGET = 0.8
AVERAGING = [
    {"scheme": "none"},
    {"scheme": "ema", "horizon": [0.01, 0.1], "every": 1},
    {"scheme": "lawa", "k": 60, "every": 1},
]


def plan_folder(folder: Path, target: float = TARGET, **spec: Any) -> list[Trajectory]:
    """A planned run folder, nothing trained."""
    raw = {"study": "w", "question": "Does it pay?", "workloads": "tinywork:Tiny", "step_budget": 600}
    todo = work([parse_spec({**raw, "averaging": AVERAGING, "evaluate": {"every": 20}, **spec})], folder)
    run_folder.write_plan(folder, todo.studies, todo.trajectories)
    table = pq.read_table(folder / "cells.parquet")
    targets = pa.array([target] * len(table), type=pa.float64())
    place = table.column_names.index("target")
    pq.write_table(table.set_column(place, "target", targets), folder / "cells.parquet")
    return todo.trajectories


class Writer:
    """What a trial does to its folder, without training."""

    def __init__(self, run: Path, one: Trajectory) -> None:
        self.run, self.one = run, one
        self.folder = run_folder.trajectory_folder(run, one.name)
        self.live = self.folder / "records.jsonl"
        kinds = {cell.cell_id: cell_to_row(cell, "w", None, 1, "cpu", 1) for cell in one.cells}
        horizons = {cell: (row["scheme"], row.get("horizon_fraction")) for cell, row in kinds.items()}
        self.raw = next(cell for cell, (scheme, _) in horizons.items() if scheme == "none")
        self.ema = next(c for c, (s, h) in horizons.items() if s == "ema" and h == pytest.approx(0.01))
        self.wide = next(c for c, (s, h) in horizons.items() if s == "ema" and h == pytest.approx(0.1))

    def attempt(self, number: int = 0, status: str = "running", seconds: float = 0.0, ago: float = 0.0) -> None:
        started = datetime.fromtimestamp(time.time() - ago, UTC).isoformat()
        row = {"attempt": number, "status": status, "seconds": seconds, "started": started}
        (self.folder / f"attempt-{number}.json").write_text(json.dumps(row))

    def row(self, cell: str, step: int, metric: float, diverged: bool = False) -> dict[str, Any]:
        return record(step, cell, trajectory_id=self.one.trajectory_id, metric=metric, diverged=diverged)

    def record(self, *points: tuple[str, int, float]) -> None:
        with Recorder(self.live) as recorder:
            recorder.append(self.row(*point) for point in points)

    def finish(self, seconds: float = 1.0) -> None:
        self.attempt(0, "done", seconds)
        with Recorder(self.live) as recorder:
            recorder.finish()
        run_folder.compact(self.run, self.one.name)


def console() -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, width=160, highlight=False, markup=False), out
