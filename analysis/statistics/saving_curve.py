"""The saving curve: the ratio in steps and in device-hours at every target level, from easy to the baseline's best.

Cosine decay and averaging do the same job, so the ratio depends on how tight the target is: one ratio at one
target is half an answer. A level is a share of the baseline's training, so it is the same place on the way of every
workload, whatever its metric.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.run_folder.records import rows_of_cells
from analysis.statistics.pairs import AT_LEAST, AT_MOST, EXACT
from analysis.statistics.resampling import (
    FEWEST,
    bootstrap_each,
    draws_of,
    grid_floor,
    interval,
    mean,
    pooled_floor,
    resample_workloads,
    widening,
)
from analysis.statistics.steps_to_target import curves, first_crossings, grid_sd, least_steps, running_best

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Series = tuple[Floats, Floats]

SHARES: Floats = np.round(np.arange(0.10, 1.0001, 0.025), 3)
SAME = "same schedule"
COUNTS = ["num_pairs", "num_exact", "num_at_least", "num_at_most", "num_both_missed"]
ENDS = ["ratio", "low", "high", "hours_ratio", "hours_low", "hours_high"]
COLUMNS = ["versus", "workload", "training", "setting", "share", "level", *ENDS, *COUNTS]
POOLED_ENDS = ["ratio", "low", "high", "seeds_low", "seeds_high"]
POOLED_COLUMNS = [
    *("versus", "scheme", "share", *POOLED_ENDS, *(f"hours_{end}" for end in POOLED_ENDS)),
    *("bound", "num_workloads", *COUNTS),
]


class Curve(NamedTuple):
    """One setting against one kind of baseline. Matrices: (seeds, levels), in pairs of equal seeds.

    level: (levels,), the metric · misses, baseline_misses: the side does not reach the level · log_ratio,
    log_hours_ratio: ln(average / baseline), a miss counted as a bound, NaN where both miss · grid: standard
    deviation of log_ratio that the evaluation grid leaves.
    """

    versus: str
    workload: str
    training: int
    setting: int
    share: Floats
    level: Floats
    misses: Bools
    baseline_misses: Bools
    log_ratio: Floats
    log_hours_ratio: Floats
    grid: Floats

    def counts(self) -> dict[str, NDArray[np.int64]]:
        """How many pairs are of each kind at each level, by the names of COUNTS."""
        top, bottom = self.misses, self.baseline_misses
        kinds = [~top & ~bottom, top & ~bottom, ~top & bottom, top & bottom]
        found = [np.full(len(self.share), len(top)), *(kind.sum(axis=0) for kind in kinds)]
        return dict(zip(COUNTS, found, strict=True))


class Side(NamedTuple):
    """One run at every level: steps (NaN: missed), the same with misses counted, device-hours paid, and the standard
    deviation of ln(steps) that the evaluation grid leaves. Shape (levels,)."""

    steps: Floats
    counted: Floats
    hours: Floats
    grid: Floats


def levels(series: list[Series], length: float, higher: bool, shares: Floats) -> Floats:
    """level(q) = median over seeds of the running best metric at step q · length, linear between evaluations.

    NaN before the first evaluation. Args: series: (steps, metric) a seed. Returns: shape of `shares`.
    """
    found = [
        np.interp(shares * length, steps, running_best(metric, higher), left=np.nan, right=np.nan)
        for steps, metric in series
        if len(steps)
    ]
    stacked = np.stack(found) if found else np.full((1, len(shares)), np.nan)
    median, known = np.full(len(shares), np.nan), ~np.isnan(stacked).all(axis=0)
    median[known] = np.nanmedian(stacked[:, known], axis=0)
    return median


def measure(cells: pd.DataFrame, records: pd.DataFrame, pairs: pd.DataFrame, shares: Floats = SHARES) -> list[Curve]:
    """Both sides of every pair at every level of its baseline, one Curve a (versus, setting); unknown levels left out.

    Args: cells: of `study.progress`; unfinished ones take no part. pairs: of `pairs.pair`.
    """
    series, clocks = curves(records), _clocks(records)
    trained = cells[cells["state"] != "unfinished"]
    of = {str(cell["cell_id"]): cell for cell in trained.to_dict("records")}
    baselines = trained[trained["scheme"] == "none"].groupby("training")["cell_id"].agg(list)
    pairs = pairs[pairs["cell_id"].isin(list(of)) & pairs["baseline_cell_id"].isin(list(of))]
    pairs = pairs[pairs["cell_id"] != pairs["baseline_cell_id"]].sort_values(["versus", "setting", "seed"])
    goals: dict[int, Floats] = {}
    sides: dict[tuple[str, int], Side] = {}
    none = (np.empty(0), np.empty(0))

    def side(cell_id: str, baseline: int) -> Side:
        if (cell_id, baseline) not in sides:
            curve, clock = series.get(cell_id, none), clocks.get(cell_id, none)
            sides[cell_id, baseline] = _side(of[cell_id], curve, clock, goals[baseline])
        return sides[cell_id, baseline]

    found = []
    for key, part in pairs.groupby(["versus", "workload", "training", "setting"], sort=True):
        first = of[part["baseline_cell_id"].iloc[0]]
        baseline = int(first["training"])
        if baseline not in goals:
            length = float(min(first["length_steps"], first["step_budget"]))
            known = [series[cell_id] for cell_id in baselines.get(baseline, []) if cell_id in series]
            goals[baseline] = levels(known, length, bool(first["higher_is_better"]), shares)
        top, bottom = (
            Side(
                *(np.stack(column) for column in zip(*(side(cell_id, baseline) for cell_id in part[name]), strict=True))
            )
            for name in ("cell_id", "baseline_cell_id")
        )
        versus, workload, training, setting = key
        found.append(_curve((str(versus), str(workload), int(str(training)), int(str(setting))), shares,
                            goals[baseline], top, bottom))  # fmt: skip
    return found


def _side(cell: dict[Any, Any], curve: Series, clock: Series, goals: Floats) -> Side:
    steps = first_crossings(*curve, goals, bool(cell["higher_is_better"]))
    at, seconds = clock
    paid = np.where(np.isnan(steps), at[-1] if len(at) else 0.0, steps)
    hours = np.interp(paid, np.append(0.0, at), np.append(0.0, seconds)) * float(cell["num_devices"]) / 3600
    place, known = np.searchsorted(at, steps), ~np.isnan(steps)
    ends = np.append(0.0, at)[place[known]], at[place[known]]
    error = np.zeros(len(steps))
    error[known] = grid_sd(*ends)
    return Side(steps, np.where(known, steps, least_steps(cell)), hours, error)


def _curve(names: tuple[str, str, int, int], shares: Floats, goals: Floats, top: Side, bottom: Side) -> Curve:
    """Sides: matrices (seeds, levels)."""
    k = ~np.isnan(goals)
    misses, other = np.isnan(top.steps)[:, k], np.isnan(bottom.steps)[:, k]
    steps, hours = (
        _log(a[:, k], b[:, k], misses & other) for a, b in ((top.counted, bottom.counted), (top.hours, bottom.hours))
    )
    return Curve(*names, shares[k], goals[k], misses, other, steps, hours, np.hypot(top.grid, bottom.grid)[:, k])


def _clocks(records: pd.DataFrame) -> dict[str, Series]:
    """cell_id -> (steps, seconds of training and of this average)."""
    steps = records["step"].to_numpy(dtype=np.float64)
    seconds = (records["train_seconds"] + records["average_seconds"]).to_numpy(dtype=np.float64)
    return {cell_id: (steps[rows], seconds[rows]) for cell_id, rows in rows_of_cells(records).items()}


def _log(top: Floats, bottom: Floats, unknown: Bools) -> Floats:
    unknown = unknown | ~(top > 0) | ~(bottom > 0)
    return np.log(np.where(unknown, np.nan, top) / np.where(unknown, 1.0, bottom))


def saving_curve(measured: list[Curve]) -> pd.DataFrame:
    """ratio(q) = geometric mean over seeds of steps(level q) of the average / of the baseline.

    Returns one row a (versus, setting, share): workload, training · level (metric) · ratio, low, high · hours_ratio,
    hours_low, hours_high, of device-hours · num_pairs, num_exact (both reach the level), num_at_least (the average
    does not), num_at_most (the baseline does not), num_both_missed.
    """
    grids = [curve.grid for curve in measured]
    ratios = bootstrap_each([curve.log_ratio for curve in measured], scale=1.0, grids=grids)
    hours_ratios = bootstrap_each([curve.log_hours_ratio for curve in measured], scale=1.0, grids=grids)
    tables = [
        {name: np.repeat(np.array([getattr(curve, name)]), len(curve.share)) for name in COLUMNS[:4]}
        | {"share": curve.share, "level": curve.level}
        | dict(zip(ENDS, np.exp([*ratio, *hours]), strict=True))
        | curve.counts()
        for curve, ratio, hours in zip(measured, ratios, hours_ratios, strict=True)
    ]
    if not tables:
        return pd.DataFrame(columns=COLUMNS)
    return pd.DataFrame({name: np.concatenate([table[name] for table in tables]) for name in COLUMNS})


def pooled_curve(measured: list[Curve], chosen: pd.DataFrame) -> pd.DataFrame:
    """ratio(q) = exp(mean over workloads of the mean over seeds of ln ratio(q)), one row a (versus, scheme, share).

    low, high: over workloads and seeds, NaN for fewer than FEWEST workloads · seeds_low, seeds_high: over the seeds of
    these workloads, NaN where one has a single seed · hours_…: the same of device-hours · bound: ``exact``,
    ``at least`` (some average misses the level), ``at most`` (some baseline does), ``mixed`` · num_workloads: that have
    a ratio · num_pairs, … : as in `saving_curve`, summed.
    Args: chosen: of `pairs.chosen_settings`; near ones take part. Empty for fewer than two workloads.
    """
    near = chosen[chosen["near"].astype(bool)]
    scheme = dict(zip(near["setting"], near["scheme"], strict=True))
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in measured:
        if curve.setting in scheme:
            groups.setdefault((curve.versus, scheme[curve.setting]), []).append(curve)
    tables = []
    for versus, name in sorted(groups, key=lambda key: (key[0] != SAME, key)):
        mine = groups[versus, name]
        again = versus != SAME and _equal(mine, groups.get((SAME, name), []))
        if len(mine) > 1 and not again:
            tables.append(_levels(mine).assign(versus=versus, scheme=name))
    return pd.concat(tables, ignore_index=True)[POOLED_COLUMNS] if tables else pd.DataFrame(columns=POOLED_COLUMNS)


def _equal(one: list[Curve], other: list[Curve]) -> bool:
    """Whether both measure the same pairs, as they do where the best baseline has the same schedule."""
    same = (np.array_equal(a.log_ratio, b.log_ratio, equal_nan=True) for a, b in zip(one, other, strict=False))
    return len(one) == len(other) and all(same)


def _levels(curves: list[Curve]) -> pd.DataFrame:
    """The pooled rows of one scheme; levels without a ratio left out."""
    shares = np.unique(np.concatenate([curve.share for curve in curves]))
    steps = [_on(shares, curve, curve.log_ratio) for curve in curves]
    hours = [_on(shares, curve, curve.log_hours_ratio) for curve in curves]
    table: dict[str, Any] = {"share": shares}
    grids = [_on(shares, curve, curve.grid) for curve in curves]
    table |= dict(zip(POOLED_ENDS, np.exp(_pooled(steps, grids)), strict=True))
    table |= dict(zip(POOLED_COLUMNS[8:13], np.exp(_pooled(hours, grids)), strict=True))
    table["num_workloads"] = np.stack([~np.isnan(part).all(axis=0) for part in steps]).sum(axis=0)
    for curve in curves:
        at = np.searchsorted(shares, curve.share)
        for name, number in curve.counts().items():
            table.setdefault(name, np.zeros(len(shares), dtype=np.int64))[at] += number
    top, bottom = table["num_at_least"] > 0, table["num_at_most"] > 0
    table["bound"] = np.select([top & bottom, top, bottom], ["mixed", AT_LEAST, AT_MOST], EXACT)
    return pd.DataFrame(table).query("num_workloads > 0")


def _on(shares: Floats, curve: Curve, matrix: Floats) -> Floats:
    """The matrix on these shares, NaN where the curve has no level."""
    wide = np.full((len(matrix), len(shares)), np.nan)
    wide[:, np.searchsorted(shares, curve.share)] = matrix
    return wide


def _pooled(logs: list[Floats], grids: list[Floats]) -> Floats:
    """Args: logs, grids: (seeds, levels) a workload. Returns: (5, levels): the mean, its ends over both, over seeds."""
    means = np.stack([mean(part, 0) for part in logs])
    known = ~np.isnan(means)
    sizes = np.stack([(~np.isnan(part)).sum(axis=0) for part in logs], axis=1).tolist()
    narrow = np.array([widening(*(size for size in column if size)) for column in sizes])
    wide = np.array([widening(num) if num >= FEWEST else np.nan for num in known.sum(axis=0).tolist()])
    floors = np.stack([grid_floor(part, grid) for part, grid in zip(logs, grids, strict=True)])
    floor, value = pooled_floor(np.where(known, floors, np.nan)), mean(means, 0)
    seeds = np.stack([draws_of(part, 1 + place, mean) for place, part in enumerate(logs)], axis=-1)
    both = np.moveaxis(resample_workloads(np.moveaxis(seeds, 1, 0)), 0, 1)
    found = interval(value, mean(both, -1), wide, scale=1.0, floor=floor)
    return np.vstack([found, interval(value, mean(seeds, -1), narrow, scale=1.0, floor=floor)[1:]])
