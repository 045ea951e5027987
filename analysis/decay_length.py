"""Averaging on one full schedule against raw runs with other LR schedules: shorter ones, or other LR-decay lengths.

Averaging acts like a shorter LR decay: the question is whether one averaged long run traces the envelope of many
raw runs, each annealed to its own length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.generalization import effect
from analysis.records import rows_of_cells
from analysis.resampling import bootstrap
from analysis.steps_to_target import curves, running_best
from analysis.study import TRAINING

LENGTH = ["length_steps", "length_fraction", "warmup_steps", "lr_decay_steps", "evaluate_every_steps"]

RULE = (
    "Against a shorter schedule: the validation metric of an average of the full-length run, read at the step at which "
    "the shorter schedule ends (linear between two evaluations), minus the final metric of the raw run of that "
    "schedule with the same seed. Ahead or behind where the interval leaves out 0, level where it covers it."
)


def median_curves(cells: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Per setting and step: the median of the metric over seeds; a diverged record takes no part.

    Returns: workload, training, setting, step, share (of the step budget), median, num_seeds; steps at which
    every seed of the setting that is not unfinished has a record.
    """
    steps, metric = records["step"].to_numpy(), records["metric"].to_numpy(dtype=np.float64, na_value=np.nan)
    alive, rows = ~records["diverged"].to_numpy(dtype=bool), rows_of_cells(records)
    keys = ["workload", "training", "setting"]
    settings = cells.groupby([*keys, "step_budget"], sort=True)["cell_id"].agg(list).reset_index()
    parts = []
    for cell_ids in settings.pop("cell_id"):
        seeds = [rows[cell_id] for cell_id in cell_ids if cell_id in rows]
        curves_of = [(steps[seed][alive[seed]], metric[seed][alive[seed]]) for seed in seeds]
        parts.append(_median_curve(curves_of))
    result = settings.loc[np.repeat(settings.index, [len(at) for at, *_ in parts])].reset_index(drop=True)
    empty = (np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64))
    result["step"], median, num = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    result["share"] = result["step"] / result.pop("step_budget")
    return result.assign(median=median, num_seeds=num)


