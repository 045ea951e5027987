"""Averaging on one full schedule against raw runs with other LR schedules: shorter ones, or other LR-decay lengths.

Averaging acts like a shorter LR decay: the question is whether one averaged long run traces the envelope of many
raw runs, each annealed to its own length.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.steps_to_target import curves, running_best


def median_curves(cells: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Per setting and step: the median of the metric over seeds; a diverged record takes no part.

    Returns: workload, training, setting, step, share (of the step budget), median, num_seeds; steps at which
    every seed of the setting that is not unfinished has a record.
    """
    columns = ["cell_id", "workload", "training", "setting", "step_budget"]
    alive = records[~records["diverged"].astype(bool)][["cell_id", "step", "metric"]]
    table = alive.merge(cells[columns], on="cell_id")
    table["share"] = table["step"] / table["step_budget"]
    keys = ["workload", "training", "setting", "step", "share"]
    result = table.groupby(keys, as_index=False, sort=True).agg(
        median=("metric", "median"), num_seeds=("metric", "count")
    )
    most = result.groupby("setting")["num_seeds"].transform("max")
    return result[result["num_seeds"] == most].reset_index(drop=True)


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
    table = table.merge(steps[["cell_id", "counted_steps", "censored"]], on="cell_id", how="left")
    table["censored"] = table["censored"].fillna(False).astype(bool) & table["counted_steps"].notna()
    keys = ["workload", "training", "setting"]
    names = [*keys, "scheme", "length_steps", "length_fraction", "lr_decay", "num_seeds", "median_steps"]
    result = table.groupby(keys, as_index=False, sort=True).agg(
        scheme=("scheme", "first"),
        length_steps=("length_steps", "first"),
        length_fraction=("length_fraction", "first"),
        lr_decay=("lr_decay", "first"),
        num_seeds=("seed", "nunique"),
        median_steps=("counted_steps", "median"),
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
