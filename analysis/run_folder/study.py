"""One run folder as tables: cells with their settings named, validation records, trials, plan.

A **setting** is a cell without its seed. It has two halves: its **training** (what changes the trained weights)
and its **averaging**. Cells of one setting are repetitions over seeds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.run_folder import records as schema
from analysis.run_folder.schema import AVERAGING as AVERAGING
from analysis.run_folder.schema import TRAINING as TRAINING


class _SchemeNames(dict[str, str]):
    """A user's scheme, pkg.mod:Name, is called by its class."""

    def __missing__(self, scheme: str) -> str:
        return scheme.rpartition(":")[2]


SCHEME_NAMES = _SchemeNames(none="no averaging", ema="EMA", lawa="LAWA", tail="Tail", wsm="WSM")


@dataclass(frozen=True)
class Study:
    """A study, read. `cells` has the columns of the schema and those that `describe` and `progress` add."""

    plan: dict[str, Any]
    cells: pd.DataFrame
    records: pd.DataFrame
    trials: pd.DataFrame  # of the trajectories that its cells ride on, whichever study they were planned for
    shared: frozenset[str] = frozenset()  # names of those that serve another study of the folder too
    test: pd.DataFrame = field(default_factory=schema.no_records)  # `records` of the test split


def read(run: str | Path, study: str | None = None) -> Study:
    """Reads a run folder, finished or not; of several studies in it all cells, or those of one `study`.

    Raises: analysis.run_folder.records.BadRun where it, or a table, breaks the schema, or it has no such study.
    """
    whole = _whole(run)
    return replace(whole, cells=describe(whole.cells)) if study is None else _part(whole, study, run)


def read_each(run: str | Path) -> list[Study]:
    """The studies of a run folder in the order they came. Raises: analysis.run_folder.records.BadRun."""
    whole = _whole(run)
    return [_part(whole, entry["study"], run) for entry in whole.plan["studies"]]


def _whole(run: str | Path) -> Study:
    cells = schema.load_cells(run)
    records = schema.load_records(run)
    # What is left of one split is sorted by (cell_id, step), as `load_records` sorts by (cell_id, split, step).
    records, test = (_of_cells(records, cells, records["split"] == split) for split in ("validation", "test"))
    trials = schema.load_trials(run)
    plan = schema.load_plan(run)
    if len(plan["studies"]) == 1:
        plan |= plan["studies"][0]  # the head of plan.json does not have all that a study's entry has
    return Study(plan, progress(cells, records, trials, plan), records, trials, test=test)


def _of_cells(records: pd.DataFrame, cells: pd.DataFrame, also: Any = True) -> pd.DataFrame:
    mine = records["cell_id"].isin(cells["cell_id"]) & also
    return records if mine.all() else records[mine].reset_index(drop=True)


def _part(whole: Study, study: str, run: str | Path) -> Study:
    if len(whole.plan["studies"]) == 1 and whole.plan["studies"][0]["study"] == study:
        return replace(whole, cells=describe(whole.cells))
    (own,) = [entry for entry in whole.plan["studies"] if entry["study"] == study] or [{"study": study}]
    cells = whole.cells[schema.has_study(whole.cells, study, run)]
    records, test = (_of_cells(of, cells) for of in (whole.records, whole.test))
    mine = set(cells["cell_id"])
    planned = whole.plan.get("trajectories", [])
    ridden = [one for one in planned if mine.intersection(one["cells"])]
    trained = {*cells["trajectory"], *(one.get("name") for one in ridden)}
    # A trunk of one study and its branches of another share what the trunk has trained.
    trunks = {one["branch_of"] for one in ridden if one.get("branch_of")} - trained
    lent = {one.get("branch_of") for one in planned if one not in ridden} & trained
    trials = whole.trials[whole.trials["name"].isin(trained | trunks)].reset_index(drop=True)
    elsewhere = whole.cells["studies"].map(lambda every: any(name != study for name in every)).astype(bool)
    there = set(whole.cells.loc[elsewhere, "cell_id"])
    others = {one.get("name") for one in planned if there.intersection(one["cells"])}
    shared = {one for one in trained & {*others, *whole.cells.loc[elsewhere, "trajectory"]} if isinstance(one, str)}
    return Study(whole.plan | own, describe(cells), records, trials, frozenset(shared | trunks | lent), test)


