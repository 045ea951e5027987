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
    """The target is first met within (lower, upper] steps, at `point` by interpolation; all NaN when never met."""

    lower: float
    upper: float
    point: float


NEVER = Crossing(np.nan, np.nan, np.nan)


def first_crossing(steps: Floats, metric: Floats, target: float, higher: bool, in_a_row: int = 1) -> Crossing:
    """The first of `in_a_row` consecutive evaluations that all meet the target.

    upper = s_i with i the first such evaluation; lower = s_{i-1}, or 0; between them linear in the metric:
    point = s_{i-1} + (s_i − s_{i-1}) (target − m_{i-1}) / (m_i − m_{i-1}), and s_i where m_{i-1} is not there.
    A metric equal to the target meets it; NaN and infinities never do. Fewer than `in_a_row` evaluations
    before the end cannot meet it.

    Args: steps, metric: shape (n,), steps increasing. target: a metric value. higher: greater is better.
    """
    quality, goal = _quality(metric, higher), (target if higher else -target)
    meets = quality >= goal
    if len(meets) < in_a_row or in_a_row < 1:
        return NEVER
    all_meet = np.lib.stride_tricks.sliding_window_view(meets, in_a_row).all(axis=1)
    if not all_meet.any():
        return NEVER
    index = int(np.argmax(all_meet))
    upper = float(steps[index])
    if index == 0:
        return Crossing(0.0, upper, upper)
    lower = float(steps[index - 1])
    return Crossing(lower, upper, _between(lower, upper, quality[index - 1], quality[index], goal))


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


def first_crossings(steps: Floats, metric: Floats, targets: Floats, higher: bool) -> Floats:
    """The `point` of `first_crossing` for many targets at once, NaN where a target is never met.

    The first evaluation to meet a target is the first at which the running best meets it, and the running best
    is sorted. Args: steps, metric: shape (n,). targets: shape (m,), NaN is never met. Returns: shape (m,).
    """
    points = np.full(len(targets), np.nan)
    quality, goals = _quality(metric, higher), (targets if higher else -targets)
    if len(quality) == 0:
        return points
    index = np.searchsorted(np.maximum.accumulate(quality), np.where(np.isnan(goals), np.inf, goals))
    met = np.flatnonzero(index < len(quality))
    at = index[met]
    lower, upper, before, after = steps[at - 1], steps[at], quality[at - 1], quality[at]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        between = lower + (upper - lower) * (goals[met] - before) / (after - before)
    points[met] = np.where((at == 0) | np.isneginf(before), upper, between)  # as in `_between`
    return points


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
        rows.append(
            {
                "cell_id": cell["cell_id"],
                "target": target,
                "status": "met" if met else state,
                "censored": not met,
                "lower": first.lower,
                "upper": first.upper,
                "point": first.point,
                "held_censored": bool(np.isnan(held.upper)),
                "held_lower": held.lower,
                "held_upper": held.upper,
                "held_point": held.point,
                "lost_again": bool((late < (target if higher else -target)).any()),
                "last_step": cell["last_step"],
                "step_budget": cell["step_budget"],
                "counted_steps": _counted(first.point, cell),
                "held_counted_steps": _counted(held.point, cell),
                "ranked_steps": first.point if met or state == "unfinished" else float(cell["step_budget"]),
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


_OF_CELL = ["cell_id", "target", "higher_is_better", "state", "last_step", "length_steps", "step_budget"]
COLUMNS = [
    *("cell_id", "target", "status", "censored", "lower", "upper", "point", "held_censored", "held_lower"),
    *("held_upper", "held_point", "lost_again", "last_step", "step_budget", "counted_steps"),
    *("held_counted_steps", "ranked_steps"),
]


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


def _between(lower: float, upper: float, before: float, after: float, goal: float) -> float:
    # At every call before < goal <= after; an evaluation before that is -inf says nothing on where between.
    if np.isneginf(before):
        return upper
    return float(lower + (upper - lower) * (goal - before) / (after - before))


def _counted(point: float, cell: Mapping[Any, Any]) -> float:
    return least_steps(cell) if np.isnan(point) else point


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
    steps, metric = records["step"].to_numpy(), records["metric"].to_numpy(dtype=np.float64, na_value=np.nan)
    alive, rows = ~records["diverged"].to_numpy(dtype=bool), rows_of_cells(records)
    keys = ["workload", "training", "setting"]
    settings = cells.groupby([*keys, "step_budget"], sort=True)["cell_id"].agg(list).reset_index()
    parts = []
    for cell_ids in settings.pop("cell_id"):
        seeds = [rows[cell_id] for cell_id in cell_ids if cell_id in rows]
        curves_of = [(steps[seed][alive[seed]], metric[seed][alive[seed]]) for seed in seeds]
        parts.append(_median_curve(curves_of))
    result = settings.loc[np.repeat(settings.index, [len(at) for at, *_ in parts])].reset_index(drop=True)
    empty = (np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64))
    result["step"], median, num = (np.concatenate(column) for column in zip(empty, *parts, strict=True))
    result["share"] = result["step"] / result.pop("step_budget")
    return result.assign(median=median, num_seeds=num)


def _median_curve(seeds: list[tuple[Any, Any]]) -> tuple[Any, Any, Any]:
    """(steps, median, num_seeds) where as many seeds as anywhere have a value. Args: (steps, metric) a seed."""
    if not seeds:
        return np.empty(0, dtype=np.int64), np.empty(0), np.empty(0, dtype=np.int64)
    at = seeds[0][0]
    same = all(np.array_equal(one, at) and np.isfinite(values).all() for one, values in seeds)
    if same:  # one evaluation grid, as a rule
        return at, np.median([values for _, values in seeds], axis=0), np.full(len(at), len(seeds))
    table = pd.DataFrame({"step": np.concatenate([s for s, _ in seeds])})
    table["metric"] = np.concatenate([values for _, values in seeds])
    found = table.groupby("step", sort=True)["metric"].agg(["median", "count"])
    found = found[found["count"] == found["count"].max()]
    return found.index.to_numpy(), found["median"].to_numpy(), found["count"].to_numpy()
