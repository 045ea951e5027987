"""Any setting against any other, seed by seed, on each workload and over all of them.

`savings` pairs an average with the raw run of its own training; the paper's other questions pair a long averaged run
with a short annealed one, one horizon with another, or one schedule with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import binom

from analysis.intervals import (
    LEVEL,
    RESAMPLES,
    ROUNDING,
    Interval,
    bootstrap,
    ends_of_draws,
    resample,
    small_sample_factor,
)
from analysis.pooled import FEWEST, resample_workloads
from analysis.savings import ratios_by_seed

Floats = NDArray[np.float64]

KEYS = ["workload", "seed"]


def steps_ratios(top: pd.DataFrame, bottom: pd.DataFrame, steps: pd.DataFrame, hours: pd.DataFrame) -> pd.DataFrame:
    """steps-to-target of `top` ÷ that of `bottom`, paired by workload and seed; misses count as in `savings.RULE`.

    Args: top, bottom: rows of `analysis.study.describe`, at most one a (workload, seed). steps: of
    `analysis.steps_to_target`. hours: of `analysis.device_hours.hours_to_target`.
    Returns: workload, seed, value (the log of the ratio; NaN where both miss or one is not finished), bound.
    """
    pairs = top[[*KEYS, "training", "setting", "cell_id"]].merge(
        bottom[[*KEYS, "cell_id"]].rename(columns={"cell_id": "baseline_cell_id"}), on=KEYS
    )
    table = ratios_by_seed(pairs.assign(versus="pair"), steps, hours)
    return table.assign(value=np.log(table["ratio"].astype(float)))[[*KEYS, "value", "bound"]]


def metric_changes(top: pd.DataFrame, bottom: pd.DataFrame, higher_is_better: Mapping[Any, bool]) -> pd.DataFrame:
    """log(metric of `top` ÷ metric of `bottom`) by workload and seed, negative where `top` is better.

    Args: top, bottom: workload, seed, value (a metric). higher_is_better: by workload. Returns: workload, seed, value;
    NaN where either metric is not above 0, of which a factor says nothing.
    """
    pairs = top[[*KEYS, "value"]].merge(bottom[[*KEYS, "value"]], on=KEYS, suffixes=("", "_other"))
    sign = np.where(pairs["workload"].map(dict(higher_is_better)).astype(bool), -1.0, 1.0)
    mine, other = pairs["value"].astype(float), pairs["value_other"].astype(float)
    change = sign * np.log((mine / other).where((mine > 0) & (other > 0)))
    return pairs[KEYS].assign(value=change)


def by_workload(pairs: pd.DataFrame) -> pd.DataFrame:
    """exp(mean over seeds of value) of each workload with its interval.

    Returns: workload, value, low, high, num_pairs.
    """
    rows = []
    for workload, part in pairs.groupby("workload", sort=True):
        found = bootstrap(np.exp(part["value"].to_numpy(dtype=float)), "geometric_mean")
        rows.append((workload, *found, int(part["value"].notna().sum())))
    return pd.DataFrame(rows, columns=["workload", "value", "low", "high", "num_pairs"])


def over_workloads(pairs: pd.DataFrame) -> Interval:
    """exp of the mean over workloads of the mean over seeds of value; workloads and the seeds within are resampled.

    With fewer than FEWEST workloads only the seeds are, and the interval speaks of these workloads.
    Args: pairs: workload, seed, value. Returns: Interval; low and high NaN where a workload has one seed, or all
    seeds are equal.
    """
    known = pairs[pairs["value"].notna()]
    strata = [part["value"].to_numpy(dtype=float) for _, part in known.groupby("workload", sort=True)]
    if not strata:
        return Interval(np.nan, np.nan, np.nan)
    value = float(np.mean([part.mean() for part in strata]))
    if min(len(part) for part in strata) < 2:
        return Interval(float(np.exp(value)), np.nan, np.nan)
    draws: Floats = np.stack(
        [part[resample(len(part), RESAMPLES, 1 + i)].mean(axis=1) for i, part in enumerate(strata)], axis=-1
    )
    sizes = np.array([len(part) for part in strata])
    if len(strata) >= FEWEST:
        draws = resample_workloads(draws[None])[0]
        factor = small_sample_factor(len(strata), len(strata) - 1)
    else:
        factor = small_sample_factor(float(sizes.min()), float((sizes - 1).sum()))
    low, high = ends_of_draws(draws.mean(axis=1))
    if high - low <= ROUNDING:  # no two differ: how far others would is not known
        return Interval(float(np.exp(value)), np.nan, np.nan)
    return Interval(
        float(np.exp(value)),
        float(np.exp(value + factor * (low - value))),
        float(np.exp(value + factor * (high - value))),
    )


def sides(table: pd.DataFrame) -> tuple[list[str], list[str], list[str]]:
    """Workloads whose interval lies below 1, covers it, lies above it. Args: table: of `by_workload`."""
    below = table.loc[table["high"] < 1, "workload"]
    above = table.loc[table["low"] > 1, "workload"]
    covers = table.loc[(table["low"] <= 1) & (table["high"] >= 1), "workload"]
    return list(below), list(covers), list(above)


def counted(pairs: pd.DataFrame, below: str, above: str) -> str:
    """'fewer on 2 of 9 (a, b), more on 1 (c), undecided on 6', from each workload's interval.

    The chance that so many would be on that side by luck stands with them: binomial, (1 − LEVEL)/2 a workload.
    """
    low, _, high = sides(by_workload(pairs))
    total = pairs["workload"].nunique()
    parts = []
    for names, word in ((low, below), (high, above)):
        if names:
            chance = float(binom.sf(len(names) - 1, total, (1 - LEVEL) / 2))
            luck = "below 0.1 %" if chance < 0.001 else f"{100 * chance:.2g} %"
            parts.append(f"{word} on {len(names)} of {total} ({', '.join(names)}; by luck alone {luck})")
    if left := total - len(low) - len(high):
        parts.append(f"undecided on {left} of {total}")
    return ", ".join(parts)
