"""What the tests of a claim measure, from the records and from the tables of the studies' reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binomtest

from analysis.paper import numbers
from analysis.paper.claims import Claim, Comparison, Finding, Measured, judge
from analysis.paper.evidence import Evidence, mean
from analysis.run_folder.study import percent
from analysis.statistics import resampling
from analysis.statistics.pairs import (
    AT_LEAST,
    AT_MOST,
    BOTH_MISSED,
    KEYS,
    by_workload,
    over_workloads,
    overall_bound,
    sign,
)
from analysis.statistics.pooled import FIXED
from analysis.statistics.resampling import Interval, bootstrap, for_all, of_row, with_interval
from analysis.statistics.steps_to_target import steps_to_target
from analysis.statistics.verdicts import by_luck

Floats = NDArray[np.float64]
Frames = Mapping[str, pd.DataFrame]
OWN_LEVEL = 0.75  # share of the budget whose baseline's level is a batch size's own target
NOTHING = Measured([Interval(np.nan, np.nan, np.nan)], {})
WORDS = {"steps": ("fewer", "more"), "final_metric": ("better", "worse")}
POINTS = ["claim", "workload", "series", "x", "value", "low", "high"]


def findings(of: Evidence, frames: Mapping[str, Frames], claims: Sequence[Claim]) -> list[Finding]:
    """A finding for each claim of which something was measured. Args: frames: study -> name -> table."""
    found = (judge(claim, [measured(test, of, frames, claim.name) for test in claim.tests]) for claim in claims)
    return [one for one in found if one is not None]


def measured(test: Comparison, of: Evidence, frames: Mapping[str, Frames], claim: str = "") -> Measured:
    """What one test finds; NOTHING where the cells that it needs are not there."""
    tables = frames.get(test.study, {})
    if test.function:
        return FUNCTIONS[test.function](of, tables, **test.top)
    top, bottom = (of.pick(test.study, **setting) for setting in (test.top, test.bottom))
    compared = of.compare(top, bottom, test.quantity, test.match, test.at, test.bottom_at)
    pairs = mean(compared, test.match)
    if pairs.empty or (test.any_of and not pairs["workload"].isin(test.any_of).any()):
        return NOTHING
    form = ".2f" if test.quantity == "steps" else ".4f"
    each = {str(name): Interval(*ends) for name, *ends, _ in by_workload(pairs).itertuples(index=False)}
    whole, bound = over_workloads(pairs), overall_bound(pairs["bound"])
    intervals = any_of(pairs, test.any_of) if test.any_of else [whole]
    words = {
        "ratio": _ratio(whole, bound, pairs, form),
        "workloads": on_how_many(pairs, *WORDS[test.quantity]),
        "each": ", ".join(f"{name} {with_interval(one, form)}" for name, one in each.items()),
        "met": f"{_met(of, bottom)}, by the average in {_met(of, top)}",
    }
    if test.gap is not None:
        wide = of.compare(of.pick(test.study, **test.gap), bottom, test.quantity, (), test.at, test.bottom_at)
        gaps = wide.merge(pairs, on=KEYS, suffixes=("_wide", "")).groupby("workload")[["value", "value_wide"]]
        words["closed"] = percent(float((1 - gaps.mean()["value"] / gaps.mean()["value_wide"]).median()))
    if test.pooled:
        return _pooled(test, tables, words)
    by_x: dict[Any, pd.DataFrame] = {test.x: pairs} if isinstance(test.x, float) else {}
    if isinstance(test.x, str):
        by_x = {x: mean(part, test.match) for x, part in compared.groupby(test.x, sort=True)}
        told = {x: with_interval(over_workloads(part), form) for x, part in by_x.items()}
        words["by_x"] = ", ".join(f"{percent(x)} {interval}" for x, interval in told.items())
    points = [by_workload(part).assign(x=x, claim=claim, series=test.series)[POINTS] for x, part in by_x.items()]
    deciding = pairs[pairs["workload"].isin(test.any_of or pairs["workload"])]
    every = pd.concat(points).dropna(subset="value") if points else None
    return Measured(intervals, words, bound, deciding, points=every)


def any_of(pairs: pd.DataFrame, workloads: Sequence[str]) -> list[Interval]:
    """Of each of these workloads that there is, at the level that allows for one of them being enough (Bonferroni)."""
    parts = [pairs.loc[pairs["workload"] == name, "value"].to_numpy(dtype=float) for name in workloads]
    parts = [part for part in parts if len(part)]
    return [for_all(bootstrap(np.exp(part), "geometric_mean"), len(parts), len(part) - 1) for part in parts]


def _ratio(found: Interval, bound: str, pairs: pd.DataFrame, form: str) -> str:
    if np.isnan(found.value):
        return "no ratio"
    top, bottom = (int(pairs["bound"].isin([one, BOTH_MISSED]).sum()) for one in (AT_LEAST, AT_MOST))
    missed = f" (missing the target in {top} and in {bottom} of {len(pairs)} pairs)" if top + bottom else ""
    return sign(bound) + with_interval(found, form) + missed


def _met(of: Evidence, cells: pd.DataFrame) -> str:
    status = of.steps.loc[of.steps["cell_id"].isin(cells["cell_id"]), "status"]
    return f"{int((status == 'met').sum())} of {len(status)}"


def _pooled(test: Comparison, tables: Frames, words: Mapping[str, str]) -> Measured:
    """The row of the table `pooled` at the pre-specified horizon."""
    rows = tables["pooled"]
    rows = rows[(rows["versus"] == "same schedule") & (rows["horizon"] == FIXED) & (rows["statistic"] == test.pooled)]
    rows = rows[rows["scheme"] == test.top["scheme"]]
    if rows.empty:
        return NOTHING
    row = rows.iloc[0]
    found = Interval(row["value"], row["low"], row["high"])
    words = {**words, "ratio": sign(row["bound"]) + with_interval(found)}
    return Measured([found], words, str(row["bound"]), size=int(row["num_workloads"]))


def rescued(of: Evidence, tables: Frames, schemes: list[str], final_lr: tuple[float, float]) -> Measured:
    """The share of full-length NadamW seeds whose baseline misses the target and an average of 1 to 4 % meets it.

    final_lr: from and to, as a share of the peak. The interval is Clopper and Pearson's, seeds taken as independent.
    """
    cells = of.cells[(of.cells["optimizer"] == "nadamw") & (of.cells["length_fraction"] > 0.99)]
    cells = cells[cells["final_lr"].between(final_lr[0], final_lr[1])]
    cells = cells.merge(of.steps[["cell_id", "status"]], on="cell_id")
    failed = cells[(cells["scheme"] == "none") & cells["status"].isin(["missed", "diverged"])]
    near = cells[cells["scheme"].isin(schemes) & cells["horizon_fraction"].astype(float).between(0.008, 0.05)]
    keys = ["training", "seed"]
    failed = failed.merge(near[keys].drop_duplicates(), on=keys)
    if failed.empty:
        return NOTHING
    saved = len(failed.merge(near.loc[near["status"] == "met", keys].drop_duplicates(), on=keys))
    ends = binomtest(saved, len(failed)).proportion_ci()
    words = {"saved": str(saved), "failed": str(len(failed)), "share": f"[{percent(ends.low)}, {percent(ends.high)}]"}
    return Measured([Interval(saved / len(failed), ends.low, ends.high)], words, size=len(failed), unit="such seeds")


def best_horizon(of: Evidence, tables: Frames, scheme: str) -> Measured:
    """Where the smooth fits are best: the geometric mean over workloads, which are resampled."""
    fits = tables.get("horizon_fit", pd.DataFrame({"scheme": [], "optimum": []}))
    optima = fits.loc[fits["scheme"] == scheme, "optimum"].to_numpy(dtype=float)
    if not len(optima):
        return NOTHING
    found = bootstrap(optima, "geometric_mean")
    words = {"best": percent(found.value), "ends": f"from {percent(optima.min())} to {percent(optima.max())}"}
    if not np.isnan(found.low):
        words["interval"] = f"[{percent(found.low)}, {percent(found.high)}]"
    return Measured([found], words, size=len(optima))


def slope(of: Evidence, tables: Frames, scheme: str, source: str) -> Measured:
    """Of the steps ratio in the target's tightness, over workloads."""
    line = numbers.regression(numbers.points(of).query("scheme == @scheme and source == @source"))
    if line is None:
        return NOTHING
    found, workloads = of_row(line, "slope"), int(line["num_workloads"])
    words = {"value": with_interval(found), "workloads": str(workloads), "explained": percent(line["r2"])}
    return Measured([found], words, size=workloads)


