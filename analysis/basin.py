"""How wide the basin of good peak LRs is, and whether averaging widens it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.resampling import bootstrap

NEAR_BEST = 1.1  # times a scheme's own smallest steps-to-target
REACHES, NEAR = "reaches the target", "lies within 10 % of its own best"

RULE = (
    "Width of the basin, in octaves (factors of two) of the peak LR, seed by seed, within the grid that was run. "
    "Reaches the target: the part of the grid's range on which the best validation metric, linear in log LR between "
    "two LRs, meets the target. Within 10 % of its own best: the part on which steps-to-target, linear likewise and "
    "counted at the step budget where missed, are at most 1.1 times the fewest this scheme needs at any LR. The "
    "difference of average and raw is paired by seed. A seed of which some LR is still training takes no part yet."
)


def widths(cells: pd.DataFrame, axes: pd.DataFrame, steps: pd.DataFrame, by_cell: pd.DataFrame) -> pd.DataFrame:
    """One row a (workload, rule, averaging, seed) of a workload whose trainings differ in their peak LR alone.

    Args: steps: of `steps_to_target`. by_cell: of `generalization.metrics_by_cell`. Returns: workload, rule,
    averaging, scheme, scheme_label, seed, width (octaves; null while an LR is training), grid (octaves), num_lrs,
    num_met, at_edge (the basin touches an end of the grid, so that it may be wider).
    """
    trainings = axes.loc[axes["axis"] == "lr", "training"]
    columns = ["cell_id", "workload", "averaging", "scheme", "scheme_label", "seed", "lr", "state", "higher_is_better"]
    table = cells.loc[cells["training"].isin(trainings) & cells["target"].notna(), columns]
    known = ["cell_id", "target", "status", "counted_steps", "step_budget"]
    table = table.merge(steps[known], on="cell_id").merge(by_cell[["cell_id", "best_metric"]], on="cell_id")
    rows: list[dict[str, Any]] = []
    keys = ["workload", "averaging", "scheme", "scheme_label", "seed"]
    for key, part in table.sort_values("lr").groupby(keys, sort=True):
        x = np.log2(part["lr"].to_numpy(dtype=float))
        sign = 1.0 if part["higher_is_better"].iloc[0] else -1.0
        met = (part["status"] == "met").to_numpy()
        budget = float(part["step_budget"].iloc[0])
        waiting = bool((part["state"] == "unfinished").any())
        # A missed LR lies beyond the budget by no more than rounding: it ends the basin and is not part of it.
        counted = np.where(met, part["counted_steps"].to_numpy(dtype=float), budget * (1 + 1e-9))
        best = (sign * part["best_metric"].to_numpy(dtype=float), sign * float(part["target"].iloc[0]))
        near = (-counted, -min(NEAR_BEST * float(counted.min()), budget))
        for rule, (quality, goal) in {REACHES: best, NEAR: near}.items():
            inside = (quality >= goal) & met.any()
            row = dict(zip(keys, key, strict=True)) | {"rule": rule, "grid": float(x[-1] - x[0])}
            row |= {"num_lrs": len(x), "num_met": int(met.sum()), "at_edge": bool(inside[0] or inside[-1])}
            wide = width_where(x, quality, goal) if met.any() else 0.0
            rows.append(row | {"width": np.nan if waiting else wide})
    columns = ["workload", "rule", *keys[1:], "width", "grid", "num_lrs", "num_met", "at_edge"]
    found = pd.DataFrame(rows, columns=columns)
    return found.sort_values(["workload", "rule", "averaging", "seed"], kind="stable").reset_index(drop=True)


def basins(by_seed: pd.DataFrame) -> pd.DataFrame:
    """Over seeds, of `widths`: one row a (workload, rule, averaging).

    width: mean, with _low and _high · difference: to the raw runs with the same seed, likewise · effect: ``wider``,
    ``narrower``, ``none`` (the interval covers 0), null without an interval · num_seeds, num_pending · num_met of
    num_runs (LR, seed) met the target · num_at_edge: seeds whose basin touches an end of the grid.
    """
    raw = by_seed[by_seed["scheme"] == "none"].set_index(["workload", "rule", "seed"])["width"]
    rows: list[dict[str, Any]] = []
    keys = ["workload", "rule", "averaging", "scheme", "scheme_label"]
    for key, part in by_seed.groupby(keys, sort=True):
        row: dict[str, Any] = dict(zip(keys, key, strict=True))
        row |= {"grid": part["grid"].iloc[0], "num_seeds": len(part), "num_pending": int(part["width"].isna().sum())}
        row |= {"num_met": int(part["num_met"].sum()), "num_runs": int(part["num_lrs"].sum())}
        row["num_at_edge"] = int(part["at_edge"].sum())
        paired = raw.reindex(pd.MultiIndex.from_frame(part[["workload", "rule", "seed"]])).to_numpy(dtype=float)
        own = part["width"].to_numpy(dtype=float)
        change = bootstrap(own - paired if row["scheme"] != "none" else np.full(len(part), np.nan))
        for name, interval in (("width", bootstrap(own)), ("difference", change)):
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        # Equal in all seeds: no interval, and no effect is shown.
        unknown = np.isnan(change.low) and not (len(part) > 1 and change.value == 0)
        row["effect"] = None if unknown else "none"
        if change.low > 0 or change.high < 0:
            row["effect"] = "wider" if change.low > 0 else "narrower"
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*keys, "width", "difference", "effect"])


def width_where(x: NDArray[np.float64], quality: NDArray[np.float64], goal: float) -> float:
    """The length of the part of [x₀, xₙ] on which `quality`, linear between points, is at least `goal`.

    A point without a quality (NaN) is as far below as can be. Args: x, quality: shape (n,), x increasing.
    """
    above = np.where(np.isnan(quality), -np.inf, quality - goal)
    total = 0.0
    for width, left, right in zip(np.diff(x), above[:-1], above[1:], strict=True):
        low, high = min(left, right), max(left, right)
        if low >= 0:
            total += width
        elif high > 0 and np.isfinite(low):
            total += width * high / (high - low)
    return float(total)
