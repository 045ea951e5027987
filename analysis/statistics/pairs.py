"""Any setting against any other, by seed: which baseline an average is measured against, the ratio of steps-to-target
and what bounds it where a run misses, and means over seeds and workloads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from analysis.statistics import resampling
from analysis.statistics.resampling import FEWEST, Interval, Statistic, bootstrap_groups, of_row, with_interval
from analysis.statistics.steps_to_target import grid_sd

EXACT, AT_LEAST, AT_MOST = "exact", "at least", "at most"
BOTH_MISSED, PENDING = "both missed", "pending"

RULE = (
    "A ratio is paired by seed. Where only the average misses the target it is a lower bound (≥), where only the "
    "baseline does an upper bound (≤); where both miss there is none. No seed is dropped."
)


CHOSEN_HORIZON = 0.01  # of the step budget: pre-specified, the paper's finding
NEAR = 1.5  # a horizon within this factor of it stands for it


def score(cells: pd.DataFrame, by_cell: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """One row a raw (scheme ``none``) setting, best first within each workload.

    The order: the smallest median steps-to-target over seeds, missed ones counted at the step budget; where the
    workload has no target, or medians tie, the best median of the best validation metric.
    Args: by_cell: of `generalization.metrics_by_cell`. steps: of `steps_to_target`.
    Returns: workload, training, length_fraction, num_seeds, median_steps, median_best (metric), rank (1 = best).
    """
    raw = cells[cells["scheme"] == "none"].merge(steps[["cell_id", "ranked_steps"]], on="cell_id", how="left")
    raw = raw.merge(by_cell[["cell_id", "best_metric"]], on="cell_id")
    badness = raw["best_metric"].where(~raw["higher_is_better"].astype(bool), -raw["best_metric"])
    table = raw.assign(badness=badness).groupby(["workload", "training"], as_index=False, sort=True).agg(
        length_fraction=("length_fraction", "first"),
        num_seeds=("seed", "nunique"),
        median_steps=("ranked_steps", "median"),
        median_best=("best_metric", "median"),
        badness=("badness", "median"),
    )  # fmt: skip
    table = table.sort_values(["workload", "median_steps", "badness", "training"], kind="stable")
    table["rank"] = table.groupby("workload").cumcount() + 1
    return table.drop(columns="badness").reset_index(drop=True)


def reference_training(cells: pd.DataFrame, scores: pd.DataFrame) -> dict[str, int]:
    """workload -> the training that headline figures show: the best raw one of the longest schedules.

    Chosen by baselines alone, so the choice favours no average; without one, the first of the longest.
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
    versus ``best baseline``: the baseline of rank 1 in `score`; baselines of other schedules take part too.
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


def leading(chosen: pd.DataFrame, scheme: str) -> pd.DataFrame:
    """Of `in_front` the rows of one scheme, the pre-specified one if it was run, else that of most workloads."""
    front = in_front(chosen)
    names = front["scheme"].value_counts()
    return front[front["scheme"] == (scheme if scheme in names or names.empty else names.index[0])]


def same_schedule(table: pd.DataFrame, settings: pd.Series | None = None) -> pd.DataFrame:
    """The rows against the baseline of the same schedule, of these settings if told."""
    mine = table[table["versus"] == "same schedule"]
    return mine if settings is None else mine[mine["setting"].isin(settings)]


