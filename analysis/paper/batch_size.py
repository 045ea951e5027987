"""How the best averaging horizon goes with the batch size: γ → γ^κ at a batch κ times as large (Busbridge et al. 2023)
keeps an average's reach in examples, so its horizon in steps would go as 1/κ."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.pairs import by_workload
from analysis.paper.evidence import Evidence
from analysis.resampling import LEVEL, RESAMPLES, ROUNDING, Interval, counted_quantiles, multisets, small_sample_factor
from analysis.steps_to_target import steps_to_target
from analysis.study import percent

Floats = NDArray[np.float64]

OWN_LEVEL = 0.75  # share of the budget whose baseline's level is a batch size's own target


def best_horizons(of: Evidence, cells: pd.DataFrame) -> tuple[Interval, dict[str, str], pd.DataFrame] | None:
    """The exponent, words for its sentence, and the points: ratios by batch size and horizon. None without a fit.

    The target of a batch size is what its baseline has after OWN_LEVEL of the budget, median over seeds.
    Args: cells: of one workload, with their baselines; several trainings a batch size make no fit.
    """
    baseline = cells[(cells["scheme"] == "none") & (cells["state"] != "unfinished")]
    if baseline.duplicated(["batch_factor", "seed"]).any():
        return None
    levels = {training: of.metric(part, OWN_LEVEL)["value"].median() for training, part in baseline.groupby("training")}
    cells = cells[cells["training"].isin(levels)]
    steps = steps_to_target(cells.assign(target=cells["training"].map(levels).astype(float)), of.records)
    table = cells.merge(steps[["cell_id", "counted_steps", "censored"]], on="cell_id")
    table = table[table["counted_steps"].notna()]
    table = table.assign(
        y=np.log(table["counted_steps"].astype(float)), horizon=table["horizon_fraction"].astype(float)
    )
    below = table.loc[table["scheme"] == "none", ["training", "seed", "y"]].rename(columns={"y": "below"})
    table = table[table["scheme"] == "ema"].merge(below, on=["training", "seed"])
    table = table.assign(x=np.log(table["horizon"]), value=table["y"] - table["below"], factor=table["batch_factor"])
    table = table[table.groupby(["factor", "seed"])["x"].transform("nunique") >= 3]  # a parabola
    table = table[table.groupby("seed")["factor"].transform("nunique") > 1]
    if table.empty:
        return None
    points = []
    for (factor, horizon), part in table.groupby(["factor", "horizon"], sort=True):
        examples = round(float(str(factor)) * float(part["own_batch_size"].iloc[0]))
        points.append(by_workload(part).assign(series=f"batch {examples:,}", x=float(str(horizon))))
    best = table.groupby(["factor", "horizon"])["y"].mean().unstack().idxmin(axis=1)
    words = {"best": ", ".join(f"{factor:g} × {percent(horizon)}" for factor, horizon in best.items())}
    words["missed"] = f"{int(table['censored'].sum())} of {len(table)}"
    return horizon_exponent(table), words, pd.concat(points)


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
    if len(parts) < 2 or np.isnan(value):
        return Interval(value, np.nan, np.nan)
    weights, counts = multisets(len(parts), RESAMPLES, 0)
    draws = _beta(np.einsum("us,sij->uij", weights, products))
    if np.isnan(draws).any():
        return Interval(value, -np.inf, np.inf)
    low, high = counted_quantiles(draws[:, None], counts, np.array([(1 - LEVEL) / 2, (1 + LEVEL) / 2]))[:, 0]
    if high - low <= ROUNDING:  # the same for all seeds
        return Interval(value, np.nan, np.nan)
    factor = small_sample_factor(len(parts), len(parts) - 1)
    return Interval(value, value + factor * (low - value), value + factor * (high - value))


def _beta(products: Floats) -> Floats:
    """−d / 2c of each of the normal equations, shape (u, 4, 4); NaN where c ≤ 0: no minimum."""
    solved = np.linalg.solve(products[:, :3, :3], products[:, :3, 3:])[:, :, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(solved[:, 1] > 0, -solved[:, 2] / (2 * solved[:, 1]), np.nan)
