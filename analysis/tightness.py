"""Does the target's tightness explain what averaging saves? Ratio against the share of the budget a raw run takes.

Cosine decay and averaging do the same job, so a target that raw weights reach early leaves more to save.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from analysis.resampling import (
    LEVEL,
    RESAMPLES,
    ROUNDING,
    Interval,
    multisets,
    small_sample_factor,
    with_interval,
)
from analysis.study import SCHEME_NAMES, percent

Floats = NDArray[np.float64]

PAPER, TARGETS, CURVES = "the paper", "this study", "this study, every level"
LEAST = 3  # workloads of a regression
SHARES = (0.3, 0.9)  # of the budget: the range of the paper's points, within which levels are compared

RULE = (
    "Tightness is the share of the step budget after which the raw run is at the target: the median over seeds. "
    "Regression: ratio = intercept + slope · share by least squares, a point a workload; for the saving curves a point "
    "a workload and level, from 30 to 90 % of the budget, the paper's range. R² is the share of the ratio's variance "
    "that the line explains; with n workloads and no relation it is 1/(n−1) on average. Intervals: bootstrap over "
    "workloads, all points of one together, widened for few workloads, R²'s on Fisher's scale of the correlation. "
    "Tightness is said to matter where the slope's interval leaves out 0."
)

POINTS = ["source", "scheme", "workload", "share", "ratio", "low", "high", "bound"]
LINE = [
    *("source", "scheme", "num_workloads", "num_points", "share_from", "share_to", "intercept", "slope"),
    *("slope_low", "slope_high", "r2", "r2_low", "r2_high", "r2_by_chance", "r2_with_workload"),
]


def points(
    cells: pd.DataFrame,
    steps: pd.DataFrame,
    ratios: pd.DataFrame,
    curve: pd.DataFrame,
    chosen: pd.DataFrame,
) -> pd.DataFrame:
    """This study's points and curves, beside them the paper's of the same schemes.

    Empty where fewer than LEAST workloads have a point: they say nothing on what differs between workloads.
    """
    ours = target_points(cells, steps, ratios, chosen)
    if ours["workload"].nunique() < LEAST:
        return ours[:0]
    paper = paper_points()
    return _sorted(pd.concat([paper[paper["scheme"].isin(ours["scheme"])], ours, curve_points(cells, curve, chosen)]))


def paper_points() -> pd.DataFrame:
    """The paper's eight points a scheme: source, scheme, workload, share, ratio, low, high (null), bound."""
    of = yaml.safe_load(files("analysis").joinpath("paper_points.yaml").read_text(encoding="utf-8"))
    rows = [
        (PAPER, scheme, workload, float(point["share"]), float(point[scheme]), np.nan, np.nan, "exact")
        for workload, point in of["points"].items()
        for scheme in ("ema", "lawa")
    ]
    return _sorted(pd.DataFrame(rows, columns=POINTS))


