"""How much the choice of the averaging horizon matters: the horizon × workload map and its flat region."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

RULE = (
    "A horizon lies in the flat region of its scheme if the 95 % interval of its ratio covers the best ratio any "
    "horizon of that scheme has on this workload and schedule. The best is picked after the fact and looks better "
    "than it is; the horizon fixed beforehand does not."
)


def horizon_map(ratios: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """One row a (workload, training, scheme, setting) against the baseline of the same schedule.

    LAWA and EMA on one axis, horizon_fraction. ratio, low, high: geometric mean over seeds · median ·
    num_pairs · bound (see `analysis.pairs.ratios`) · best: the smallest ratio of its scheme here (the
    first among equals), lower bounds apart · flat: its interval covers that best ratio; null where it has none.
    """
    columns = ["setting", "scheme", "scheme_label", "horizon_fraction", "horizon_steps", "every_steps"]
    same = ratios[ratios["versus"] == "same schedule"]
    table = same.merge(cells.drop_duplicates("setting")[columns], on="setting", how="left")
    table = table[table["horizon_fraction"].notna()].rename(
        columns={"geometric_mean": "ratio", "geometric_mean_low": "low", "geometric_mean_high": "high"}
    )
    candidate = table["ratio"].where(~table["bound"].isin(["at least", "mixed", "none"]))
    group = [table[name] for name in ("workload", "training", "scheme")]
    smallest = candidate.groupby(group).transform("min")
    flat = ((table["low"] <= smallest) & (smallest <= table["high"])).astype("boolean")
    table["best"] = candidate.notna() & (candidate == smallest)
    table["best"] &= table.groupby(["workload", "training", "scheme", "best"]).cumcount() == 0
    table["flat"] = flat.where(table["low"].notna() & smallest.notna())
    keep = ["workload", "training", "scheme", "setting", "scheme_label", "horizon_fraction", "horizon_steps"]
    keep += ["every_steps", "ratio", "low", "high", "median", "num_pairs", "bound", "best", "flat"]
    order = ["workload", "training", "scheme", "horizon_fraction", "setting"]
    return table.sort_values(order, kind="stable")[keep].reset_index(drop=True)


def flat_region(horizons: pd.DataFrame) -> pd.DataFrame:
    """From the map: the widest run of neighbouring flat horizons around the best one, per scheme.

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


def reaches(flat_from: Any, flat_to: Any, horizon: float) -> Any:
    """Whether a flat region holds a horizon; 5 % of room, since horizons are rounded to snapshots. Elementwise."""
    return (flat_from <= horizon * 1.05) & (flat_to >= horizon / 1.05)
