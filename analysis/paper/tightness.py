"""Does a target's tightness explain what averaging saves?

Tightness is the share of the step budget T after which the non-averaged baseline is at the target. A regression is
ratio = intercept + slope · share by least squares.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import paired
from analysis.baselines import CHOSEN_HORIZON
from analysis.intervals import LEVEL, RESAMPLES, ROUNDING, multisets, small_sample_factor
from analysis.paper import numbers
from analysis.paper.evidence import Evidence
from analysis.savings import overall_bound

Floats = NDArray[np.float64]

PAPER, TARGETS, CURVES = "the paper", "this study", "this study, every level"
LEAST = 3  # workloads of a regression
SHARES = (0.3, 0.9)  # of T: the range of the paper's points, within which levels are compared
POINTS = ["source", "scheme", "workload", "share", "ratio", "low", "high", "bound"]
LINE = ["source", "scheme", "num_workloads", "share_from", "share_to", "intercept", "slope", "slope_low", "slope_high"]


def paper_points() -> pd.DataFrame:
    """The paper's eight points a scheme, as POINTS; they have no interval."""
    rows = [
        (PAPER, scheme, workload, float(point["share"]), float(point[scheme]), np.nan, np.nan, "exact")
        for workload, point in numbers.read()["points"].items()
        for scheme in ("ema", "lawa")
    ]
    return _sorted(pd.DataFrame(rows, columns=POINTS))


def target_points(of: Evidence) -> pd.DataFrame:
    """A point a workload and scheme of study speedup, at the pre-specified horizon: the ratio at the target, against
    the median over seeds of the baseline's steps-to-target / T, a miss censored and imputed at T."""
    baseline = of.pick("speedup")
    taken = baseline.merge(of.steps[["cell_id", "ranked_steps"]], on="cell_id")
    share = (taken["ranked_steps"] / taken["step_budget"]).groupby(taken["workload"]).median()
    parts = []
    for scheme in ("ema", "lawa"):
        ((_, pairs),) = of.compare(of.pick("speedup", scheme, CHOSEN_HORIZON), baseline)
        bound = pairs.groupby("workload")["bound"].agg(overall_bound)
        table = paired.by_workload(pairs).rename(columns={"value": "ratio"})
        names = table["workload"]
        parts.append(table.assign(source=TARGETS, scheme=scheme, share=names.map(share), bound=names.map(bound)))
    table = pd.concat(parts)
    return _sorted(table[table["ratio"].notna() & table["share"].notna()])


def curve_points(cells: pd.DataFrame, curve: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """The saving curve's points on the same axes: share = q · (schedule length / T), ratio at that level.

    A level at which the baseline stays is one point, at the share at which it gets there.
    Args: curve: of `analysis.saving_curve.saving_curve`. chosen: of `analysis.baselines.chosen_settings`.
    """
    lengths = cells.drop_duplicates("setting").set_index("setting")
    share = (lengths["length_steps"] / lengths["step_budget"]).clip(upper=1.0)
    near = chosen[chosen["near"].astype(bool)][["setting", "scheme"]]
    same = curve[curve["versus"] == "same schedule"].drop(columns="scheme", errors="ignore")
    table = same.merge(near, on="setting")
    table = table.assign(source=CURVES, share=table["share"] * table["setting"].map(share).astype(float))
    table = table.sort_values("share", kind="stable").drop_duplicates(["setting", "level"])
    missed = table["num_at_least"] > 0, table["num_at_most"] > 0
    table["bound"] = np.select([missed[0] & missed[1], missed[0], missed[1]], ["mixed", "at least", "at most"], "exact")
    room = 1e-9
    inside = table["share"].between(SHARES[0] - room, SHARES[1] + room)
    return _sorted(table[inside & table["ratio"].notna()])


def regressions(points: pd.DataFrame) -> pd.DataFrame:
    """One row of LINE a (source, scheme) with LEAST workloads or more.

    _low, _high: bootstrap over workloads, all points of one together, expanded as in `analysis.intervals` with two
    degrees of freedom less; NaN where all points lie on one line.
    Args: points: columns source, scheme, workload, share, ratio.
    """
    rows = [
        {"source": source, "scheme": scheme, **_line(part)}
        for (source, scheme), part in points.groupby(["source", "scheme"], sort=True)
        if part["workload"].nunique() >= LEAST and part["share"].nunique() > 1
    ]
    return pd.DataFrame(rows, columns=LINE)


def _line(part: pd.DataFrame) -> dict[str, Any]:
    x, y = part["share"].to_numpy(dtype=float), part["ratio"].to_numpy(dtype=float)
    workload, names = pd.factorize(part["workload"], sort=True)
    num = len(names)
    # Sums a workload: a resample's fit needs no more than how often each workload was drawn.
    sums = np.stack([np.bincount(workload, w, num) for w in (np.ones_like(x), x, y, x * x, x * y)], 1)
    intercept, slope = _fit(sums.sum(axis=0)[None, :])[:, 0]
    weights, counts = multisets(num, RESAMPLES, 0)
    draws = np.repeat(_fit(num * weights @ sums)[1], counts)
    draws = draws[~np.isnan(draws)]  # of workloads with one share there is no line
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) if len(draws) else (np.nan, np.nan)
    factor = small_sample_factor(num - 1, num - 2) if high - low > ROUNDING else np.nan  # a line takes two degrees
    ends = {"slope_low": slope + factor * (low - slope), "slope_high": slope + factor * (high - slope)}
    span = {"num_workloads": num, "share_from": x.min(), "share_to": x.max()}
    return span | {"intercept": intercept, "slope": slope} | ends


def _fit(sums: Floats) -> Floats:
    """Intercept and slope of least squares from (n, Σx, Σy, Σx², Σxy), shape (u, 5) -> (2, u); NaN at equal x."""
    n, sx, sy, sxx, sxy = sums.T
    spread = sxx - sx**2 / n
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(spread > 1e-12 * sxx, (sxy - sx * sy / n) / spread, np.nan)
    return np.stack([(sy - slope * sx) / n, slope])


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    order = ["source", "scheme", "workload", "share"]
    return table.sort_values(order, kind="stable").reset_index(drop=True)[POINTS]
