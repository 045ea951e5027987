"""Can averaging replace LR decay: averages on a constant or half-decayed LR against raw runs that decay fully."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.generalization import effect
from analysis.pairs import fixed_settings
from analysis.resampling import bootstrap

RULE = (
    "Averaging against decay: the final validation metric of a run minus that of the raw run with the same seed "
    "whose schedule ends at the smallest share of its peak LR. An average replaces the decay on a workload where "
    "the interval of this difference covers 0 or lies on the better side. The best-looking average of several is "
    "picked after the fact."
)


def against_decayed(
    cells: pd.DataFrame, axes: pd.DataFrame, by_cell: pd.DataFrame, scores: pd.DataFrame
) -> pd.DataFrame:
    """One row a setting of a workload whose schedules end at different LRs, but for the decayed raw one itself.

    Args: by_cell: of `generalization.metrics_by_cell`. scores: of `pairs.score`; it says which raw schedule
    stands for decay where several decay as far. Returns: workload, training, name, end_lr, setting, scheme,
    scheme_label · decayed: it is on the decayed schedule · versus: that schedule's name · fixed: its horizon was fixed
    beforehand · best: the best-looking average of its training · num_pairs · difference, with _low and _high, in units
    of the metric · effect: ``better``, ``worse``, ``none``, null without an interval.
    """
    axes = axes[axes["axis"] == "schedule"].merge(scores[["training", "rank"]], on="training", how="inner")
    final = by_cell[["cell_id", "final_metric"]]
    fixed = set(fixed_settings(cells).loc[lambda rows: rows["near"], "setting"])
    rows: list[dict[str, Any]] = []
    for workload, part in axes.groupby("workload", sort=True):
        if part["end_lr"].nunique() < 2:
            continue
        base = part.sort_values(["end_lr", "rank"], kind="stable").iloc[0]
        mine = cells[cells["training"].isin(part["training"])].merge(final, on="cell_id")
        raw = mine[(mine["training"] == base["training"]) & (mine["scheme"] == "none")]
        mine = mine.assign(change=mine["final_metric"] - mine["seed"].map(raw.set_index("seed")["final_metric"]))
        names = part.set_index("training")
        for (_, setting), group in mine.groupby(["training", "setting"], sort=True):
            one = group.iloc[0]
            if setting in set(raw["setting"]):
                continue
            change = bootstrap(group["change"].to_numpy(dtype=float))
            row = {"workload": workload, "training": one["training"], "name": names["name"][one["training"]]}
            row |= {"end_lr": names["end_lr"][one["training"]], "setting": setting, "scheme": one["scheme"]}
            row |= {"scheme_label": one["scheme_label"], "decayed": one["training"] == base["training"]}
            row |= {
                "versus": base["name"],
                "fixed": setting in fixed,
                "num_pairs": int(group["change"].notna().sum()),
            }
            row |= {"difference": change.value, "difference_low": change.low, "difference_high": change.high}
            higher = bool(one["higher_is_better"])
            row |= {"effect": effect(change, higher), "worth": change.value if higher else -change.value}
            rows.append(row)
    columns = [
        "workload",
        "training",
        "name",
        "end_lr",
        "setting",
        "scheme",
        "scheme_label",
        "decayed",
        "versus",
    ]
    columns += ["fixed", "best", "num_pairs", "difference", "difference_low", "difference_high", "effect"]
    if not rows:
        return pd.DataFrame(columns=columns)
    table = pd.DataFrame(rows)
    worth = table["worth"].where(table["scheme"] != "none")
    first = worth.dropna().groupby(table["training"]).idxmax()  # the first among equals
    table["best"] = table.index.isin(first)
    order = np.lexsort((table["setting"], -table["end_lr"], table["workload"]))
    return table.iloc[order][columns].reset_index(drop=True)