def describe(cells: pd.DataFrame) -> pd.DataFrame:
    """Adds what names a setting.

    training, averaging, setting: int64, equal where all their axes are equal, whatever the order of the rows.
    training_label, scheme_label: short and unique within a workload. Sorted by (setting, seed, cell_id).
    """
    cells = cells.assign(workload=_one_preset_a_name(cells))
    cells["training"] = cells.groupby(TRAINING, dropna=False, sort=True).ngroup()
    cells["averaging"] = cells.groupby(AVERAGING, dropna=False, sort=True).ngroup()
    cells["setting"] = cells.groupby(["training", "averaging"], sort=True).ngroup()
    cells["training_label"] = _labels(cells, "training", TRAINING[2:], _training_label)
    cells["scheme_label"] = _labels(cells, "averaging", AVERAGING, _scheme_label)
    return cells.sort_values(["setting", "seed", "cell_id"], kind="stable").reset_index(drop=True)


def progress(cells: pd.DataFrame, records: pd.DataFrame, trials: pd.DataFrame, plan: Mapping[str, Any]) -> pd.DataFrame:
    """Adds how far each cell has come.

    trajectory: the name of the one that trains the cell, the latest where a replay has evaluated it at more steps;
    None while none is planned for it. (One training may run twice, for some cells and for others, under two names.)
    last_step: the last step recorded for that trajectory (an average may have no record there), 0 if none.
    state: ``finished`` (trained to min(length, step budget), or its trial says done), ``diverged``, ``unfinished``.
    """
    planned = plan.get("trajectories", [])
    of_cell = {cell: one.get("name", one["trajectory_id"]) for one in planned for cell in one["cells"]}
    names = cells["cell_id"].map(of_cell).astype("str")
    elsewhere = cells["trajectory_id"].isin({one["trajectory_id"] for one in planned})
    names = names.fillna(cells["trajectory_id"].mask(elsewhere))
    by_cell = records.groupby("cell_id").agg(last=("step", "max"), diverged=("diverged", "any"))
    named = by_cell.groupby(by_cell.index.map(dict(zip(cells["cell_id"], names, strict=True))))
    trajectories = named.agg(last=("last", "max"), diverged=("diverged", "any"))
    last = names.map(trajectories["last"]).fillna(0).astype("int64")
    diverged = names.isin(trajectories.index[trajectories["diverged"].astype(bool)])
    done = names.isin(trials.loc[trials["status"] == "done", "name"])
    end = np.minimum(cells["length_steps"].astype("int64"), cells["step_budget"].astype("int64"))
    state = np.where(diverged, "diverged", np.where(done | (last >= end), "finished", "unfinished"))
    return cells.assign(trajectory=names, last_step=last, state=state)


def versions(trials: pd.DataFrame) -> dict[str, list[str]]:
    """package -> the versions that attempts of `records.load_trials` ran with."""
    seen: dict[str, set[str]] = {}
    for text in set(trials["versions"].dropna()):
        for package, version in json.loads(text).items():
            seen.setdefault(package, set()).add(str(version))
    return {package: sorted(seen[package]) for package in sorted(seen)}


def percent(share: float) -> str:
    """0.0102 -> '1 %', 0.125 -> '12 %': two digits are what a horizon is worth."""
    return f"{100 * share:.2g} %" if share < 0.995 else f"{100 * share:.0f} %"


def counted(number: int, noun: str) -> str:
    """'1 cell', '1,200 cells', '2 trajectories'."""
    several = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{number:,} {noun if number == 1 else several}"


def _one_preset_a_name(cells: pd.DataFrame) -> pd.Series:
    """The workload; with its preset where a study has several presets of it, so that they never mix."""
    several = cells.groupby("workload")["preset"].transform("nunique") > 1
    return cells["workload"].where(~several, cells["workload"] + " (" + cells["preset"] + ")")


