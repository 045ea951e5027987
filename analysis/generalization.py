"""Generalization: the best and the final validation metric of a full run, and what averaging changes in them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from analysis.intervals import Interval, bootstrap
from analysis.records import BESIDE


def metrics_by_cell(cells: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """One row a cell: best_metric, best_step (the first with it), final_metric.

    final_metric is that of the last step trained; null where the run diverged or is unfinished, or where the
    cell has no finite record there. A best value over evaluations is optimistic, the more so the more there are.
    """
    finite = records[np.isfinite(records["metric"].astype(float)) & ~records["diverged"].astype(bool)]
    columns = ["cell_id", "workload", "training", "setting", "seed", "state", "last_step", "higher_is_better"]
    table = finite[["cell_id", "step", "metric"]].merge(cells[columns], on="cell_id")
    sign = np.where(table["higher_is_better"].astype(bool), -1.0, 1.0)
    table = table.assign(badness=sign * table["metric"])
    best = table.sort_values(["badness", "step"], kind="stable").groupby("cell_id").head(1)
    final = table[(table["step"] == table["last_step"]) & (table["state"] == "finished")]
    result = cells[columns].copy()
    result["best_metric"] = result["cell_id"].map(best.set_index("cell_id")["metric"])
    result["best_step"] = result["cell_id"].map(best.set_index("cell_id")["step"])
    result["final_metric"] = result["cell_id"].map(final.set_index("cell_id")["metric"])
    return result


def generalization(by_cell: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """Per setting, over seeds of finished cells; differences are cell − baseline of the same schedule and seed.

    best_metric, final_metric, best_difference, final_difference: means with bootstrap _low and _high, null for
    one seed alone (a raw setting has no difference) · num_seeds, num_pairs · effect, of final_difference:
    ``better``, ``worse``, ``none`` (the interval covers 0), null without an interval.
    """
    done = by_cell[by_cell["state"] == "finished"]
    same = pairs[pairs["versus"] == "same schedule"][["cell_id", "baseline_cell_id"]]
    raw = done[["cell_id", "best_metric", "final_metric"]].rename(
        columns={"cell_id": "baseline_cell_id", "best_metric": "raw_best", "final_metric": "raw_final"}
    )
    done = done.merge(same.merge(raw, on="baseline_cell_id", how="inner"), on="cell_id", how="left")
    rows: list[dict[str, Any]] = []
    for key, part in done.groupby(["workload", "training", "setting"], sort=True):
        row: dict[str, Any] = dict(zip(["workload", "training", "setting"], key, strict=True))
        final = _interval(part["final_metric"] - part["raw_final"])
        row |= {"num_seeds": part["seed"].nunique(), "num_pairs": int(part["raw_final"].notna().sum())}
        row |= _named("best_metric", _interval(part["best_metric"]))
        row |= _named("final_metric", _interval(part["final_metric"]))
        row |= _named("best_difference", _interval(part["best_metric"] - part["raw_best"]))
        row |= _named("final_difference", final)
        row["effect"] = effect(final, bool(part["higher_is_better"].iloc[0]))
        rows.append(row)
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=["workload", "training", "setting", "effect"])


def metrics_beside(cells: pd.DataFrame, records: pd.DataFrame, pairs: pd.DataFrame) -> pd.DataFrame:
    """What stands beside the target metric, at the end of training: one row a (setting, metric).

    workload, training, setting, metric · num_seeds, of finished cells with a finite value at their last step ·
    final, and difference: cell − baseline of the same schedule and seed: means with bootstrap _low and _high, null
    for one seed alone (a raw setting has no difference).
    """
    names = [name for name in records.columns if name.startswith(BESIDE)]
    columns = ["cell_id", "workload", "training", "setting", "seed", "last_step"]
    finished = cells[cells["state"] == "finished"][columns]
    last = records[["cell_id", "step", *names]].merge(finished, on="cell_id")
    last = last[last["step"] == last["last_step"]]
    same = pairs[pairs["versus"] == "same schedule"].set_index("cell_id")["baseline_cell_id"]
    rows: list[dict[str, Any]] = []
    for name in names:
        values = last.set_index("cell_id")[name].astype(float)
        table = last.assign(value=last[name].astype(float))
        table["difference"] = table["value"] - table["cell_id"].map(same).map(values)
        table = table[np.isfinite(table["value"])]
        for key, part in table.groupby(["workload", "training", "setting"], sort=True):
            row: dict[str, Any] = dict(zip(["workload", "training", "setting"], key, strict=True))
            row |= {"metric": name.removeprefix(BESIDE), "num_seeds": part["seed"].nunique()}
            row |= _named("final", _interval(part["value"]))
            row |= _named("difference", _interval(part["difference"]))
            rows.append(row)
    empty = pd.DataFrame(columns=["workload", "training", "setting", "metric"])
    return pd.DataFrame(rows).sort_values(["workload", "setting", "metric"]) if rows else empty


def effect(difference: Interval, higher_is_better: bool) -> str | None:
    """``better`` or ``worse`` where the interval leaves out 0, ``none`` where it covers it, null without one."""
    if np.isnan(difference.low):
        return None
    if difference.low <= 0 <= difference.high:
        return "none"
    return "better" if (difference.value > 0) == higher_is_better else "worse"


def _interval(values: pd.Series) -> Interval:
    return bootstrap(values.to_numpy(dtype=float), "mean")


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
