"""Sentences on the saving curves: where averaging pays most, and from which level on nothing is left to save."""

from __future__ import annotations

import numpy as np
import pandas as pd

from analysis.pairs import in_front
from analysis.pooled_curve import SAME
from analysis.resampling import Interval, with_interval
from analysis.study import SCHEME_NAMES, percent
from analysis.tables import Tables

SHARES = (0.5, 0.75, 0.9)  # an easy, a middling and a tight level
UNITS = {"": "steps", "hours_": "device-hours"}


def findings(tables: Tables) -> list[str]:
    """Each scheme over all workloads, in steps and in device-hours, then each workload at three levels."""
    pooled = tables.pooled_curve[tables.pooled_curve["versus"] == SAME]
    found = []
    for scheme, part in pooled.groupby("scheme", sort=True):
        name = SCHEME_NAMES.get(str(scheme), str(scheme))
        found += [
            over_workloads(part[part[f"{prefix}ratio"].notna()], name, prefix, unit)
            for prefix, unit in UNITS.items()
            if part[f"{prefix}ratio"].notna().any()
        ]
    return found + _by_workload(tables)


def over_workloads(part: pd.DataFrame, name: str, prefix: str, unit: str) -> str:
    """The lowest ratio of a pooled curve with its level, and from where to its end the interval is not below 1.

    Args: part: rows of one scheme of `analysis.pooled_curve.pooled_curve`. prefix: of its columns, by UNITS.
    """
    whole = bool(part[f"{prefix}low"].notna().any())
    ends = [f"{prefix}{'' if whole else 'seeds_'}{end}" for end in ("low", "high")]
    table = part[["share", f"{prefix}ratio", *ends, "num_at_least"]].set_axis(
        ["share", "ratio", "low", "high", "num_at_least"], axis=1
    )
    best = table.iloc[int(table["ratio"].argmin())]
    end = best["ratio"] if np.isnan(best["high"]) else best["high"]
    lead = "it pays most" if end < 1 else "the ratio is lowest"
    text = (
        f"{name} in {unit}, over {part['num_workloads'].max()} workloads: {lead} at the level the baseline reaches "
        f"after {percent(best['share'])} of its training, {_interval(best)}."
    )
    table = table[table["low"].notna()]
    if table.empty:
        few = (part.get("num_pairs", part["num_workloads"]) <= part["num_workloads"]).all()
        return f"{text} {'One seed gives' if few else 'Equal seeds give'} no interval."
    below = table["high"] < 1
    if below.iloc[-1]:
        return f"{text} It still saves at the baseline's best: {_interval(table.iloc[-1])}."
    after = table[below[::-1].cumsum()[::-1] == 0]  # the last level that is below
    first = after.iloc[0]
    verb = "covers 1 or lies above it" if (after["low"] > 1).any() else "covers 1"
    where = f"From {percent(first['share'])} on" if below.any() else "At every level"
    text += f" {where} its interval {verb} ({_interval(first)} there): no effect is shown."
    missed = table[table["num_at_least"] > 0]
    if len(missed):
        text += f" Some averages miss levels from {percent(missed['share'].iloc[0])} on: lower bounds there."
    return text


def _interval(row: pd.Series) -> str:
    return with_interval(Interval(row["ratio"], row["low"], row["high"]))


def _by_workload(tables: Tables) -> list[str]:
    curve = tables.saving_curve[tables.saving_curve["versus"] == SAME]
    shares = ", ".join(percent(share) for share in SHARES)
    found = []
    for chosen in in_front(tables.chosen).to_dict("records"):
        mine = curve[curve["setting"] == chosen["setting"]]
        at = pd.concat([mine[np.isclose(mine["share"], share)] for share in SHARES])
        if len(at) == len(SHARES) and at["ratio"].notna().all():
            found.append(
                f"{chosen['workload']}, {chosen['scheme_label']}: {', '.join(at['ratio'].map('{:.2f}'.format))} at the "
                f"levels the baseline reaches after {shares} of its training."
            )
    return found
