"""The axis along which a study varies its training: the peak LR, the optimizer, the schedule, its length, …"""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.study import TRAINING, decays_throughout, percent

# What differs between the trainings of a workload along each axis; a set that holds all of it names the axis.
_FOLLOWS = {"length_steps", "warmup_steps", "lr_decay_steps"}
AXES = {
    "lr": {"lr"},
    "length": {"length_fraction", *_FOLLOWS},
    "schedule": {"schedule", "lr_decay", "final_lr", *_FOLLOWS},
    "batch_size": {"batch_size", "step_budget", *_FOLLOWS},
}
TITLES = {
    "lr": "peak LR",
    "length": "length of the schedule, share of the step budget",
    "schedule": "LR schedule",
    "batch_size": "batch size",
    "optimizer": "optimizer",
    "training": "training",
}


def training_axes(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a training of a workload that has two or more, sorted along its axis.

    axis: ``lr``, ``length``, ``schedule``, ``batch_size``, ``optimizer`` (each optimizer once, whatever else goes
    with it), or ``training`` where several of them vary. place: where on the axis, NaN where it has only names.
    name: the same in words. Returns: workload, training, axis, place, name, end_lr (share of the peak LR at the end).
    """
    rows: list[dict[str, Any]] = []
    for workload, part in cells.drop_duplicates("training").groupby("workload", sort=True):
        if len(part) < 2:
            continue
        axis = _axis(part)
        schedules = [name for name in ("schedule", "lr_decay", "final_lr") if part[name].nunique(dropna=False) > 1]
        for row in part.to_dict("records"):
            place, name = _place(axis, row, schedules)
            known = {"workload": workload, "training": row["training"], "axis": axis, "end_lr": end_lr(row)}
            rows.append(known | {"place": place, "name": name})
    columns = ["workload", "training", "axis", "place", "name", "end_lr"]
    table = pd.DataFrame(rows, columns=columns).astype({"training": "int64", "place": "float64", "end_lr": "float64"})
    # Names alone are sorted by how much of the LR is left, most first: constant, to half, to zero.
    order = table.assign(most=-table["end_lr"])
    order = order.sort_values(["workload", "place", "most", "training"], kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def end_lr(row: Any) -> float:
    """The LR at the end of a schedule as a share of its peak: 1 where nothing decays."""
    constant = row["schedule"] == "constant" or row["lr_decay_steps"] == 0
    return 1.0 if constant or pd.isna(row["final_lr"]) else float(row["final_lr"])


def _axis(part: pd.DataFrame) -> str:
    columns = [name for name in [*TRAINING[2:], "batch_size"] if name in part and name != "evaluate_every_steps"]
    varying = {name for name in columns if part[name].nunique(dropna=False) > 1}
    for axis, allowed in AXES.items():
        if varying <= allowed and varying & (allowed - _FOLLOWS - {"step_budget"}):
            return axis
    return "optimizer" if part["optimizer"].nunique() == len(part) else "training"


def _place(axis: str, row: dict[Any, Any], schedules: list[str]) -> tuple[float, str]:
    if axis == "batch_size" and pd.isna(row[axis]):
        own = row["own_batch_size"]
        return (float("nan"), "its own") if pd.isna(own) else (float(own), f"{own:.4g}")
    if axis in ("lr", "batch_size"):
        return float(row[axis]), f"{row[axis]:.4g}"
    if axis == "length":
        return float(row["length_fraction"]), percent(float(row["length_fraction"]))
    if axis == "optimizer":
        return float("nan"), str(row["optimizer"])
    if axis == "schedule":
        return float("nan"), _schedule(row, schedules)
    return float("nan"), str(row["training_label"])


def _schedule(row: dict[Any, Any], varying: list[str]) -> str:
    if end_lr(row) == 1.0:
        return "constant"
    parts = [str(row["schedule"])]
    if "lr_decay" in varying and not decays_throughout(row):
        parts.append(f"LR decay {percent(float(row['lr_decay']))}")
    if "final_lr" in varying:
        parts.append(f"to {percent(float(row['final_lr']))} of the peak")
    return ", ".join(parts)
