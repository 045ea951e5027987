"""The averaging horizon's smooth fit: the ratio as a parabola in the log horizon, with its flat region."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.pairs import overall_bound
from analysis.resampling import interval, multisets, widening

Floats = NDArray[np.float64]

FIXED = ("ema", "lawa")  # schemes whose horizon does not grow with the run: they share one fit
GRID = 81  # horizons a curve, evenly spread in the logarithm

RULE = (
    "The smooth fit is a parabola in the logarithm of the horizon: log ratio = a seed's own level + b·x + c·x², by "
    "least squares over all seeds and horizons, LAWA and EMA on one axis. Its band and its optimum have bootstrap 95 % "
    "intervals, seeds resampled as a whole and widened as elsewhere. The flat region holds the horizons around the "
    "optimum whose interval covers the optimum's ratio. An optimum at the edge of the horizons run is a bound."
)

CURVE = ["workload", "training", "scheme", "horizon_fraction", "ratio", "low", "high", "best", "flat"]
FIT = [
    *("workload", "training", "scheme", "optimum", "optimum_low", "optimum_high", "edge", "ratio", "ratio_low"),
    *("ratio_high", "slope", "curvature", "r2", "flat_from", "flat_to", "num_horizons", "num_seeds", "num_pairs"),
    *("num_left_out", "bound"),
]


def horizon_fit(by_seed: pd.DataFrame, cells: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One fit a (workload, training, scheme), and one of LAWA and EMA together (scheme ``ema + lawa``).

    Args: by_seed: of `analysis.pairs.ratios_by_seed`. cells: of `analysis.study.describe`.
    Returns fits and curves; three horizons and a ratio at each are the least for a fit.
      fits: optimum (horizon fraction with the smallest fitted ratio, within the horizons run), optimum_low,
      optimum_high · edge: it is the shortest or the longest horizon run · ratio at the optimum, ratio_low,
      ratio_high · slope (at the optimum), curvature: of log ratio in ln horizon · r2: share of the variance within
      seeds that the parabola explains · flat_from, flat_to (null for one seed) · num_horizons, num_seeds,
      num_pairs, num_left_out (pairs without a ratio) · bound (see `analysis.pairs.ratios`).
      curves: the fitted ratio at GRID horizons and the optimum, low, high, best (the optimum), flat (covers it).
    """
    columns = cells.drop_duplicates("setting")[["setting", "scheme", "horizon_fraction"]]
    table = by_seed[by_seed["versus"] == "same schedule"]
    table = table.drop(columns=["scheme", "horizon_fraction"], errors="ignore").merge(columns, on="setting")
    table = table[table["horizon_fraction"].notna() & (table["horizon_fraction"] > 0)]
    together = table[table["scheme"].isin(FIXED)]
    several = together.groupby(["workload", "training"])["scheme"].transform("nunique") > 1
    table = pd.concat([table, together[several].assign(scheme=" + ".join(FIXED))])
    fits: list[dict[str, Any]] = []
    curves: list[pd.DataFrame] = []
    for key, part in table.groupby(["workload", "training", "scheme"], sort=True):
        made = _one(part)
        if made is None:
            continue
        fit, curve = made
        name: dict[str, Any] = dict(zip(["workload", "training", "scheme"], key, strict=True))
        fits.append(name | fit)
        curves.append(curve.assign(**name))
    found = pd.DataFrame(fits, columns=[name for name in FIT if not name.startswith("flat_")])
    whole = pd.concat(curves, ignore_index=True)[CURVE] if curves else pd.DataFrame(columns=CURVE)
    keys = ["workload", "training", "scheme"]
    regions = flat_region(whole)[[*keys, "flat_from", "flat_to"]]
    return found.merge(regions, on=keys, how="left")[FIT], whole


def flat_region(horizons: pd.DataFrame) -> pd.DataFrame:
    """The widest run of neighbouring flat horizons around the best one, per scheme.

    Returns: workload, training, scheme, flat_from, flat_to (horizon fractions), best_horizon, best_ratio; a row
    only where intervals exist and the scheme was run at several horizons.
    """
    rows = []
    known = horizons[horizons["flat"].notna()]
    for key, part in known.groupby(["workload", "training", "scheme"], sort=True):
        if not part["best"].any():
            continue
        by_horizon = part.groupby("horizon_fraction", sort=True)["flat"].any()
        best = part[part["best"]].iloc[0]
        axis = by_horizon.index.to_numpy(dtype=float)
        if len(axis) < 2:
            continue  # one horizon has no neighbours to be flat with
        flat = by_horizon.to_numpy(dtype=bool)
        low = high = int(np.flatnonzero(axis == best["horizon_fraction"])[0])
        while low > 0 and flat[low - 1]:
            low -= 1
        while high < len(axis) - 1 and flat[high + 1]:
            high += 1
        rows.append((*key, axis[low], axis[high], best["horizon_fraction"], best["ratio"]))
    names = ["workload", "training", "scheme", "flat_from", "flat_to", "best_horizon", "best_ratio"]
    return pd.DataFrame(rows, columns=names)


