"""ν × k and ν × γ: at one averaging horizon, does it matter how often an average looks at the weights?"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.resampling import bootstrap

EQUAL = 1.3  # horizons within this factor of one another count as equal

RULE = (
    "Equal horizon: the settings of a scheme whose horizons lie within a factor 1.3 of the shortest of their group. "
    "In each group with several snapshot intervals the rarest snapshots are set against the most frequent ones, "
    "steps-to-target paired by seed, a miss counted at the step budget, a pair that both miss left out. The spread of "
    "a group is its largest "
    "steps-to-target ratio ÷ its smallest; beside it, the middle width of the interval of one setting."
)
MEMORY = {"lawa": "k", "ema": "ema_decay"}


def snapshot_grid(horizons: pd.DataFrame, cells: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """The settings that form a grid of snapshot interval × memory, of `robustness.horizon_map`.

    A value of either axis that has but one of the other is no part of it. Returns the map's columns (ratio, low, high,
    bound, horizon_fraction, every_steps, …) and memory (k, or γ to 6 digits) · num_missed of num_seeds.
    """
    missed = steps.merge(cells[["cell_id", "setting"]], on="cell_id")
    missed = missed.assign(missed=missed["status"].isin(["missed", "diverged"]))
    counts = missed.groupby("setting")["missed"].agg(num_missed="sum", num_seeds="size")
    axes = cells.drop_duplicates("setting")[["setting", *MEMORY.values()]]
    table = horizons.merge(axes, on="setting", how="left").join(counts, on="setting")
    chosen = [table[MEMORY[s]].iloc[i] if s in MEMORY else None for i, s in enumerate(table["scheme"])]
    table["memory"] = pd.to_numeric(pd.Series(chosen, index=table.index), errors="coerce").astype(float).round(6)
    table = table[table["memory"].notna()].drop(columns=list(MEMORY.values()))
    groups = ["workload", "training", "scheme"]
    table = table.sort_values([*groups, "every_steps", "memory", "setting"], kind="stable")
    table = table.drop_duplicates([*groups, "every_steps", "memory"])
    while len(table):
        alone = pd.Series(False, index=table.index)
        for one, other in (("memory", "every_steps"), ("every_steps", "memory")):
            alone |= table.groupby([*groups, one])[other].transform("nunique") < 2
        if not alone.any():
            break
        table = table[~alone]
    return table.reset_index(drop=True)


def snapshot_interval(horizons: pd.DataFrame, cells: pd.DataFrame, steps: pd.DataFrame) -> pd.DataFrame:
    """One row a group of equal horizon with several snapshot intervals: the rarest against the most frequent.

    Returns: workload, training, scheme · horizon_from, horizon_to (shares of the step budget), num_settings · finest,
    coarsest (steps between snapshots) and their settings · ratio: steps-to-target of the coarsest ÷ the finest,
    geometric mean, _low, _high · num_pairs, num_missed (pairs in which one misses) · spread, width: see RULE ·
    effect: ``rarer is slower``, ``rarer is faster``, ``none``, null without an interval.
    """
    counted = steps[["cell_id", "counted_steps", "censored"]].merge(cells[["cell_id", "setting", "seed"]], on="cell_id")
    by_seed = {setting: part.set_index("seed") for setting, part in counted.groupby("setting")}
    rows: list[dict[str, Any]] = []
    for key, part in horizons.groupby(["workload", "training", "scheme"], sort=True):
        part = part.sort_values(["horizon_fraction", "setting"], kind="stable")
        for group in _groups(part):
            if group["every_steps"].nunique() < 2:
                continue
            order = group.sort_values(["every_steps", "setting"], kind="stable")
            fine, coarse = order.iloc[0], order.iloc[-1]
            sides = [by_seed[int(one["setting"])] for one in (fine, coarse) if int(one["setting"]) in by_seed]
            if len(sides) < 2:
                continue
            pairs = sides[0].merge(sides[1], on="seed", suffixes=("_fine", "_coarse"))
            both = pairs["censored_fine"].astype(bool) & pairs["censored_coarse"].astype(bool)
            ratio = (pairs["counted_steps_coarse"] / pairs["counted_steps_fine"]).where(~both)
            value = ratio.to_numpy(dtype=float)
            found = bootstrap(value, "geometric_mean")
            row = dict(zip(["workload", "training", "scheme"], key, strict=True))
            row |= {
                "horizon_from": group["horizon_fraction"].min(),
                "horizon_to": group["horizon_fraction"].max(),
            }
            row |= {"num_settings": len(group), "finest": int(fine["every_steps"])}
            row |= {"coarsest": int(coarse["every_steps"]), "finest_setting": int(fine["setting"])}
            row |= {"coarsest_setting": int(coarse["setting"]), "num_pairs": int(np.isfinite(value).sum())}
            row["num_missed"] = int((pairs["censored_fine"] | pairs["censored_coarse"]).sum())
            row |= {"ratio": found.value, "ratio_low": found.low, "ratio_high": found.high}
            row["spread"] = float(group["ratio"].max() / group["ratio"].min())
            row["width"] = float((group["high"] / group["low"]).median())
            sure = not (found.low <= 1 <= found.high)
            word = "rarer is slower" if found.value > 1 else "rarer is faster"
            row["effect"] = None if np.isnan(found.low) else word if sure else "none"
            if np.isfinite(value).sum() > 1 and found.value == 1:
                row["effect"] = "none"  # equal in all seeds: no interval, and no effect is shown
            rows.append(row)
    columns = [
        "workload",
        "training",
        "scheme",
        "horizon_from",
        "horizon_to",
        "num_settings",
        "finest",
        "coarsest",
    ]
    columns += [
        "finest_setting",
        "coarsest_setting",
        "num_pairs",
        "num_missed",
        "ratio",
        "ratio_low",
        "ratio_high",
    ]
    return pd.DataFrame(rows, columns=[*columns, "spread", "width", "effect"])


def _groups(part: pd.DataFrame) -> list[pd.DataFrame]:
    """Runs of rows, sorted by horizon, that lie within EQUAL of the first of their run."""
    number, start, labels = -1, 0.0, []
    for horizon in part["horizon_fraction"].to_numpy(dtype=float):
        if horizon > start * EQUAL * (1 + 1e-9):
            number, start = number + 1, horizon
        labels.append(number)
    return [group for _, group in part.groupby(np.array(labels, dtype=int), sort=True)]