def _median_curve(seeds: list[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    """(steps, median, num_seeds) where as many seeds as anywhere have a value. Args: (steps, metric) a seed."""
    if not seeds:
        return np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64)
    at = seeds[0][0]
    same = all(np.array_equal(one, at) and np.isfinite(values).all() for one, values in seeds)
    if same:  # one evaluation grid, as a rule
        return at, np.median([values for _, values in seeds], axis=0), np.full(len(at), len(seeds))
    table = pd.DataFrame({"step": np.concatenate([s for s, _ in seeds])})
    table["metric"] = np.concatenate([values for _, values in seeds])
    found = table.groupby("step", sort=True)["metric"].agg(["median", "count"])
    found = found[found["count"] == found["count"].max()]
    return found.index.to_numpy(), found["median"].to_numpy(), found["count"].to_numpy()


def envelope(cells: pd.DataFrame, medians: pd.DataFrame) -> pd.DataFrame:
    """The best that any raw run of the workload has reached by a step: the running best over median curves.

    Only where a workload has raw runs of two trainings or more. Returns: workload, step, share, envelope.
    """
    raw = cells[cells["scheme"] == "none"].drop_duplicates("setting")[["setting", "higher_is_better"]]
    table = medians.merge(raw, on="setting", how="inner")
    rows = []
    for workload, part in table.groupby("workload", sort=True):
        if part["training"].nunique() < 2:
            continue
        higher = bool(part["higher_is_better"].iloc[0])
        at_step = part.groupby("step", sort=True).agg(
            share=("share", "first"), value=("median", "max" if higher else "min")
        )
        best = running_best(at_step["value"].to_numpy(dtype=float), higher)
        rows.append(
            pd.DataFrame(
                {
                    "workload": workload,
                    "step": at_step.index.to_numpy(),
                    "share": at_step["share"].to_numpy(),
                    "envelope": best,
                }
            )
        )
    names = ["workload", "step", "share", "envelope"]
    return pd.concat(rows, ignore_index=True)[names] if rows else pd.DataFrame(columns=names)


def against_schedules(
    cells: pd.DataFrame, records: pd.DataFrame, steps: pd.DataFrame, averaged: list[int]
) -> pd.DataFrame:
    """Every raw setting of the workload and the averaged settings given, side by side.

    Only workloads with raw runs of two trainings or more. Returns: workload, training, setting, scheme,
    length_steps, length_fraction, lr_decay, num_seeds, median_steps (to target; missed = step budget),
    num_censored, median_at_end (metric at the last step trained).
    """
    raw = cells[cells["scheme"] == "none"]
    several = raw.groupby("workload")["training"].nunique()
    shown = cells[cells["workload"].isin(several.index[several > 1])]
    shown = shown[(shown["scheme"] == "none") | shown["setting"].isin(averaged)]
    series = curves(records)
    at_end = {
        cell["cell_id"]: series[cell["cell_id"]][1][-1]
        for cell in shown.to_dict("records")
        if cell["cell_id"] in series and cell["state"] == "finished"
    }
    table = shown.assign(at_end=shown["cell_id"].map(at_end).astype(float))
    names_of_steps = ["cell_id", "counted_steps", "ranked_steps", "censored"]
    table = table.merge(steps[names_of_steps], on="cell_id", how="left")
    table["censored"] = table["censored"].fillna(False).astype(bool) & table["counted_steps"].notna()
    keys = ["workload", "training", "setting"]
    names = [*keys, "scheme", "length_steps", "length_fraction", "lr_decay", "num_seeds", "median_steps"]
    result = table.groupby(keys, as_index=False, sort=True).agg(
        scheme=("scheme", "first"),
        length_steps=("length_steps", "first"),
        length_fraction=("length_fraction", "first"),
        lr_decay=("lr_decay", "first"),
        num_seeds=("seed", "nunique"),
        median_steps=("ranked_steps", "median"),
        num_censored=("censored", "sum"),
        median_at_end=("at_end", "median"),
    )
    return result[[*names, "num_censored", "median_at_end"]]


def gap_to_envelope(cells: pd.DataFrame, medians: pd.DataFrame, bound: pd.DataFrame) -> pd.DataFrame:
    """Median metric of every averaged setting minus the envelope, at each step both have.

    Returns: workload, setting, step, share, gap; in units of the metric, positive = better than any raw run by
    then, whatever the metric's direction.
    """
    averages = cells[cells["scheme"] != "none"].drop_duplicates("setting")[["setting", "higher_is_better"]]
    table = medians.merge(averages, on="setting").merge(bound[["workload", "step", "envelope"]])
    sign = np.where(table["higher_is_better"].astype(bool), 1.0, -1.0)
    table["gap"] = sign * (table["median"] - table["envelope"])
    return table[["workload", "setting", "step", "share", "gap"]].reset_index(drop=True)


def against_shorter(
    cells: pd.DataFrame, records: pd.DataFrame, reference: dict[str, int], by_cell: pd.DataFrame
) -> pd.DataFrame:
    """Averages on the full schedule against each raw run whose schedule is shorter, where that schedule ends.

    Args: reference: workload -> the full-length training. by_cell: of `generalization.metrics_by_cell`. Returns one
    row a (setting, shorter schedule): workload, setting, scheme, scheme_label, length_fraction, step (its end),
    num_pairs · difference, with _low and _high, in units of the metric · effect: ``ahead``, ``level``, ``behind``, null
    without an interval. Shorter schedules that differ from the full one in their length alone take part.
    """
    words = {"better": "ahead", "worse": "behind", "none": "level"}
    same = [axis for axis in TRAINING if axis not in LENGTH]
    final = by_cell.set_index("cell_id")["final_metric"]
    alone = cells.drop_duplicates("training").set_index("training")
    rows: list[dict[str, Any]] = []
    series: dict[str, tuple[Any, Any]] = {}
    for workload, full in reference.items():
        mine = cells[cells["workload"] == workload]
        wanted = alone.loc[full, same]
        matching = [one for one in set(mine["training"]) if alone.loc[one, same].equals(wanted)]
        shorter = mine[(mine["scheme"] == "none") & mine["training"].isin(matching)]
        shorter = shorter[shorter["length_steps"] < alone.loc[full, "length_steps"]]
        averages = mine[(mine["training"] == full) & (mine["scheme"] != "none")]
        if shorter.empty or averages.empty:
            continue
        series = series or curves(records)
        for setting, part in averages.groupby("setting", sort=True):
            one = part.iloc[0]
            for _, raw in shorter.groupby("length_steps", sort=True):
                end = int(raw["length_steps"].iloc[0])
                there = {row["seed"]: _at(series.get(row["cell_id"]), end) for row in part.to_dict("records")}
                change = raw["seed"].map(there).astype(float) - raw["cell_id"].map(final)
                found = bootstrap(change.to_numpy(dtype=float))
                row = {"workload": workload, "setting": setting, "scheme": one["scheme"], "step": end}
                row |= {
                    "scheme_label": one["scheme_label"],
                    "length_fraction": raw["length_fraction"].iloc[0],
                }
                row |= {"num_pairs": int(change.notna().sum()), "difference": found.value}
                row |= {"difference_low": found.low, "difference_high": found.high}
                known = effect(found, bool(one["higher_is_better"]))
                rows.append(row | {"effect": None if known is None else words[known]})
    columns = [
        "workload",
        "setting",
        "scheme",
        "scheme_label",
        "length_fraction",
        "step",
        "num_pairs",
        "difference",
    ]
    return pd.DataFrame(rows, columns=[*columns, "difference_low", "difference_high", "effect"])


def _at(curve: tuple[Any, Any] | None, step: int) -> float:
    """The metric at a step, linear between evaluations; NaN before the first and after the last."""
    return np.nan if curve is None else float(np.interp(step, *curve, left=np.nan, right=np.nan))