def exponent(of: Evidence, tables: Frames, study: str, workload: str) -> Measured:
    """The exponent of the batch size in the best horizon. Several trainings a batch size make no fit.

    γ → γ^κ at a batch κ times as large (Busbridge et al. 2023) keeps an average's reach in examples, so its horizon in
    steps would go as 1/κ. The target of a batch size is what its baseline has after OWN_LEVEL of the budget, median
    over seeds.
    """
    cells = of.pick(study, ["none", "ema"], workload=workload)
    baseline = cells[(cells["scheme"] == "none") & (cells["state"] != "unfinished")]
    if baseline.duplicated(["batch_factor", "seed"]).any():
        return NOTHING
    levels = {training: of.metric(part, OWN_LEVEL)["value"].median() for training, part in baseline.groupby("training")}
    cells = cells[cells["training"].isin(levels)]
    steps = steps_to_target(cells.assign(target=cells["training"].map(levels).astype(float)), of.records)
    table = cells.merge(steps[["cell_id", "counted_steps", "censored"]], on="cell_id")
    table = table[table["counted_steps"].notna()].astype({"horizon_fraction": float})
    table = table.assign(y=np.log(table["counted_steps"].astype(float)), x=np.log(table["horizon_fraction"]))
    below = table.loc[table["scheme"] == "none", ["training", "seed", "y"]].rename(columns={"y": "below"})
    table = table[table["scheme"] == "ema"].merge(below, on=["training", "seed"])
    table = table.assign(value=table["y"] - table["below"], factor=table["batch_factor"])
    table = table[table.groupby(["factor", "seed"])["x"].transform("nunique") >= 3]  # a parabola
    table = table[table.groupby("seed")["factor"].transform("nunique") > 1]
    if table.empty:
        return NOTHING
    parts = []
    for (factor, horizon), part in table.groupby(["factor", "horizon_fraction"], sort=True):
        examples = round(float(str(factor)) * float(part["own_batch_size"].iloc[0]))
        parts.append(by_workload(part).assign(series=f"batch {examples:,}", x=float(str(horizon)), claim="batch_size"))
    best = table.groupby(["factor", "horizon_fraction"])["y"].mean().unstack().idxmin(axis=1)
    power, points = horizon_exponent(table), pd.concat(parts)
    words = {
        "best": ", ".join(f"{factor:g} × {percent(horizon)}" for factor, horizon in best.items()),
        "missed": f"{int(table['censored'].sum())} of {len(table)}",
        "power": with_interval(power),
        "workload": workload,
    }
    size = int(points["num_pairs"].max())
    return Measured([power], words, size=size, unit="seeds", points=points[POINTS])


