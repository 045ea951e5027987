"""What the tests of a claim measure, from the records and from the tables of the studies' reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from analysis import paired
from analysis.intervals import Interval, bootstrap, of_row, with_interval
from analysis.paper import batch_size, tightness
from analysis.paper.claims import Claim, Comparison, Finding, Measured, judge
from analysis.paper.evidence import Compared, Evidence, mean
from analysis.pooled import FIXED
from analysis.savings import AT_LEAST, AT_MOST, BOTH_MISSED, overall_bound, sign
from analysis.study import percent

Frames = Mapping[str, pd.DataFrame]
NONE = Interval(np.nan, np.nan, np.nan)
WORDS = {"steps": ("fewer", "more"), "final_metric": ("better", "worse")}
POINTS = ["question", "workload", "series", "scheme", "x", "value", "low", "high", "num_pairs"]


def findings(of: Evidence, frames: Mapping[str, Frames], claims: list[Claim]) -> list[Finding]:
    """A finding for each claim of which something was measured. Args: frames: study -> name -> table."""
    found = (judge(claim, [measured(test, of, frames, claim.name) for test in claim.tests]) for claim in claims)
    return [one for one in found if one is not None]


def measured(test: Comparison, of: Evidence, frames: Mapping[str, Frames], claim: str) -> Measured:
    """Of one test; the interval has no value where the studies that it needs are not there."""
    if test.function:
        return FUNCTIONS[test.function](of, frames.get(test.study, {}), **test.top)
    top, bottom = (of.pick(test.study, **setting) for setting in (test.top, test.bottom))
    compared = of.compare(top, bottom, test.quantity, test.match, test.at, test.bottom_at)
    pairs = mean(compared)
    if pairs.empty:
        return Measured([NONE], {})
    intervals, bound, by = [paired.over_workloads(pairs)], overall_bound(pairs["bound"]), paired.by_workload(pairs)
    each = {row["workload"]: Interval(row["value"], row["low"], row["high"]) for row in by.to_dict("records")}
    if test.any_of:
        intervals = [each[name] for name in test.any_of if name in each] or [NONE]
    form = ".2f" if test.quantity == "steps" else ".4f"
    words = {
        "ratio": _ratio(intervals[0], bound, pairs, form),
        "workloads": paired.counted(pairs, *WORDS[test.quantity]),
        "each": ", ".join(f"{name} {with_interval(one, form)}" for name, one in each.items()),
        "met": f"{_met(of, bottom)}, the average in {_met(of, top)}",
    }
    if test.gap is not None:
        ((_, wide),) = of.compare(of.pick(test.study, **test.gap), bottom, test.quantity, (), test.at, test.bottom_at)
        gaps = wide.merge(pairs, on=paired.KEYS, suffixes=("_wide", "")).groupby("workload")[["value", "value_wide"]]
        words["closed"] = percent(float((1 - gaps.mean()["value"] / gaps.mean()["value_wide"]).median()))
    if isinstance(test.x, str) and test.x:
        by_x = {x: mean([(key, part) for key, part in compared if key[test.x] == x]) for x in _values(compared, test.x)}
        words["by_x"] = ", ".join(
            f"{percent(x)} {with_interval(paired.over_workloads(p), form)}" for x, p in by_x.items()
        )
    else:
        by_x = {float(test.x): pairs} if test.x else {}
    points = _points(claim, test, by_x)
    if test.pooled:
        return _pooled(test, frames.get(test.study, {}), words)
    return Measured(intervals, words, bound, pairs, points=points)


def _values(compared: Compared, name: str) -> list[float]:
    return sorted({key[name] for key, _ in compared})


def _points(claim: str, test: Comparison, by_x: Mapping[float, pd.DataFrame]) -> pd.DataFrame | None:
    parts = [paired.by_workload(pairs).assign(x=x) for x, pairs in by_x.items() if pairs["value"].notna().any()]
    schemes = test.top.get("scheme", "none")
    scheme = schemes if isinstance(schemes, str) else "none"
    return pd.concat(parts).assign(question=claim, series=test.series, scheme=scheme)[POINTS] if parts else None


def _ratio(found: Interval, bound: str, pairs: pd.DataFrame, form: str) -> str:
    if np.isnan(found.value):
        return "no ratio"
    count = pairs["bound"].value_counts()
    top, bottom = (int(count.get(one, 0) + count.get(BOTH_MISSED, 0)) for one in (AT_LEAST, AT_MOST))
    missed = f" (missing the target in {top} and in {bottom} of {len(pairs)} pairs)" if top + bottom else ""
    return sign(bound) + with_interval(found, form) + missed


def _met(of: Evidence, cells: pd.DataFrame) -> str:
    status = of.steps.loc[of.steps["cell_id"].isin(cells["cell_id"]), "status"]
    return f"{int((status == 'met').sum())} of {len(status)}"


def _pooled(test: Comparison, frames: Frames, words: Mapping[str, str]) -> Measured:
    """The row of the table `pooled` at the pre-specified horizon."""
    table = frames.get("pooled", pd.DataFrame({name: [] for name in ("versus", "horizon", "scheme", "statistic")}))
    rows = table[(table["versus"] == "same schedule") & (table["horizon"] == FIXED)]
    rows = rows[(rows["scheme"] == test.top["scheme"]) & (rows["statistic"] == test.pooled)]
    if rows.empty:
        return Measured([NONE], {})
    row = rows.iloc[0]
    found = Interval(row["value"], row["low"], row["high"])
    ratio = sign(row["bound"]) + with_interval(found)
    return Measured([found], {**words, "ratio": ratio}, str(row["bound"]), size=int(row["num_workloads"]))


def rescued(of: Evidence, frames: Frames, schemes: list[str], final_lr: tuple[float, float]) -> Measured:
    """The share of full-length NadamW seeds whose baseline misses the target and an average of 1 to 4 % meets it.

    final_lr: from and to, as a share of the peak. The interval is Clopper and Pearson's, seeds taken as independent.
    """
    cells = of.cells[(of.cells["optimizer"] == "nadamw") & (of.cells["length_fraction"] > 0.99)]
    cells = cells[cells["final_lr"].between(final_lr[0], final_lr[1])].merge(
        of.steps[["cell_id", "status"]], on="cell_id"
    )
    failed = cells[(cells["scheme"] == "none") & cells["status"].isin(["missed", "diverged"])]
    near = cells[cells["scheme"].isin(schemes) & cells["horizon_fraction"].astype(float).between(0.008, 0.05)]
    keys = ["training", "seed"]
    failed = failed.merge(near[keys].drop_duplicates(), on=keys)
    saved = len(failed.merge(near.loc[near["status"] == "met", keys].drop_duplicates(), on=keys))
    if failed.empty:
        return Measured([NONE], {})
    ends = binomtest(saved, len(failed)).proportion_ci()
    words = {"saved": str(saved), "failed": str(len(failed)), "share": f"[{percent(ends.low)}, {percent(ends.high)}]"}
    share = Interval(saved / len(failed), float(ends.low), float(ends.high))
    return Measured([share], words, size=len(failed), unit="such seeds")


def best_horizon(of: Evidence, frames: Frames, scheme: str) -> Measured:
    """Where the smooth fits are best: the geometric mean over workloads, which are resampled."""
    fits = frames.get("horizon_fit", pd.DataFrame({"scheme": [], "optimum": []}))
    optima = fits.loc[fits["scheme"] == scheme, "optimum"].to_numpy(dtype=float)
    if not len(optima):
        return Measured([NONE], {})
    found = bootstrap(optima, "geometric_mean")
    words = {"best": percent(found.value), "ends": f"from {percent(optima.min())} to {percent(optima.max())}"}
    if not np.isnan(found.low):
        words["interval"] = f"[{percent(found.low)}, {percent(found.high)}]"
    return Measured([found], words, size=len(optima))


def slope(of: Evidence, frames: Frames, scheme: str, source: str) -> Measured:
    """Of the ratio in the target's tightness."""
    rows = tightness.regressions(all_points(of, frames)).query("source == @source and scheme == @scheme")
    if rows.empty:
        return Measured([NONE], {})
    row = rows.iloc[0]
    found, workloads = of_row(row, "slope"), int(row["num_workloads"])
    return Measured([found], {"value": with_interval(found), "workloads": str(workloads)}, size=workloads)


def all_points(of: Evidence, frames: Frames) -> pd.DataFrame:
    """The paper's points of ratio and tightness, this study's, and those of its saving curves."""
    ours = tightness.target_points(of)
    if ours["workload"].nunique() < tightness.LEAST or "saving_curve" not in frames:
        return ours[:0]
    curves = tightness.curve_points(of.cells, frames["saving_curve"], frames["chosen"])
    return pd.concat([tightness.paper_points(), ours, curves], ignore_index=True)


def exponent(of: Evidence, frames: Frames, study: str, workload: str) -> Measured:
    """The exponent of the batch size in the best horizon, see `batch_size`."""
    found = batch_size.best_horizons(of, of.pick(study, ["none", "ema"], workload=workload))
    if found is None:
        return Measured([NONE], {})
    power, words, points = found
    points = points.assign(question="batch_size", scheme="ema")[POINTS]
    words |= {"power": with_interval(power), "workload": workload}
    return Measured([power], words, size=points["num_pairs"].max(), unit="seeds", points=points)


FUNCTIONS: dict[str, Callable[..., Measured]] = {
    function.__name__: function for function in (rescued, best_horizon, slope, exponent)
}
