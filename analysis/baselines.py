"""Which raw run an average is measured against: the same schedule's, or the best one of the workload."""

from __future__ import annotations

import numpy as np
import pandas as pd

CHOSEN_HORIZON = 0.01  # of the step budget: fixed beforehand, the paper's finding
NEAR = 1.5  # a horizon within this factor of it stands for it


def score(cells: pd.DataFrame, records: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """One row a raw (scheme ``none``) setting, best first within each workload.

    The order: the smallest median steps-to-target over seeds, missed ones counted at the step budget; where the
    workload has no target, or medians tie, the best median of the best validation metric.
    Returns: workload, training, length_fraction, num_seeds, median_steps, median_best (metric), rank (1 = best).
    """
    raw = cells[cells["scheme"] == "none"].merge(steps[["cell_id", "ranked_steps"]], on="cell_id", how="left")
    sign = np.where(raw["higher_is_better"].astype(bool), 1.0, -1.0)
    records = records[records["cell_id"].isin(raw["cell_id"])]
    finite = records[~records["diverged"].astype(bool) & np.isfinite(records["metric"])]
    extremes = finite.groupby("cell_id")["metric"].agg(["min", "max"])
    best = np.where(sign > 0, raw["cell_id"].map(extremes["max"]), raw["cell_id"].map(extremes["min"]))
    raw = raw.assign(best=best, quality=-sign * best)
    table = raw.groupby(["workload", "training"], as_index=False, sort=True).agg(
        length_fraction=("length_fraction", "first"),
        num_seeds=("seed", "nunique"),
        median_steps=("ranked_steps", "median"),
        median_best=("best", "median"),
        badness=("quality", "median"),
    )
    table = table.sort_values(["workload", "median_steps", "badness", "training"], kind="stable")
    table["rank"] = table.groupby("workload").cumcount() + 1
    return table.drop(columns="badness").reset_index(drop=True)


def reference_training(cells: pd.DataFrame, scores: pd.DataFrame) -> dict[str, int]:
    """workload -> the training that headline figures show: the best raw one of the longest schedules.

    Chosen by raw runs alone, so the choice favours no average; without raw runs, the first of the longest.
    """
    rank = scores.set_index("training")["rank"] if len(scores) else pd.Series(dtype="float64")
    rows = cells.drop_duplicates("training")[["workload", "training", "length_fraction"]]
    rows = rows.assign(rank=rows["training"].map(rank).fillna(len(cells)), length=-rows["length_fraction"])
    rows = rows.sort_values(["workload", "length", "rank", "training"], kind="stable")
    first = rows.groupby("workload", sort=True)["training"].first()
    return {str(workload): int(training) for workload, training in first.items()}


def best_training(scores: pd.DataFrame) -> dict[str, int]:
    """workload -> the training of its best baseline."""
    best = scores[scores["rank"] == 1]
    return {str(w): int(t) for w, t in zip(best["workload"], best["training"], strict=True)}


def pair(cells: pd.DataFrame, scores: pd.DataFrame) -> pd.DataFrame:
    """Each cell with its baselines, by seed.

    versus ``same schedule``: same workload, step budget, optimizer settings and schedule, averages only.
    versus ``best baseline``: the raw setting of rank 1 in `score`; raw runs of other schedules take part too.
    Returns: versus, workload, training, setting, seed, cell_id, baseline_cell_id.
    """
    keep = ["workload", "training", "setting", "seed", "cell_id"]
    raw = cells[cells["scheme"] == "none"].drop_duplicates(["training", "seed"])
    averages = cells.loc[cells["scheme"] != "none", keep]
    partner = raw[["training", "seed", "cell_id"]].rename(columns={"cell_id": "baseline_cell_id"})
    same = averages.merge(partner, on=["training", "seed"], how="inner")
    best = best_training(scores)
    partner = raw[raw["training"].isin(list(best.values()))]
    partner = partner[["workload", "seed", "cell_id"]].rename(columns={"cell_id": "baseline_cell_id"})
    against_best = cells[keep].merge(partner, on=["workload", "seed"], how="inner")
    tables = [same.assign(versus="same schedule"), against_best.assign(versus="best baseline")]
    return pd.concat(tables, ignore_index=True)[["versus", *keep, "baseline_cell_id"]]


def fixed_settings(cells: pd.DataFrame, horizon: float = CHOSEN_HORIZON) -> pd.DataFrame:
    """Per training and scheme the setting whose horizon is nearest to this share of T: the pre-specified one.

    Nearest in the logarithm; among equals the most frequent snapshots. No result of a run enters the choice.
    Returns: workload, training, scheme, setting, scheme_label, horizon_fraction, near (within a factor NEAR).
    """
    rows = cells[(cells["scheme"] != "none") & cells["horizon_fraction"].notna()].drop_duplicates("setting")
    distance = np.abs(np.log(rows["horizon_fraction"].astype(float) / horizon)).round(9)
    rows = rows.assign(distance=distance, near=distance <= np.log(NEAR))
    order = ["workload", "training", "scheme", "distance", "every_steps", "setting"]
    columns = ["workload", "training", "scheme", "setting", "scheme_label", "horizon_fraction", "near"]
    first = rows.sort_values(order, kind="stable").groupby(["workload", "training", "scheme"], sort=True).head(1)
    return first[columns].reset_index(drop=True)


def chosen_settings(cells: pd.DataFrame, reference: dict[str, int], horizon: float = CHOSEN_HORIZON) -> pd.DataFrame:
    """Of `fixed_settings` those of the reference trainings, one row a workload and scheme."""
    rows = fixed_settings(cells, horizon)
    mine = rows[rows["training"] == rows["workload"].map(reference)]
    return mine.drop(columns="training").reset_index(drop=True)


def in_front(chosen: pd.DataFrame) -> pd.DataFrame:
    """Of `chosen_settings`, what figures and sentences show first: the near ones; all where none is near."""
    return chosen[chosen["near"]] if chosen["near"].any() else chosen
