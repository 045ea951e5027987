"""The saving curve: the ratio in steps and in device-hours at every target level, from easy to the baseline's best.

Cosine decay and averaging do the same job, so the ratio depends on how tight the target is: one ratio at one
target is half an answer. A level is a share of the baseline's training, so it is the same place on the way of every
workload, whatever its metric.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.statistics import resampling
from analysis.statistics.device_hours import clocks, hours_at
from analysis.statistics.pairs import AT_LEAST, AT_MOST, EXACT
from analysis.statistics.resampling import FEWEST, Floats, bootstrap_each, mean, widening
from analysis.statistics.steps_to_target import curves, first_crossings, grid_sd, least_steps, running_best

Bools = NDArray[np.bool_]
Series = tuple[Floats, Floats]
NO_CURVE: Series = (np.empty(0), np.empty(0))
NO_CLOCK: Series = (np.zeros(1), np.zeros(1))

SHARES: Floats = np.round(np.arange(0.10, 1.0001, 0.025), 3)
SAME = "same schedule"
COUNTS = ["num_pairs", "num_exact", "num_at_least", "num_at_most", "num_both_missed"]
ENDS = ["ratio", "low", "high", "hours_ratio", "hours_low", "hours_high"]
COLUMNS = ["versus", "workload", "training", "setting", "share", "level", *ENDS, *COUNTS]
POOLED_ENDS = ["ratio", "low", "high", "seeds_low", "seeds_high"]
POOLED_HOURS = [f"hours_{end}" for end in POOLED_ENDS]
POOLED_COLUMNS = ["versus", "scheme", "share", *POOLED_ENDS, *POOLED_HOURS, "bound", "num_workloads", *COUNTS]


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
    series, clock_of = curves(records), clocks(records)
    trained = cells[cells["state"] != "unfinished"]
    of = {str(cell["cell_id"]): cell for cell in trained.to_dict("records")}
    baselines = trained[trained["scheme"] == "none"].groupby("training")["cell_id"].agg(list)
    pairs = pairs[pairs["cell_id"].isin(list(of)) & pairs["baseline_cell_id"].isin(list(of))]
    pairs = pairs[pairs["cell_id"] != pairs["baseline_cell_id"]].sort_values(["versus", "setting", "seed"])
    goals: dict[int, Floats] = {}

    @cache
    def side(cell_id: str, baseline: int) -> Side:
        cell = of[cell_id]
        met = first_crossings(*series.get(cell_id, NO_CURVE), goals[baseline], bool(cell["higher_is_better"]))
        counted = np.where(np.isnan(met.point), least_steps(cell), met.point)
        hours = hours_at(clock_of.get(cell_id, NO_CLOCK), met.point, cell["num_devices"])
        return Side(met.point, counted, hours, grid_sd(met.lower, met.upper))

    found = []
    for key, part in pairs.groupby(["versus", "workload", "training", "setting"], sort=True):
        first = of[part["baseline_cell_id"].iloc[0]]
        baseline = int(first["training"])
        if baseline not in goals:
            length = float(min(first["length_steps"], first["step_budget"]))
            known = [series[cell_id] for cell_id in baselines.get(baseline, []) if cell_id in series]
            goals[baseline] = levels(known, length, bool(first["higher_is_better"]), shares)
        top, bottom = (
            Side(*map(np.stack, zip(*(side(cell_id, baseline) for cell_id in part[name]), strict=True)))
            for name in ("cell_id", "baseline_cell_id")
        )
        names = cast("tuple[str, str, int, int]", key)
        found.append(_curve(names, shares, goals[baseline], top, bottom))
    return found


def _curve(names: tuple[str, str, int, int], shares: Floats, goals: Floats, top: Side, bottom: Side) -> Curve:
    """Args: names: as in Curve. top, bottom: matrices (seeds, levels)."""
    k = ~np.isnan(goals)
    misses, other = np.isnan(top.steps)[:, k], np.isnan(bottom.steps)[:, k]
    sides = ((top.counted, bottom.counted), (top.hours, bottom.hours))
    steps, hours = (_log(mine[:, k], its[:, k], misses & other) for mine, its in sides)
    return Curve(*names, shares[k], goals[k], misses, other, steps, hours, np.hypot(top.grid, bottom.grid)[:, k])


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
    steps, hours, grids = (
        [_on(shares, curve, getattr(curve, name)) for curve in curves]
        for name in ("log_ratio", "log_hours_ratio", "grid")
    )
    table: dict[str, Any] = {"share": shares}
    for names, logs in ((POOLED_ENDS, steps), (POOLED_HOURS, hours)):
        table |= dict(zip(names, np.exp(_pooled(logs, grids)), strict=True))
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
    floors = np.stack([resampling.grid_floor(part, grid) for part, grid in zip(logs, grids, strict=True)])
    floor, value = resampling.pooled_floor(np.where(known, floors, np.nan)), mean(means, 0)
    seeds = np.stack([resampling.draws_of(part, 1 + place, mean) for place, part in enumerate(logs)], axis=-1)
    both = np.moveaxis(resampling.resample_workloads(np.moveaxis(seeds, 1, 0)), 0, 1)
    found = resampling.interval(value, mean(both, -1), wide, scale=1.0, floor=floor)
    return np.vstack([found, resampling.interval(value, mean(seeds, -1), narrow, scale=1.0, floor=floor)[1:]])
