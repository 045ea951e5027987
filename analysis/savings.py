"""What averaging saves in steps: the ratio to a baseline at the target, paired by seed."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import Interval, Statistic, bootstrap_groups

EXACT, AT_LEAST, AT_MOST = "exact", "at least", "at most"
BOTH_MISSED, PENDING = "both missed", "pending"

RULE = (
    "Ratios are paired by seed: steps-to-target of the average over steps-to-target of the baseline with the same "
    "seed. A run that misses the target is counted at its step budget, or at its last step where it stopped before "
    "that: where only the average misses, the ratio is a lower bound (≥); where only the baseline misses, an upper "
    "bound (≤); where both miss there is no ratio, and the pair is counted and shown as such. No seed is dropped."
)


def ratios_by_seed(pairs: pd.DataFrame, steps: pd.DataFrame, hours: pd.DataFrame) -> pd.DataFrame:
    """ratio = steps-to-target of the cell / of its baseline, one row a pair.

    Args: pairs: of `analysis.baselines.pair`. steps: of `analysis.steps_to_target`. hours: of
      `analysis.device_hours.hours_to_target`.
    Returns the pairs that have a target, with
      steps, baseline_steps: counted steps · ratio, bound (``exact``, ``at least``, ``at most``, ``both missed``,
      ``pending``; the last two have no ratio) · ratio_low, ratio_high: the ratio's range as the evaluation grid
      leaves it, exact pairs only · held_ratio, held_bound: of 3 evaluations in a row · device_hours,
      baseline_device_hours, hours_ratio (with the same bound).
    """
    table = pairs.merge(_side(steps, hours, ""), on="cell_id", how="inner")
    table = table.merge(_side(steps, hours, "baseline_"), on="baseline_cell_id", how="inner")
    table["bound"] = _bound(table, "status", "censored")
    table["held_bound"] = _bound(table, "status", "held_censored")
    table["ratio"] = _ratio(table["steps"], table["baseline_steps"], table["bound"])
    table["held_ratio"] = _ratio(table["held_steps"], table["baseline_held_steps"], table["held_bound"])
    table["hours_ratio"] = _ratio(table["device_hours"], table["baseline_device_hours"], table["bound"])
    exact = table["bound"] == EXACT
    with np.errstate(divide="ignore", invalid="ignore"):
        table["ratio_low"] = (table["lower"] / table["baseline_upper"]).where(exact)
        table["ratio_high"] = (table["upper"] / table["baseline_lower"]).where(exact)
    drop = ["lower", "upper", "baseline_lower", "baseline_upper", "status", "baseline_status", "censored"]
    drop += ["baseline_censored", "held_censored", "baseline_held_censored"]
    order = ["versus", "setting", "seed", "cell_id"]
    return table.drop(columns=drop).sort_values(order, kind="stable").reset_index(drop=True)


def ratios(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Over seeds: the arithmetic and the geometric mean of the ratio, with bootstrap 95 % intervals.

    One row a (versus, workload, training, setting). num_pairs counts every pair, also those without a ratio.
    mean, geometric_mean, held_geometric_mean, hours_ratio (geometric): each with _low and _high, null for one
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
    for kind in _KINDS:
        table[f"num_{kind.replace(' ', '_')}"] = _count(by_seed["bound"], kind, group, len(table))
    for bound in ("bound", "held_bound"):
        found = [_count(by_seed[bound], kind, group, len(table)) > 0 for kind in (EXACT, AT_LEAST, AT_MOST)]
        some = np.select([found[1] & found[2], found[1], found[2], found[0]], _OVERALL, "none")
        table[bound] = pd.Series(some, dtype="str")
    for name, (column, statistic) in _MEANS.items():
        values = by_seed[column].to_numpy(dtype=np.float64)
        ends = bootstrap_groups(values, group, len(table), statistic)
        table[[name, f"{name}_low", f"{name}_high"]] = ends.T
    return table[_RATIO_COLUMNS]


_KINDS = [EXACT, AT_LEAST, AT_MOST, BOTH_MISSED, PENDING]
_OVERALL = ["mixed", AT_LEAST, AT_MOST, EXACT]
_MEANS: dict[str, tuple[str, Statistic]] = {
    "mean": ("ratio", "mean"),
    "geometric_mean": ("ratio", "geometric_mean"),
    "held_geometric_mean": ("held_ratio", "geometric_mean"),
    "hours_ratio": ("hours_ratio", "geometric_mean"),
}


def _count(bounds: pd.Series, kind: str, group: NDArray[np.int64], num_groups: int) -> NDArray[np.int64]:
    return np.bincount(group[(bounds == kind).to_numpy()], minlength=num_groups)


_RATIO_COLUMNS = [
    *("versus", "workload", "training", "setting", "num_pairs", "num_exact", "num_at_least", "num_at_most"),
    *("num_both_missed", "num_pending", "mean", "mean_low", "mean_high", "geometric_mean"),
    *("geometric_mean_low", "geometric_mean_high", "median", "bound", "held_geometric_mean"),
    *("held_geometric_mean_low", "held_geometric_mean_high", "held_bound", "hours_ratio", "hours_ratio_low"),
    *("hours_ratio_high", "device_hours", "baseline_device_hours"),
]


def count_bounds(bounds: pd.Series) -> dict[str, int]:
    """How many pairs are of each kind: num_pairs, num_exact, num_at_least, …"""
    count = Counter(bounds)
    return {
        "num_pairs": len(bounds),
        **{f"num_{kind.replace(' ', '_')}": count[kind] for kind in _KINDS},
    }


def overall_bound(bounds: pd.Series) -> str:
    """What a mean over these pairs is: exact, a lower or an upper bound, mixed, or none."""
    kinds = set(bounds) & {EXACT, AT_LEAST, AT_MOST}
    if not kinds:
        return "none"
    if kinds >= {AT_LEAST, AT_MOST}:
        return "mixed"
    return str((kinds - {EXACT} or {EXACT}).pop())


def direction(ratio: Interval, bound: object) -> str | None:
    """Which side of 1 a ratio lies on: ``fewer`` steps, ``more``, ``none`` where its interval covers 1.

    ``undecided`` where it is a bound on the wrong side of what it would show; null without an interval.
    """
    if np.isnan(ratio.low):
        return None
    if ratio.low <= 1 <= ratio.high:
        return "none"
    if ratio.high < 1:
        return "fewer" if bound in (EXACT, AT_MOST) else "undecided"
    return "more" if bound in (EXACT, AT_LEAST) else "undecided"


def misses(bounds: pd.Series) -> str:
    """'the average misses the target in 2 of 3 pairs, the baseline in 0'; empty where neither does."""
    count = Counter(bounds)
    average, baseline = (count[kind] + count[BOTH_MISSED] for kind in (AT_LEAST, AT_MOST))
    if not average + baseline:
        return ""
    return f"the average misses the target in {average} of {len(bounds)} pairs, the baseline in {baseline}"


def sign(bound: object, mixed: str = "about ") -> str:
    """What stands before a ratio that is a bound: ≥, ≤, or `mixed` where its pairs bound it from both sides."""
    return {AT_LEAST: "≥ ", AT_MOST: "≤ ", "mixed": mixed}.get(str(bound), "")


def _side(steps: pd.DataFrame, hours: pd.DataFrame, prefix: str) -> pd.DataFrame:
    names = {"counted_steps": "steps", "held_counted_steps": "held_steps"}
    keep = [*("cell_id", "status", "censored", "held_censored", "lower", "upper"), *names]
    side = steps[keep].merge(hours[["cell_id", "device_hours"]], on="cell_id", how="left")
    return side.rename(columns={name: prefix + names.get(name, name) for name in side.columns})


def _bound(table: pd.DataFrame, status: str, censored: str) -> pd.Series:
    misses = table[censored].astype(bool)
    baseline_misses = table[f"baseline_{censored}"].astype(bool)
    pending = (misses & (table[status] == "unfinished")) | (
        baseline_misses & (table[f"baseline_{status}"] == "unfinished")
    )
    # A run that met the target once and is not trained to its end may yet hold it: its steps are not counted.
    if censored == "held_censored":
        unknown = table["held_steps"].isna() | table["baseline_held_steps"].isna()
        pending = pending | unknown
    kinds = np.select(
        [pending, misses & baseline_misses, misses, baseline_misses],
        [PENDING, BOTH_MISSED, AT_LEAST, AT_MOST],
        EXACT,
    )
    return pd.Series(kinds, index=table.index, dtype="str")


def _ratio(top: pd.Series, bottom: pd.Series, bound: pd.Series) -> pd.Series:
    known = bound.isin([EXACT, AT_LEAST, AT_MOST]) & (bottom > 0) & (top > 0)
    return (top / bottom).where(known).astype(float)