def _labels(cells: pd.DataFrame, group: str, axes: list[str], name: Any) -> pd.Series:
    labels: dict[Any, str] = {}
    for workload, part in cells.groupby("workload", sort=True):
        unique = part.drop_duplicates(group).sort_values(group)
        varying = [axis for axis in axes if unique[axis].nunique(dropna=False) > 1]
        names = [name(row, varying) for row in unique.to_dict("records")]
        for label, number in zip(_tell_apart(names, unique, varying), unique[group], strict=True):
            labels[workload, number] = label
    keys = zip(cells["workload"], cells[group], strict=True)
    return pd.Series([labels[key] for key in keys], index=cells.index, dtype="str")


def _tell_apart(names: list[str], unique: pd.DataFrame, varying: list[str]) -> list[str]:
    """Where names are equal, add axes in which their rows differ, the telling ones first, until they are not."""
    names = list(names)
    rows = unique.to_dict("records")
    for name in sorted({name for name in names if names.count(name) > 1}):
        places = [place for place, other in enumerate(names) if other == name]
        differ = [axis for axis in varying if unique.iloc[places][axis].nunique(dropna=False) > 1]
        for axis in sorted(differ, key=lambda axis: _FIRST.index(axis) if axis in _FIRST else len(_FIRST)):
            for place in places:
                names[place] += f", {_told(axis, rows[place][axis])}"
            if len({names[place] for place in places}) == len(places):
                break
    return names


_FIRST = ["every_steps", "until_full", "init", "buffers", "burn_in_steps", "k", "ema_decay"]
_WORDS = {"every_steps": "every", "ema_decay": "γ", "burn_in_steps": "from step", "until_full": "until full"}


def _told(axis: str, value: Any) -> str:
    if axis in ("options", "optimizer_options") and isinstance(value, str):
        return ", ".join(f"{key} {_value(one)}" for key, one in json.loads(value).items())
    return f"{_WORDS.get(axis, axis)} {_value(value)}"


def _value(value: Any) -> str:
    if pd.isna(value):
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _scheme_label(row: dict[str, Any], varying: list[str]) -> str:
    name = SCHEME_NAMES[str(row["scheme"])]
    if row["scheme"] == "none" or pd.isna(row["horizon_fraction"]):
        return name
    if row["scheme"] == "wsm":  # by the LR decay that it emulates, which need not be its horizon
        budget = row["horizon_steps"] / row["horizon_fraction"]
        return f"{name} {row['curve']} {percent(row['k'] * row['every_steps'] / budget)}"
    return f"{name} {percent(float(row['horizon_fraction']))}"


def decays_throughout(row: Mapping[Any, Any]) -> bool:
    """Whether the learning rate decays from the end of the warm-up on, as it does unless `lr_decay` says less."""
    steps = [row[name] for name in ("warmup_steps", "lr_decay_steps", "length_steps")]
    return not any(pd.isna(step) for step in steps) and steps[0] + steps[1] >= steps[2]


def _training_label(row: dict[str, Any], varying: list[str]) -> str:
    parts = [str(row["schedule"])]
    if "length_fraction" in varying:
        parts.append(f"length {percent(float(row['length_fraction']))}")
    for axis in ("lr_decay", "final_lr", "optimizer", "lr", "weight_decay", "beta1", "beta2", "step_budget"):
        if axis in varying and not pd.isna(row[axis]) and not (axis == "lr_decay" and decays_throughout(row)):
            text = percent(row[axis]) if axis in ("lr_decay", "final_lr") else _value(row[axis])
            parts.append({"lr_decay": "LR decay ", "final_lr": "final LR "}.get(axis, f"{axis} ") + text)
    if "batch_size" in varying:
        examples = row["own_batch_size"] if pd.isna(row["batch_size"]) else row["batch_size"]
        parts.append("own batch" if pd.isna(examples) else f"batch {examples}")
    return ", ".join(parts)


