"""A workload's promises tried by the loop itself: two runs, runs in and out of company, runs interrupted."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.run_folder.records import KEY, read_live, rows_to_table
from analysis.run_folder.schema import MEASURED
from sweeps import trajectory
from sweeps.plan import Trajectory, trajectories
from sweeps.promises import cells_of, fresh_model, hold
from wa.buffers import statistics_modules
from workloads.protocol import load

CELLS: list[dict[str, Any]] = [
    {"scheme": "none"},
    {"scheme": "lawa", "k": 3, "every": 2},
    {"scheme": "ema", "decay": 0.8, "every": 3, "buffers": "average"},
]
RECOMPUTED = {"scheme": "tail", "start": 0.8, "every": 1, "buffers": "recompute"}


class _Stop(Exception):
    """Ends a trajectory as a kill would, in process."""


def by_the_loop(name: str, preset: str, steps: int, folder: Path) -> Iterator[tuple[str, Callable[[], str]]]:
    """(title, what tries it); each rests on those before it."""
    schemes = [*CELLS, RECOMPUTED] if statistics_modules(fresh_model(load(name, preset))) else CELLS
    found = cells_of("sweeps.conformance:shortened", f"{name}@{preset}", steps, schemes)
    (fused,) = trajectories(found, fuse=True)
    alone = {one.cells[0].cell_id: one for one in trajectories(found, fuse=False)}
    by_cell: dict[str, pd.DataFrame] = {}
    together = pd.DataFrame()

    def again() -> str:
        live = alone[found[0].cell_id]
        once = _records(live, folder / "once")
        time.sleep(1.0 - time.time() % 1.0)  # so that a clock read in whole seconds says another
        twice = _records(live, folder / "twice")
        hold(
            once.equals(twice),
            f"two runs of {steps} steps in one process differ{_where(once, twice)}; keep no state between "
            "calls (in the workload, its class or its module), read no clock, and draw from the global random streams",
        )
        by_cell[found[0].cell_id] = once
        return f"two runs of {steps} steps in one process, the same records bit for bit"

    def separately() -> str:
        nonlocal together
        together = _records(fused, folder / "fused")
        for cell in found[1:]:
            by_cell[cell.cell_id] = _records(alone[cell.cell_id], folder / cell.cell_id)
        rows = pd.concat(by_cell.values()).sort_values(KEY).reset_index(drop=True)
        hold(
            together.equals(rows),
            f"{len(found)} cells in one run and in a run each differ{_where(together, rows)}; evaluating must "
            "leave no trace in the model or the workload",
        )
        return f"{len(found)} cells in one run and in a run each, the same records bit for bit"

    def interrupted() -> str:
        every = fused.cells[0].evaluate_every_steps
        stops = [every, 2 * every, 3 * every]
        for stop in stops:
            _run_until(fused, folder / "interrupted", stop)
        rows = _records(fused, folder / "interrupted")
        hold(
            together.equals(rows),
            f"a run interrupted at steps {stops} and one undisturbed differ{_where(together, rows)}; keep all "
            "that changes in the model's parameters and buffers, and make batch s a function of (seed, s)",
        )
        return f"interrupted at steps {', '.join(map(str, stops))} and gone on, the same records bit for bit"

    yield "reproducible", again
    yield "fused", separately
    yield "resumed", interrupted


def _records(one: Trajectory, folder: Path) -> pd.DataFrame:
    """What a run records, the measured seconds apart."""
    trajectory.run(one, folder, checkpoint_seconds=0)
    table = rows_to_table(list(read_live(folder / "records.jsonl"))).to_pandas()
    kept: pd.DataFrame = table.drop(columns=MEASURED).sort_values(KEY).reset_index(drop=True)
    return kept


def _run_until(one: Trajectory, folder: Path, step: int) -> None:
    def report(progress: trajectory.Progress) -> None:
        if progress.step >= step:
            raise _Stop

    with contextlib.suppress(_Stop):
        trajectory.run(one, folder, checkpoint_seconds=0, report=report)


def _where(one: pd.DataFrame, other: pd.DataFrame) -> str:
    both = one.merge(other, on=KEY, how="outer", suffixes=("", "_other"))
    steps = both.loc[~((both["loss"] == both["loss_other"]) & (both["metric"] == both["metric_other"])), "step"]
    return f" from step {steps.min()} on" if len(steps) else ""
