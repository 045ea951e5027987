"""The saving curve: the steps ratio at every target level, from easy to the baseline's best.

Cosine decay and averaging do the same job, so the ratio depends on how tight the target is: one ratio at one
target is half an answer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import bootstrap_columns
from analysis.steps_to_target import curves, first_crossings, running_best

Floats = NDArray[np.float64]
Series = dict[str, tuple[Floats, Floats]]

SHARES: Floats = np.round(np.arange(0.10, 1.0001, 0.025), 3)

RULE = (
    "Level q is the metric that the baseline, its running best at the median over seeds, has reached after a share "
    "q of its training. At each level, for each seed, the steps of the average are divided by the baseline's; the "
    "curve is the geometric mean over seeds, the band its bootstrap 95 % interval, seeds resampled as a whole. "
    "Missed levels count as at the target: at the step budget, as bounds."
)


def levels(series: list[tuple[Floats, Floats]], length: float, higher: bool, shares: Floats) -> Floats:
    """level(q) = median over seeds of the running best metric at step q · length, linear between evaluations.

    NaN before the first evaluation. Args: series: (steps, metric) a seed. Returns: shape of `shares`.
    """
    found = [
        np.interp(shares * length, steps, running_best(metric, higher), left=np.nan, right=np.nan)
        for steps, metric in series
        if len(steps)
    ]
    if not found:
        return np.full(len(shares), np.nan)
    stacked = np.stack(found)
    median = np.full(len(shares), np.nan)
    known = ~np.isnan(stacked).all(axis=0)
    median[known] = np.nanmedian(stacked[:, known], axis=0)
    return median


def saving_curve(
    cells: pd.DataFrame, records: pd.DataFrame, pairs: pd.DataFrame, shares: Floats = SHARES
) -> pd.DataFrame:
    """ratio(q) = geometric mean over seeds of steps(level q) of the average / of the baseline.

    Args: cells: of `analysis.study.progress`; unfinished ones take no part. pairs: of `analysis.baselines.pair`.
    Returns one row a (versus, setting, share): level (metric), ratio, low, high, num_pairs, num_exact (both reach
    the level), num_at_least (the average does not), num_at_most (the baseline does not), num_both_missed.
    """
    series = curves(records)
    of = {str(cell["cell_id"]): cell for cell in cells.to_dict("records") if cell["state"] != "unfinished"}
    pairs = pairs[pairs["cell_id"].isin(list(of)) & pairs["baseline_cell_id"].isin(list(of))]
    pairs = pairs[pairs["cell_id"] != pairs["baseline_cell_id"]].sort_values(["versus", "setting", "seed"])
    known: dict[Any, Floats] = {}
    tables = []
    keys = ["versus", "workload", "training", "setting"]
    for key, part in pairs.groupby(keys, sort=True):
        first = of[part["baseline_cell_id"].iloc[0]]
        higher = bool(first["higher_is_better"])
        raw_training = int(first["training"])
        if raw_training not in known:
            raw = [c for c in of.values() if c["training"] == raw_training and c["scheme"] == "none"]
            length = float(min(first["length_steps"], first["step_budget"]))
            raw_series = [series[c["cell_id"]] for c in raw if c["cell_id"] in series]
            known[raw_training] = levels(raw_series, length, higher, shares)
        goals = known[raw_training]
        top = _steps(part["cell_id"], series, goals, higher)
        bottom = _steps(part["baseline_cell_id"], series, goals, higher)
        budgets = np.array([float(of[c]["step_budget"]) for c in part["cell_id"]])[:, None]
        table = _columns(top, bottom, budgets, float(first["step_budget"]), shares)
        names = {
            name: np.repeat(np.array([value]), len(shares)) for name, value in zip(keys, key, strict=True)
        }
        tables.append({**names, "level": goals, **table})
    order = ["versus", "workload", "training", "setting", "share", "level", "ratio", "low", "high", *_COUNTS]
    if not tables:
        return pd.DataFrame(columns=order)
    whole = pd.DataFrame({name: np.concatenate([table[name] for table in tables]) for name in order})
    return whole[whole["level"].notna()].reset_index(drop=True)


_COUNTS = ["num_pairs", "num_exact", "num_at_least", "num_at_most", "num_both_missed"]


def _steps(cell_ids: pd.Series, series: Series, goals: Floats, higher: bool) -> Floats:
    none = (np.empty(0), np.empty(0))
    return np.stack([first_crossings(*series.get(cell_id, none), goals, higher) for cell_id in cell_ids])


def _columns(
    top: Floats, bottom: Floats, budgets: Floats, budget: float, shares: Floats
) -> dict[str, NDArray[Any]]:
    misses, baseline_misses = np.isnan(top), np.isnan(bottom)
    both = misses & baseline_misses
    counted, baseline_counted = np.where(misses, budgets, top), np.where(baseline_misses, budget, bottom)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(both | (baseline_counted <= 0), np.nan, np.log(counted / baseline_counted))
    ratio, low, high = np.exp(bootstrap_columns(logs))
    return {
        "share": shares,
        "ratio": ratio,
        "low": low,
        "high": high,
        "num_pairs": np.full(len(shares), len(top)),
        "num_exact": (~misses & ~baseline_misses).sum(axis=0),
        "num_at_least": (misses & ~baseline_misses).sum(axis=0),
        "num_at_most": (~misses & baseline_misses).sum(axis=0),
        "num_both_missed": both.sum(axis=0),
    }
