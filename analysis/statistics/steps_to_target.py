"""Steps-to-target: when a cell's metric first meets the target, known only within one evaluation interval."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.run_folder.records import rows_of_cells

HELD = 3  # evaluations in a row that all meet the target

Floats = NDArray[np.float64]


class Crossing(NamedTuple):
    """The target is first met within (lower, upper] steps, at `point` by interpolation; all NaN when never met.

    Numbers for one target, shape (m,) for m.
    """

    lower: Any
    upper: Any
    point: Any


NEVER = Crossing(np.nan, np.nan, np.nan)


def first_crossing(steps: Floats, metric: Floats, target: float, higher: bool, in_a_row: int = 1) -> Crossing:
    """`first_crossings` of one target."""
    found = first_crossings(steps, metric, np.array([target], dtype=np.float64), higher, in_a_row)
    return Crossing(*(float(one[0]) for one in found))


def first_crossings(steps: Floats, metric: Floats, targets: Floats, higher: bool, in_a_row: int = 1) -> Crossing:
    """The first of `in_a_row` consecutive evaluations that all meet each target.

    upper = s_i with i the first such evaluation; lower = s_{i-1}, or 0; between them linear in the metric:
    point = s_{i-1} + (s_i − s_{i-1}) (target − m_{i-1}) / (m_i − m_{i-1}), and s_i where m_{i-1} is not there.
    A metric equal to the target meets it; NaN and infinities never do. Fewer than `in_a_row` evaluations
    before the end cannot meet it.

    Args: steps, metric: shape (n,), steps increasing. targets: metric values, shape (m,), NaN is never met. higher:
    greater is better. Returns: lower, upper, point, shape (m,) each.
    """
    found = np.full((3, len(targets)), np.nan)
    quality, goals = _quality(metric, higher), (targets if higher else -targets)
    if len(quality) < in_a_row:
        return Crossing(*found)
    # The first to meet a target is the first at which the best so far does, and that is sorted.
    worst = np.lib.stride_tricks.sliding_window_view(quality, in_a_row).min(axis=1)
    index = np.searchsorted(np.maximum.accumulate(worst), np.where(np.isnan(goals), np.inf, goals))
    met = np.flatnonzero(index < len(worst))
    at = index[met]
    lower, upper, before, after = np.where(at > 0, steps[at - 1], 0.0), steps[at], quality[at - 1], quality[at]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        between = lower + (upper - lower) * (goals[met] - before) / (after - before)
    found[:, met] = lower, upper, np.where((at == 0) | np.isneginf(before), upper, between)
    return Crossing(*found)


def grid_sd(lower: Any, upper: Any) -> Floats:
    """Standard deviation of the log of a crossing that lies anywhere in (lower, upper] steps; 0 where never met.

    √(1 − (h / sinh h)²) with h = ½ ln(upper/lower), of a uniform distribution: ln(upper/lower)/√12 where the interval
    is short, 1 where it begins at step 0.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        half = 0.5 * np.log(np.asarray(upper, dtype=np.float64) / np.asarray(lower, dtype=np.float64))
        share = np.where(half > 1e-6, half / np.sinh(half), 1.0)
    share = np.where(np.isinf(half), 0.0, share)
    return np.asarray(np.where(np.isnan(half), 0.0, np.sqrt(1 - np.minimum(share, 1.0) ** 2)))