def parabolas(x: Floats, y: Floats, seed: NDArray[np.int64], weights: Floats) -> Floats:
    """y = level + slope·x + curvature·x² with a level a seed, by least squares: one row of weights, one fit.

    Within seeds: (slope, curvature) solve Σ_s w_s Z_sᵀZ_s β = Σ_s w_s Z_sᵀy_s, Z = (x, x²) less its seed's mean;
    level = Σ_s w_s (ȳ_s − β·z̄_s) / Σ_s w_s. A seed that lacks horizons moves the level only by what it has.
    Args: x, y: shape (n,). seed: shape (n,), 0 … m−1. weights: shape (u, m), rows summing to 1.
    Returns: level, slope, curvature, shape (u, 3); NaN where fewer than three horizons carry weight.
    """
    powers = np.stack([x, x**2], axis=1)
    normal, moment, means = [], [], []
    for one in range(weights.shape[1]):
        mine = seed == one
        z_mean, y_mean = powers[mine].mean(axis=0), y[mine].mean()
        z = powers[mine] - z_mean
        normal.append(z.T @ z)
        moment.append(z.T @ (y[mine] - y_mean))
        means.append(np.append(z_mean, y_mean))
    a = np.tensordot(weights, np.stack(normal), axes=1)
    b = weights @ np.stack(moment)
    centre = weights @ np.stack(means)
    determinant = a[:, 0, 0] * a[:, 1, 1] - a[:, 0, 1] ** 2
    room = 1e-10 * a[:, 0, 0] * a[:, 1, 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(determinant > room, (a[:, 1, 1] * b[:, 0] - a[:, 0, 1] * b[:, 1]) / determinant, np.nan)
        curvature = np.where(determinant > room, (a[:, 0, 0] * b[:, 1] - a[:, 0, 1] * b[:, 0]) / determinant, np.nan)
    return np.stack([centre[:, 2] - slope * centre[:, 0] - curvature * centre[:, 1], slope, curvature], axis=1)


def lowest(coefficients: Floats, low: float, high: float) -> Floats:
    """Where each parabola is smallest within [low, high]: −slope / (2 curvature), or an edge. NaN stays NaN.

    Args: coefficients: shape (u, 3). Returns: shape (u,).
    """
    level, slope, curvature = coefficients.T
    with np.errstate(divide="ignore", invalid="ignore"):
        inside = np.clip(-slope / (2 * curvature), low, high)
    at_low = slope * low + curvature * low**2
    at_high = slope * high + curvature * high**2
    found = np.where(curvature > 0, inside, np.where(at_low <= at_high, low, high))
    return np.where(np.isnan(level), np.nan, found)


def _one(part: pd.DataFrame) -> tuple[dict[str, Any], pd.DataFrame] | None:
    known = part[part["ratio"].notna()]
    if known["horizon_fraction"].nunique() < 3:
        return None
    logs = np.log(known["horizon_fraction"].to_numpy(dtype=float))
    middle = float(logs.mean())  # the fit is solved around it, where x and x² are told apart best
    x, y = logs - middle, np.log(known["ratio"].to_numpy(dtype=float))
    seed, names = pd.factorize(known["seed"], sort=True)
    num = len(names)
    fitted = parabolas(x, y, seed, np.full((1, num), 1 / num))
    if np.isnan(fitted).any():
        return None
    weights, counts = multisets(num)
    draws, factor = parabolas(x, y, seed, weights), widening(num)
    ends = float(x.min()), float(x.max())
    best = float(lowest(fitted, *ends)[0])
    at = np.unique(np.append(np.linspace(*ends, GRID), best))
    log_ratio, low, high = interval(_value(fitted, at)[0], _value(draws, at), factor, counts, scale=1.0)
    place = int(np.flatnonzero(at == best)[0])
    flat = pd.array((low <= log_ratio[place]) & (log_ratio[place] <= high), dtype="boolean")
    flat[np.isnan(low)] = pd.NA
    optimum = interval(best, lowest(draws, *ends)[:, None], factor, counts, scale=1.0)[:, 0]
    optimum = np.exp(np.clip(optimum, *ends) + middle)
    curve = pd.DataFrame(
        {
            "horizon_fraction": np.exp(at + middle),
            "ratio": np.exp(log_ratio),
            "low": np.exp(low),
            "high": np.exp(high),
            "best": at == best,
            "flat": flat,
        }
    )
    fit = {
        **dict(zip(["optimum", "optimum_low", "optimum_high"], optimum.tolist(), strict=True)),
        "edge": best in ends,
        **{name: float(curve[column].iloc[place]) for name, column in _RATIO.items()},
        "slope": float(fitted[0, 1] + 2 * fitted[0, 2] * best),
        "curvature": float(fitted[0, 2]),
        "r2": _explained(x, y, seed, fitted[0]),
        "num_horizons": int(known["horizon_fraction"].nunique()),
        "num_seeds": num,
        "num_pairs": len(known),
        "num_left_out": len(part) - len(known),
        "bound": overall_bound(known["bound"]),
    }
    return fit, curve


_RATIO = {"ratio": "ratio", "ratio_low": "low", "ratio_high": "high"}


def _value(coefficients: Floats, at: Floats) -> Floats:
    return coefficients @ np.stack([np.ones_like(at), at, at**2])


def _explained(x: Floats, y: Floats, seed: NDArray[np.int64], fitted: Floats) -> float:
    num, within = np.bincount(seed), []
    for values in (y - fitted[1] * x - fitted[2] * x**2, y):
        means = np.bincount(seed, values) / num
        within.append(float(((values - means[seed]) ** 2).sum()))
    return 1 - within[0] / within[1] if within[1] > 0 else np.nan