# What differs between the trainings of a workload along each axis; a set that holds all of it names the axis.
_FOLLOWS = {"length_steps", "warmup_steps", "lr_decay_steps"}
AXES = {
    "lr": {"lr"},
    "length": {"length_fraction", *_FOLLOWS},
    "schedule": {"schedule", "lr_decay", "final_lr", *_FOLLOWS},
    "batch_size": {"batch_size", "step_budget", *_FOLLOWS},
}
TITLES = {"lr": "peak LR", "length": "length of the schedule, share of the step budget", "schedule": "LR schedule"}
TITLES |= {"batch_size": "batch size", "optimizer": "optimizer", "training": "training"}


def training_axes(cells: pd.DataFrame) -> pd.DataFrame:
    """One row a training of a workload that has two or more, sorted along its axis.

    axis: ``lr``, ``length``, ``schedule``, ``batch_size``, ``optimizer`` (each optimizer once, whatever else goes
    with it), or ``training`` where several of them vary. place: where on the axis, NaN where it has only names.
    name: the same in words. Returns: workload, training, axis, place, name, end_lr (share of the peak LR at the end).
    """
    rows: list[tuple[Any, ...]] = []
    for workload, part in cells.drop_duplicates("training").groupby("workload", sort=True):
        if len(part) < 2:
            continue
        axis = _axis(part)
        schedules = [name for name in ("schedule", "lr_decay", "final_lr") if part[name].nunique(dropna=False) > 1]
        of = part.to_dict("records")
        rows += [(workload, row["training"], axis, *_place(axis, row, schedules), end_lr(row)) for row in of]
    table = pd.DataFrame(rows, columns=["workload", "training", "axis", "place", "name", "end_lr"])
    table = table.astype({"training": "int64", "place": "float64", "end_lr": "float64"})
    # Names alone are sorted by how much of the LR is left, most first: constant, to half, to zero.
    keys = ["workload", "place", "end_lr", "training"]
    order = table.assign(end_lr=-table["end_lr"]).sort_values(keys, kind="stable").index
    return table.loc[order].reset_index(drop=True)


def end_lr(row: Any) -> float:
    """The LR at the end of a schedule as a share of its peak: 1 where nothing decays."""
    if row["schedule"] == "inverse_sqrt" and row["lr_decay_steps"] == 0:
        return math.sqrt(row["warmup_steps"] / row["length_steps"])  # it falls in place of holding
    constant = row["schedule"] == "constant" or row["lr_decay_steps"] == 0
    return 1.0 if constant or pd.isna(row["final_lr"]) else float(row["final_lr"])


def _axis(part: pd.DataFrame) -> str:
    columns = [name for name in TRAINING[2:] if name in part and name != "evaluate_every_steps"]
    varying = {name for name in columns if part[name].nunique(dropna=False) > 1}
    for axis, allowed in AXES.items():
        if varying <= allowed and varying & (allowed - _FOLLOWS - {"step_budget"}):
            return axis
    return "optimizer" if part["optimizer"].nunique() == len(part) else "training"


def _place(axis: str, row: dict[Any, Any], schedules: list[str]) -> tuple[float, str]:
    if axis == "batch_size" and pd.isna(row[axis]):
        own = row["own_batch_size"]
        return (np.nan, "its own") if pd.isna(own) else (float(own), f"{own:.4g}")
    if axis in ("lr", "batch_size"):
        return float(row[axis]), f"{row[axis]:.4g}"
    if axis == "length":
        return float(row["length_fraction"]), percent(float(row["length_fraction"]))
    if axis == "schedule":
        return np.nan, _schedule(row, schedules)
    return np.nan, str(row["optimizer" if axis == "optimizer" else "training_label"])


def _schedule(row: dict[Any, Any], varying: list[str]) -> str:
    if end_lr(row) == 1.0:
        return "constant"
    parts = [str(row["schedule"])]
    if "lr_decay" in varying and not decays_throughout(row):
        parts.append(f"LR decay {percent(float(row['lr_decay']))}")
    if "final_lr" in varying:
        parts.append(f"to {percent(float(row['final_lr']))} of the peak")
    return ", ".join(parts)