def target_points(cells: pd.DataFrame, steps: pd.DataFrame, ratios: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """share = median over seeds of the raw run's steps-to-target / step budget, and the ratio at that target.

    One point a workload and scheme, at the horizon fixed beforehand, so that no result picks it. A raw run that
    misses is counted at the step budget.
    Args: cells: of `analysis.study.progress`. steps: of `analysis.steps_to_target`. ratios: of
      `analysis.pairs.ratios`. chosen: of `analysis.pairs.chosen_settings`.
    """
    raw = cells[cells["scheme"] == "none"].merge(steps[["cell_id", "ranked_steps"]], on="cell_id")
    taken = raw.assign(share=raw["ranked_steps"] / raw["step_budget"])
    share = taken.groupby("training")["share"].median()
    near = chosen[chosen["near"]][["setting", "scheme"]]
    same = ratios[ratios["versus"] == "same schedule"].drop(columns="scheme", errors="ignore")
    table = same.merge(near, on="setting")
    table = table.assign(source=TARGETS, share=table["training"].map(share)).rename(
        columns={"geometric_mean": "ratio", "geometric_mean_low": "low", "geometric_mean_high": "high"}
    )
    return _sorted(table[table["ratio"].notna() & table["share"].notna()][POINTS])


def curve_points(
    cells: pd.DataFrame, curve: pd.DataFrame, chosen: pd.DataFrame, shares: tuple[float, float] = SHARES
) -> pd.DataFrame:
    """The saving curve's points on the same axes: share = q · (schedule length / step budget), ratio at that level.

    A level at which the raw run stays is one point, at the share at which it gets there.
    Args: curve: of `analysis.saving_curve.saving_curve`. shares: of the budget, the least and the most.
    """
    lengths = cells.drop_duplicates("setting").set_index("setting")
    share = (lengths["length_steps"] / lengths["step_budget"]).clip(upper=1.0)
    near = chosen[chosen["near"]][["setting", "scheme"]]
    same = curve[curve["versus"] == "same schedule"].drop(columns="scheme", errors="ignore")
    table = same.merge(near, on="setting")
    table = table.assign(source=CURVES, share=table["share"] * table["setting"].map(share).astype(float))
    table = table.sort_values("share", kind="stable").drop_duplicates(["setting", "level"])
    missed = table["num_at_least"] > 0, table["num_at_most"] > 0
    table["bound"] = np.select([missed[0] & missed[1], missed[0], missed[1]], ["mixed", "at least", "at most"], "exact")
    room = 1e-9
    inside = (table["share"] >= shares[0] - room) & (table["share"] <= shares[1] + room)
    return _sorted(table[inside & table["ratio"].notna()][POINTS])


def regressions(points: pd.DataFrame) -> pd.DataFrame:
    """ratio = intercept + slope · share, one row a (source, scheme) with LEAST workloads or more.

    r2 = 1 − Σ(ratio − line)² / Σ(ratio − mean)² · r2_by_chance: its mean without any relation, 1/(n−1), where each
    workload has one point · r2_with_workload: of the model with an intercept a workload, where each has several
    points: what it adds to r2 is the workloads' own · _low, _high: bootstrap over workloads, expanded as in
    `analysis.resampling` with two degrees of freedom less; for r2 the ends of artanh(correlation), squared back, from
    0 where they have two signs.
    Args: points: columns source, scheme, workload, share, ratio.
    """
    rows = []
    for (source, scheme), part in points.groupby(["source", "scheme"], sort=True):
        if part["workload"].nunique() < LEAST or part["share"].nunique() < 2:
            continue
        rows.append({"source": source, "scheme": scheme, **_line(part)})
    return pd.DataFrame(rows, columns=LINE)


def findings(lines: pd.DataFrame) -> list[str]:
    """One sentence a regression: the variance that tightness explains, and whether the slope has a sign."""
    found = []
    for row in lines.to_dict("records"):
        slope = Interval(row["slope"], row["slope_low"], row["slope_high"])
        r2 = Interval(row["r2"], row["r2_low"], row["r2_high"])
        if np.isnan(r2.value):
            continue  # the same ratio everywhere: nothing to explain
        text = (
            f"{row['source'][0].upper()}{row['source'][1:]}, {SCHEME_NAMES.get(row['scheme'], row['scheme'])}: the "
            f"target's tightness explains {_percent(r2)} of the variance of the ratio over {row['num_workloads']} "
            "workloads"
        )
        if row["r2_by_chance"] == row["r2_by_chance"]:
            text += f" ({percent(row['r2_by_chance'])} by chance alone)"
        step = with_interval(Interval(*(0.1 * end for end in slope)), "+.3f")
        text += f"; a target reached 10 % of the budget later changes it by {step}"
        if not (slope.low > 0 or slope.high < 0):
            text += ": no effect can be told from luck."
        else:
            text += f": {'less' if slope.value > 0 else 'more'} is left to save."
        if row["r2_with_workload"] == row["r2_with_workload"]:
            rest = row["r2_with_workload"] - row["r2"]
            text += f" The workload itself explains {percent(rest)} more."
        found.append(text)
    return found


def _line(part: pd.DataFrame) -> dict[str, Any]:
    x, y = part["share"].to_numpy(dtype=float), part["ratio"].to_numpy(dtype=float)
    workload, names = pd.factorize(part["workload"], sort=True)
    num = len(names)
    # Sums a workload: a resample's fit needs no more than how often each workload was drawn.
    sums = np.stack([np.bincount(workload, w, num) for w in (np.ones_like(x), x, y, x * x, x * y, y * y)], 1)
    fitted = _fit(sums.sum(axis=0)[None, :])[:, 0]
    weights, counts = multisets(num, RESAMPLES, 0)
    draws = np.repeat(_fit(num * weights @ sums), counts, axis=1)
    known = ~np.isnan(draws).all(axis=1)  # no line through points of one share, no correlation of equal ratios
    low_high = np.full((2, len(draws)), np.nan)
    low_high[:, known] = np.nanquantile(draws[known], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=1)
    factor = small_sample_factor(num - 1, num - 2) if num > 2 else np.nan  # a line takes two degrees
    low_high[:, ~(low_high[1] - low_high[0] > ROUNDING)] = np.nan  # all points on one line
    slope = fitted[1] + factor * (low_high[:, 1] - fitted[1])
    r2 = _squared(fitted[2], low_high[:, 2], factor)
    several = len(part) > num
    return {
        "num_workloads": num,
        "num_points": len(part),
        "share_from": float(x.min()),
        "share_to": float(x.max()),
        "intercept": float(fitted[0]),
        "slope": float(fitted[1]),
        "slope_low": float(slope[0]),
        "slope_high": float(slope[1]),
        "r2": r2.value,
        "r2_low": r2.low,
        "r2_high": r2.high,
        "r2_by_chance": np.nan if several else 1 / (num - 1),
        "r2_with_workload": _with_workload(x, y, workload) if several else np.nan,
    }


def _fit(sums: Floats) -> Floats:
    """Intercept, slope and correlation of least squares from (n, Σx, Σy, Σx², Σxy, Σy²), shape (u, 6) -> (3, u).

    NaN where all x are equal; the correlation also where all y are.
    """
    n, sx, sy, sxx, sxy, syy = sums.T
    xx, xy, yy = sxx - sx**2 / n, sxy - sx * sy / n, syy - sy**2 / n
    room = 1e-12
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(xx > room * sxx, xy / xx, np.nan)
        correlation = np.where((yy > room * syy) & (xx > room * sxx), xy / np.sqrt(xx * yy), np.nan)
    return np.stack([(sy - slope * sx) / n, slope, correlation])


def _squared(correlation: float, low_high: Floats, factor: float) -> Interval:
    """R² with its interval from the correlation's: stretched on Fisher's scale, where it is nearly normal."""
    most = 1 - 1e-9
    centre = np.arctanh(np.clip(correlation, -most, most))
    low, high = np.tanh(centre + factor * (np.arctanh(np.clip(low_high, -most, most)) - centre))
    lowest = 0.0 if low < 0 < high else min(low**2, high**2)
    return Interval(float(correlation**2), float(lowest), float(max(low**2, high**2)))


def _with_workload(x: Floats, y: Floats, workload: NDArray[np.int64]) -> float:
    num = np.bincount(workload)
    inner_x = x - (np.bincount(workload, x) / num)[workload]
    inner_y = y - (np.bincount(workload, y) / num)[workload]
    spread = float((inner_x**2).sum())
    slope = float((inner_x * inner_y).sum()) / spread if spread > 0 else 0.0
    return 1 - float(((inner_y - slope * inner_x) ** 2).sum()) / float(((y - y.mean()) ** 2).sum())


def _sorted(table: pd.DataFrame) -> pd.DataFrame:
    order = ["source", "scheme", "workload", "share"]
    return table.sort_values(order, kind="stable").reset_index(drop=True)[POINTS]


def _percent(share: Interval) -> str:
    ends = "" if np.isnan(share.low) else f" [{100 * share.low:.0f} %, {100 * share.high:.0f} %]"
    return f"{100 * share.value:.0f} %{ends}"
