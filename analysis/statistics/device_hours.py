"""Device-hours: what a user of a scheme pays to the target, and what the sweep paid. Never mixed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.run_folder.records import rows_of_cells

Floats = NDArray[np.float64]
MARGINAL = (
    "wall seconds of training and of this one average up to the target, × devices ÷ 3600, without evaluation; of a run "
    "that misses, of all it trained."
)
TOTAL = "wall seconds of every attempt, start-up and evaluation included; steps that several trainings share once."


def hours_to_target(cells: pd.DataFrame, records: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """device_hours = (train_seconds + average_seconds at the interpolated step) × num_devices / 3600.

    Linear between records and from 0 at step 0; a missed cell pays what its last record says.
    Returns: cell_id, device_hours, one row a row of `steps`; NaN without records or while unfinished.
    """
    devices = dict(zip(cells["cell_id"], cells["num_devices"], strict=True))
    paid_of = clocks(records)
    known = (steps["status"] != "unfinished") & steps["cell_id"].isin(list(paid_of))
    hours = [
        float(hours_at(paid_of[cell_id], point, devices[cell_id])) if is_known else np.nan
        for cell_id, point, is_known in zip(steps["cell_id"], steps["point"], known, strict=True)
    ]
    return pd.DataFrame({"cell_id": steps["cell_id"], "device_hours": np.array(hours, dtype=float)})


def clocks(records: pd.DataFrame) -> dict[str, tuple[Floats, Floats]]:
    """cell_id -> (steps, seconds of training and of this average), from 0 at step 0."""
    steps = records["step"].to_numpy(dtype=np.float64)
    seconds = (records["train_seconds"] + records["average_seconds"]).to_numpy(dtype=np.float64)
    rows = rows_of_cells(records).items()
    return {cell_id: (np.append(0.0, steps[mine]), np.append(0.0, seconds[mine])) for cell_id, mine in rows}


def hours_at(clock: tuple[Floats, Floats], steps: Any, num_devices: float) -> Any:
    """Device-hours up to these steps, linear between records; of NaN, a miss, all there are. Shape of `steps`."""
    at, seconds = clock
    return np.interp(np.where(np.isnan(steps), at[-1], steps), at, seconds) * float(num_devices) / 3600


def sweep_hours(cells: pd.DataFrame, records: pd.DataFrame, trials: pd.DataFrame) -> pd.DataFrame:
    """What the sweep paid, in device-hours, by part.

    Rows (way, part): ``paid`` (wall time of all trials: part ``all``), ``one trial a trajectory`` and ``one trial
    a cell`` (parts ``training``, ``averaging``, ``evaluation``: sums over the last record of each cell; training
    counts once a trajectory, or once a cell; NaN: unknown, of imported weights). Returns: way, part, device_hours.
    """
    by_cell = records.groupby("cell_id", as_index=False, sort=True)
    last = by_cell[["trajectory_id", *_SECONDS]].last()
    last["eval_seconds"] = by_cell["eval_seconds"].max()["eval_seconds"]  # a bracket's last are of steps in between
    last = last.merge(cells[["cell_id", "num_devices"]], on="cell_id")
    hours = last[_SECONDS].mul(last["num_devices"], axis=0) / 3600
    once = hours["train_seconds"].groupby(last["trajectory_id"]).max().sum(min_count=1)
    each = hours["train_seconds"].sum(min_count=1)
    both = [("averaging", float(hours["average_seconds"].sum())), ("evaluation", float(hours["eval_seconds"].sum()))]
    rows = [("paid", "all", paid(trials))]
    for way, training in (("one trial a trajectory", once), ("one trial a cell", each)):
        rows += [(way, part, number) for part, number in (("training", float(training)), *both)]
    return pd.DataFrame(rows, columns=["way", "part", "device_hours"])


_SECONDS = ["train_seconds", "average_seconds", "eval_seconds"]


def paid(trials: pd.DataFrame) -> float:
    """Device-hours of all attempts: Σ seconds × devices / 3600."""
    return float((trials["seconds"] * trials["num_devices"]).sum() / 3600)


def unit(cells: pd.DataFrame) -> str:
    """What a device-hour is here: ``GPU-hours`` only where every cell ran on GPUs."""
    devices = set(cells["device"].dropna())
    if devices == {"gpu"}:
        return "GPU-hours"
    return "CPU-core-hours" if devices == {"cpu"} else "device-hours"
