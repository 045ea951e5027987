"""Generalization: the best and the final validation metric of a full run, and what averaging changes in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from analysis.run_folder.records import rows_of_cells
from analysis.statistics.pairs import metric_changes
from analysis.statistics.resampling import Statistic, bootstrap_groups

SETTING = ["workload", "training", "setting"]
WORDS = ("worse", "none", "better")


def metrics_by_cell(cells: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: best_metric, best_step (the first with it), final_metric, signed (it was 0 or below at a time).

    final_metric is that of the last step trained; NaN where the run diverged or is unfinished, or where the
    cell has no finite record there. A best value over evaluations is optimistic, the more so the more there are.
    """
    columns = ["cell_id", *SETTING, "seed", "state", "last_step", "higher_is_better"]
    step, metric = records["step"].to_numpy(), records["metric"].to_numpy(dtype=np.float64, na_value=np.nan)
    finite = np.isfinite(metric) & ~records["diverged"].to_numpy(dtype=bool)
    rows, place = rows_of_cells(records), np.arange(len(records))
    found = []
    for cell in cells[columns].to_dict("records"):
        mine = place[rows.get(cell["cell_id"], slice(0))]
        mine = mine[finite[mine]]
        if len(mine) == 0:
            found.append((np.nan, np.nan, np.nan))
            continue
        best = mine[np.argmax(metric[mine]) if cell["higher_is_better"] else np.argmin(metric[mine])]
        is_final = cell["state"] == "finished" and step[mine[-1]] == cell["last_step"]
        found.append((metric[best], step[best], metric[mine[-1]] if is_final else np.nan))
    result = cells[columns].copy()
    result[["best_metric", "best_step", "final_metric"]] = np.array(found, dtype=np.float64).reshape(-1, 3)
    return result.assign(signed=result["cell_id"].isin(records.loc[records["metric"] <= 0, "cell_id"]))


def generalization(by_cell: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Per setting, over seeds of finished cells; differences are cell − baseline of the same schedule and seed.

    best_metric, final_metric, best_difference, final_difference: means with bootstrap _low and _high, NaN for
    one seed alone (a baseline has no difference) · num_seeds, num_pairs · effect, of final_difference:
    ``better``, ``worse``, ``none`` (the interval covers 0), None without an interval.
    """
    done = by_cell[by_cell["state"] == "finished"]
    if done.empty:
        return pd.DataFrame(columns=[*SETTING, "effect"])
    baseline = pairs[pairs["versus"] == "same schedule"].set_index("cell_id")["baseline_cell_id"]
    known = done.set_index("cell_id")
    for name in ("best", "final"):
        raw = done["cell_id"].map(baseline).map(known[f"{name}_metric"]).astype(float)
        done = done.assign(**{f"{name}_raw": raw, f"{name}_difference": done[f"{name}_metric"] - raw})
    table = over_seeds(done, ["best_metric", "final_metric", "best_difference", "final_difference"])
    groups = done.groupby(SETTING, sort=True)
    table.insert(4, "num_pairs", groups["final_raw"].count().to_numpy())
    higher = groups["higher_is_better"].first().astype(bool).to_numpy()
    table["effect"] = effect(ends_of(table, "final_difference"), higher)
    return table


def effect(found: Any, up: Any = True, words: Sequence[str] = WORDS, at: float = 0.0, equal: Any = False) -> Any:
    """What an interval says, or each of several: the last word where it lies above `at`, the first where below, the
    middle one where it covers it, None without an interval.

    Args: found: value, low, high, numbers or columns. up: the words count upwards. equal: seeds that all have the
    value `at` cover it, though they leave no interval.
    """
    value, low, high = (np.asarray(end, dtype=np.float64) for end in found)
    covers = ((low <= at) & (at <= high)) | (equal & (value == at))
    told: list[Any] = [words[1], None, words[2]]
    return np.select([covers, np.isnan(low), (value > at) == up], told, words[0]).tolist()


def ends_of(table: pd.DataFrame, name: str) -> tuple[pd.Series, ...]:
    """The columns name, name_low and name_high."""
    return tuple(table[f"{name}{end}"] for end in ("", "_low", "_high"))


def over_seeds(
    table: pd.DataFrame, columns: list[str], keys: Sequence[str] = SETTING, statistic: Statistic = "mean", **counts: Any
) -> pd.DataFrame:
    """One row a group: the mean of each column over its rows with bootstrap _low and _high.

    Args: keys: what makes a group, a setting if not told. counts: other columns, as `groupby.agg` has them; num_seeds
    if not told.
    """
    groups = table.groupby(list(keys), sort=True, dropna=False)
    number = np.asarray(groups.ngroup(), dtype=np.int64)
    found: pd.DataFrame = groups.agg(**(counts or {"num_seeds": ("seed", "nunique")})).reset_index()
    for name in columns:
        ends = bootstrap_groups(table[name].to_numpy(dtype=np.float64), number, len(found), statistic)
        found[[name, f"{name}_low", f"{name}_high"]] = ends.T
    return found


def final_changes(
    by_cell: pd.DataFrame, settings: pd.DataFrame, picked: pd.DataFrame, higher_is_better: Mapping[Any, bool]
) -> pd.DataFrame:
    """The change of the final metric against the baseline of the same training: `pairs.metric_changes`, known ones.

    A metric of either sign has no factor, so its cells take no part.
    Args: by_cell: of `metrics_by_cell`. settings: setting, scheme (of cells too). picked: whose settings.
    """
    rows = by_cell[~by_cell["signed"]].rename(columns={"final_metric": "value"})
    top = rows[rows["setting"].isin(picked["setting"])]
    none = settings.loc[settings["scheme"] == "none", "setting"]
    below = rows[rows["setting"].isin(none) & rows["training"].isin(top["training"])]
    changes = metric_changes(top, below, higher_is_better)
    return changes[changes["value"].notna()]