def ratios_by_seed(pairs: pd.DataFrame, steps: pd.DataFrame, hours: pd.DataFrame) -> pd.DataFrame:
    """ratio = steps-to-target of the cell / of its baseline, one row a pair that has a target.

    Args: pairs: of `pair`. steps: of `steps_to_target`. hours: of `device_hours.hours_to_target`.
    Adds steps, baseline_steps: counted steps · ratio, bound (``exact``, ``at least``, ``at most``, ``both missed``,
    ``pending``; the last two have no ratio) · ratio_low, ratio_high: the ratio's range as the evaluation grid leaves
    it, exact pairs only · grid_sd: standard deviation of its log over that range · held_ratio, held_bound,
    held_grid_sd: of 3 evaluations in a row · device_hours, baseline_device_hours, hours_ratio (with the same bound).
    """
    known = steps[_OF_STEPS].merge(hours[["cell_id", "device_hours"]], on="cell_id", how="left")
    known = known.rename(columns={"counted_steps": "steps", "held_counted_steps": "held_steps"})
    table = pairs.merge(known, on="cell_id").merge(known.add_prefix("baseline_"), on="baseline_cell_id")
    apart = table["cell_id"] != table["baseline_cell_id"]  # a run against itself has no error
    for of in ("", "held_"):
        table[f"{of}bound"] = _bound(table, of)
        table[f"{of}ratio"] = _ratio(table[f"{of}steps"], table[f"baseline_{of}steps"], table[f"{of}bound"])
        errors = (grid_sd(table[f"{side}{of}lower"], table[f"{side}{of}upper"]) for side in ("", "baseline_"))
        table[f"{of}grid_sd"] = apart * np.hypot(*errors)
    table["hours_ratio"] = _ratio(table["device_hours"], table["baseline_device_hours"], table["bound"])
    exact = table["bound"] == EXACT
    with np.errstate(divide="ignore", invalid="ignore"):
        table["ratio_low"] = (table["lower"] / table["baseline_upper"]).where(exact)
        table["ratio_high"] = (table["upper"] / table["baseline_lower"]).where(exact)
    order = ["versus", "setting", "seed", "cell_id"]
    return table[[*pairs.columns, *_OF_PAIR]].sort_values(order, kind="stable").reset_index(drop=True)


_OF_STEPS = ["cell_id", "censored", "held_censored", "lower", "upper", "held_lower", "held_upper"]
_OF_STEPS += ["counted_steps", "held_counted_steps"]
_OF_PAIR = ["steps", "held_steps", "device_hours", "baseline_steps", "baseline_held_steps", "baseline_device_hours"]
_OF_PAIR += ["bound", "held_bound", "ratio", "held_ratio", "hours_ratio", "ratio_low", "ratio_high"]
_OF_PAIR += ["grid_sd", "held_grid_sd"]