FUNCTIONS: dict[str, Callable[..., Measured]] = {
    function.__name__: function for function in (rescued, best_horizon, slope, exponent)
}


def on_how_many(pairs: pd.DataFrame, below: str, above: str) -> str:
    """'fewer on 2 of 9 (a, b), more on 1 (c), undecided on 6', from each workload's interval.

    The chance that so many would be on that side by luck stands with them: binomial, (1 − LEVEL)/2 a workload.
    """
    table = by_workload(pairs)
    low, high = (list(table.loc[mask, "workload"]) for mask in (table["high"] < 1, table["low"] > 1))
    total = pairs["workload"].nunique()
    parts = []
    for names, word in ((low, below), (high, above)):
        if names:
            chance = by_luck(len(names), total)
            luck = "below 0.1 %" if chance < 0.001 else f"{100 * chance:.2g} %"
            parts.append(f"{word} on {len(names)} of {total} ({', '.join(names)}; by luck alone {luck})")
    if left := total - len(low) - len(high):
        parts.append(f"undecided on {left} of {total}")
    return ", ".join(parts)


def horizon_exponent(table: pd.DataFrame) -> Interval:
    """β of best horizon ∝ κ^β, from log steps = a(κ, seed) + b·x + c·x² + d·x·ln κ, least squares: β = −d / 2c.

    The minimum over x = ln horizon lies at −(b + d ln κ) / 2c. Seeds are resampled as a whole, the interval stretched
    by `small_sample_factor`; NaN where the fit has no minimum, infinite where that of a resample has none.
    Args: table: seed, factor (κ), x, y (log steps).
    """
    parts = []
    for _, mine in table.groupby("seed", sort=True):
        x, log_kappa = mine["x"].to_numpy(dtype=float), np.log(mine["factor"].to_numpy(dtype=float))
        design = pd.DataFrame({"b": x, "c": x**2, "d": x * log_kappa, "y": mine["y"].to_numpy(dtype=float)})
        within = (design - design.groupby(log_kappa).transform("mean")).to_numpy()  # a(κ, seed) drops out
        parts.append(within.T @ within)
    products: Floats = np.stack(parts)
    value = float(_beta(products.mean(axis=0)[None])[0])
    if np.isnan(value):
        return Interval(value, np.nan, np.nan)
    weights, counts = resampling.multisets(len(parts))
    draws = _beta(np.einsum("us,sij->uij", weights, products))
    if np.isnan(draws).any():
        return Interval(value, -np.inf, np.inf)
    stretch = resampling.widening(len(parts))
    return Interval(*resampling.interval(value, draws[:, None], stretch, counts, scale=1.0)[:, 0].tolist())


def _beta(products: Floats) -> Floats:
    """−d / 2c of each of the normal equations, shape (u, 4, 4); NaN where c ≤ 0: no minimum."""
    solved = np.linalg.solve(products[:, :3, :3], products[:, :3, 3:])[:, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(solved[:, 1] > 0, -solved[:, 2] / (2 * solved[:, 1]), np.nan)