def steps_to_target(cells: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """One row a cell that has a target, whether it meets it or not.

    Args: cells: of `study.progress`. records: validation records, sorted by (cell_id, step).
    Returns, in steps unless named otherwise:
      cell_id, target · status: ``met`` | ``missed`` | ``diverged`` | ``unfinished`` ·
      censored: not met by the end · lower, upper, point: of `first_crossing` · held_lower, held_upper,
      held_point, held_censored: of HELD evaluations in a row · lost_again: a later evaluation does not meet ·
      counted_steps: the point; where missed a lower bound of it, `least_steps` · held_counted_steps likewise ·
      ranked_steps, for medians and ranks: the point; where missed the step budget, so that no miss stands before
      a run that met. All three NaN while unfinished.
    """
    series = curves(records)
    rows = []
    for cell in cells.loc[cells["target"].notna(), _OF_CELL].to_dict("records"):
        steps, metric = series.get(cell["cell_id"], (np.empty(0), np.empty(0)))
        target, higher = float(cell["target"]), bool(cell["higher_is_better"])
        first = first_crossing(steps, metric, target, higher)
        held = first_crossing(steps, metric, target, higher, HELD)
        met = not np.isnan(first.upper)
        state = {"finished": "missed"}.get(cell["state"], cell["state"])
        late = _quality(metric[steps > first.upper], higher) if met else np.empty(0)
        least = least_steps(cell)
        row: dict[Any, Any] = cell | first._asdict() | {"status": "met" if met else state, "censored": not met}
        row |= {f"held_{name}": value for name, value in held._asdict().items()}
        row |= {"held_censored": bool(np.isnan(held.upper)), "counted_steps": first.point if met else least}
        row["held_counted_steps"] = least if row["held_censored"] else held.point
        row["lost_again"] = bool((late < (target if higher else -target)).any())
        row["ranked_steps"] = first.point if met or state == "unfinished" else float(cell["step_budget"])
        rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


_OF_CELL = ["cell_id", "target", "higher_is_better", "state", "last_step", "length_steps", "step_budget"]
COLUMNS = ["cell_id", "target", "status", "censored", "lower", "upper", "point", "held_censored", "held_lower"]
COLUMNS += ["held_upper", "held_point", "lost_again", "last_step", "step_budget", "counted_steps"]
COLUMNS += ["held_counted_steps", "ranked_steps"]


def curves(records: pd.DataFrame) -> dict[str, tuple[Floats, Floats]]:
    """cell_id -> (steps, metric), both float64; the metric of a diverged record is NaN."""
    metric = records["metric"].to_numpy(dtype=np.float64, na_value=np.nan)
    metric = np.where(records["diverged"].to_numpy(dtype=bool), np.nan, metric)
    steps = records["step"].to_numpy(dtype=np.float64)
    return {cell_id: (steps[rows], metric[rows]) for cell_id, rows in rows_of_cells(records).items()}


def running_best(metric: Floats, higher: bool) -> Floats:
    """The best metric so far, NaN before the first finite one."""
    best = np.maximum.accumulate(_quality(metric, higher))
    return np.where(np.isneginf(best), np.nan, best if higher else -best)


def _quality(metric: Floats, higher: bool) -> Floats:
    quality = metric if higher else -metric
    return np.where(np.isfinite(quality), quality, -np.inf)


def least_steps(cell: Mapping[Any, Any]) -> float:
    """What a target that this cell misses takes at least, in steps; NaN while unfinished.

    The step budget where the schedule was trained to its end (min(length, step budget)) or the run diverged: it would
    not have met the target within the budget. The last step where it stopped before, at a time limit say: no more
    than that was seen. Args: cell: of `study.progress`.
    """
    if cell["state"] == "unfinished":
        return np.nan
    end = min(cell["length_steps"], cell["step_budget"])
    stopped = cell["state"] == "finished" and cell["last_step"] < end
    return float(cell["last_step"] if stopped else cell["step_budget"])


def median_curves(cells: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Per setting and step: the median of the metric over seeds; a diverged record takes no part.

    Returns: workload, training, setting, step, share (of the step budget), median, num_seeds; steps at which
    every seed of the setting that is not unfinished has a record.
    """
    rows, setting_of = rows_of_cells(records), np.full(len(records), -1)
    for cell_id, setting in zip(cells["cell_id"], cells["setting"], strict=True):
        setting_of[rows.get(cell_id, slice(0))] = setting
    alive = (setting_of >= 0) & ~records["diverged"].to_numpy(dtype=bool)
    table = records.loc[alive, ["step", "metric"]].assign(setting=setting_of[alive])
    found = table.groupby(["setting", "step"])["metric"].agg(median="median", num_seeds="count").reset_index()
    found = found[found["num_seeds"] == found.groupby("setting")["num_seeds"].transform("max")]
    keys = ["workload", "training", "setting"]
    found = cells.drop_duplicates("setting")[[*keys, "step_budget"]].merge(found, on="setting")
    found = found.assign(share=found["step"] / found["step_budget"]).sort_values([*keys, "step"], ignore_index=True)
    return found[[*keys, "step", "share", "median", "num_seeds"]]