def ratios(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Over seeds: the arithmetic and the geometric mean of the ratio, with bootstrap 95 % intervals.

    One row a (versus, workload, training, setting). num_pairs counts every pair, also those without a ratio.
    mean, geometric_mean, held_geometric_mean, hours_ratio (geometric): each with _low and _high, NaN for one
    ratio alone · median · bound: ``exact``, ``at least`` (some average missed), ``at most`` (some baseline
    missed), ``mixed``, ``none`` (no ratio) · device_hours, baseline_device_hours: means over the pairs.
    """
    if by_seed.empty:
        return pd.DataFrame(columns=_RATIO_COLUMNS)
    groups = by_seed.groupby(["versus", "workload", "training", "setting"], sort=True)
    table = groups.agg(
        num_pairs=("bound", "size"),
        median=("ratio", "median"),
        device_hours=("device_hours", "mean"),
        baseline_device_hours=("baseline_device_hours", "mean"),
    ).reset_index()
    group = np.asarray(groups.ngroup(), dtype=np.int64)
    for kind in (EXACT, AT_LEAST, AT_MOST, BOTH_MISSED, PENDING):
        table[f"num_{kind.replace(' ', '_')}"] = (by_seed["bound"] == kind).groupby(group).sum().to_numpy()
    for bound in ("bound", "held_bound"):
        table[bound] = groups[bound].agg(overall_bound).astype("str").to_numpy()
    for name, (column, statistic) in _MEANS.items():
        values = by_seed[column].to_numpy(dtype=np.float64)
        grid = by_seed["held_grid_sd" if column == "held_ratio" else "grid_sd"].to_numpy(dtype=np.float64)
        ends = bootstrap_groups(values, group, len(table), statistic, grid)
        table[[name, f"{name}_low", f"{name}_high"]] = ends.T
    return table[_RATIO_COLUMNS]


_MEANS: dict[str, tuple[str, Statistic]] = {
    "mean": ("ratio", "mean"),
    "geometric_mean": ("ratio", "geometric_mean"),
    "held_geometric_mean": ("held_ratio", "geometric_mean"),
    "hours_ratio": ("hours_ratio", "geometric_mean"),
}


_RATIO_COLUMNS = [
    *("versus", "workload", "training", "setting", "num_pairs", "num_exact", "num_at_least", "num_at_most"),
    *("num_both_missed", "num_pending", "mean", "mean_low", "mean_high", "geometric_mean"),
    *("geometric_mean_low", "geometric_mean_high", "median", "bound", "held_geometric_mean"),
    *("held_geometric_mean_low", "held_geometric_mean_high", "held_bound", "hours_ratio", "hours_ratio_low"),
    *("hours_ratio_high", "device_hours", "baseline_device_hours"),
]


def overall_bound(bounds: pd.Series) -> str:
    """What a mean over these pairs is: exact, a lower or an upper bound, mixed, or none."""
    kinds = set(bounds) & {EXACT, AT_LEAST, AT_MOST}
    if not kinds:
        return "none"
    if kinds >= {AT_LEAST, AT_MOST}:
        return "mixed"
    return str((kinds - {EXACT} or {EXACT}).pop())


def sign(bound: object, mixed: str = "about ") -> str:
    """What stands before a ratio that is a bound: ≥, ≤, or `mixed` where its pairs bound it from both sides."""
    return {AT_LEAST: "≥ ", AT_MOST: "≤ ", "mixed": mixed}.get(str(bound), "")


def with_bound(row: Any, name: str = "ratio", form: str = ".2f", bound: str = "bound", mixed: str = "about ") -> str:
    """'≥ 0.90 [0.88, 0.92]', from a row's columns name, name_low, name_high and bound, if there."""
    return sign(row.get(bound), mixed) + with_interval(of_row(row, name), form)


def _bound(table: pd.DataFrame, of: str) -> pd.Series:
    """What the ratio of first crossings, or of ``held_`` ones, is; steps that may yet be counted make it pending."""
    misses, baseline_misses = (table[f"{side}{of}censored"].astype(bool) for side in ("", "baseline_"))
    pending = table[[f"{of}steps", f"baseline_{of}steps"]].isna().any(axis=1)
    kinds = [pending, misses & baseline_misses, misses, baseline_misses]
    return pd.Series(np.select(kinds, [PENDING, BOTH_MISSED, AT_LEAST, AT_MOST], EXACT), table.index, dtype="str")


def _ratio(top: pd.Series, bottom: pd.Series, bound: pd.Series) -> pd.Series:
    known = bound.isin([EXACT, AT_LEAST, AT_MOST]) & (bottom > 0) & (top > 0)
    return (top / bottom).where(known).astype(float)


KEYS = ["workload", "seed"]


def steps_ratios(top: pd.DataFrame, bottom: pd.DataFrame, steps: pd.DataFrame, hours: pd.DataFrame) -> pd.DataFrame:
    """steps-to-target of `top` ÷ that of `bottom`, paired by workload and seed; misses count as in RULE.

    Args: top, bottom: rows of `study.describe`, at most one a (workload, seed). steps: of
    `steps_to_target`. hours: of `device_hours.hours_to_target`.
    Returns: workload, seed, value (the log of the ratio; NaN where both miss or one is not finished), bound, grid_sd.
    """
    pairs = top[[*KEYS, "training", "setting", "cell_id"]].merge(
        bottom[[*KEYS, "cell_id"]].rename(columns={"cell_id": "baseline_cell_id"}), on=KEYS
    )
    table = ratios_by_seed(pairs.assign(versus="pair"), steps, hours)
    return table.assign(value=np.log(table["ratio"].astype(float)))[[*KEYS, "value", "bound", "grid_sd"]]


def metric_changes(top: pd.DataFrame, bottom: pd.DataFrame, higher_is_better: Mapping[Any, bool]) -> pd.DataFrame:
    """log(metric of `top` ÷ metric of `bottom`) by workload and seed, negative where `top` is better.

    Args: top, bottom: workload, seed, value (a metric). higher_is_better: by workload. Returns: workload, seed, value;
    NaN where either metric is not above 0, of which a factor says nothing.
    """
    pairs = top[[*KEYS, "value"]].merge(bottom[[*KEYS, "value"]], on=KEYS, suffixes=("", "_other"))
    sign = np.where(pairs["workload"].map(dict(higher_is_better)).astype(bool), -1.0, 1.0)
    mine, other = pairs["value"].astype(float), pairs["value_other"].astype(float)
    change = sign * np.log((mine / other).where((mine > 0) & (other > 0)))
    return pairs[KEYS].assign(value=change)


def by_workload(pairs: pd.DataFrame) -> pd.DataFrame:
    """workload, value: exp(mean over seeds of value), low, high, num_pairs; one row a workload."""
    rows = []
    for workload, part in pairs.groupby("workload", sort=True):
        grid = part["grid_sd"].to_numpy(dtype=float) if "grid_sd" in part else None
        found = resampling.bootstrap(np.exp(part["value"].to_numpy(dtype=float)), "geometric_mean", grid)
        rows.append((workload, *found, int(part["value"].notna().sum())))
    return pd.DataFrame(rows, columns=["workload", "value", "low", "high", "num_pairs"])


def num_units(pairs: pd.DataFrame) -> int:
    """Behind an interval: workloads, from FEWEST of them on, else the seeds of the workload that has fewest."""
    known = pairs[pairs["value"].notna()]
    seeds = known.groupby("workload")["seed"].nunique()
    return len(seeds) if len(seeds) >= FEWEST else int(seeds.min()) if len(seeds) else 0


def over_workloads(pairs: pd.DataFrame) -> Interval:
    """exp of the mean over workloads of the mean over seeds of value; workloads and the seeds within are resampled.

    With fewer than FEWEST workloads only the seeds are, and the interval speaks of these workloads.
    Args: pairs: workload, seed, value and, of crossings, grid_sd. Returns: Interval; low and high NaN where a workload
    has one seed, or all seeds are equal and there is no grid_sd.
    """
    parts = [part for _, part in pairs[pairs["value"].notna()].groupby("workload", sort=True)]
    ratios = [np.exp(part["value"].to_numpy(dtype=float)) for part in parts]
    grids = [part["grid_sd"].to_numpy(dtype=float) for part in parts if "grid_sd" in part]
    return resampling.stratified_geometric_mean(
        ratios, ("workload", "seed") if len(ratios) >= FEWEST else ("seed",), grids
    )


def bar(row: Any, name: str, without: str) -> str:
    """'~ 0.90', a ratio alone as charts have it; what to say without one."""
    return f"{sign(row['bound'], mixed='~ ')}{row[name]:.2f}" if row[name] == row[name] else without


def mean_ratio(pairs: pd.DataFrame, name: str = "ratio", of: str = "") -> str:
    """'≥ 0.90 [0.88, 0.92]', over workloads and seeds.

    Args: pairs: of `ratios_by_seed`. name: of their ratio. of: ``held_``, where its bound and grid are those.
    """
    values = pairs.assign(value=np.log(pairs[name].astype(float)), grid_sd=pairs[f"{of}grid_sd"])
    return sign(overall_bound(pairs[f"{of}bound"])) + with_interval(over_workloads(values))
