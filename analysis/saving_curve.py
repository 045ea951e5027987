"""The saving curve: the ratio in steps and in device-hours at every target level, from easy to the baseline's best.

Cosine decay and averaging do the same job, so the ratio depends on how tight the target is: one ratio at one
target is half an answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.records import rows_of_cells
from analysis.resampling import bootstrap_each
from analysis.steps_to_target import curves, first_crossings, least_steps, running_best

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Series = dict[str, tuple[Floats, Floats]]

SHARES: Floats = np.round(np.arange(0.10, 1.0001, 0.025), 3)

RULE = (
    "Level q is the metric that the baseline, its running best at the median over seeds, has reached after a share "
    "q of its training. At each level, for each seed, the steps of the average are divided by the baseline's; the "
    "curve is the geometric mean over seeds, the band its bootstrap 95 % interval, seeds resampled as a whole. "
    "Device-hours at a level are those of training and of this one average up to the interpolated step, × devices. "
    "Missed levels count as at the target, as bounds: in steps as a missed target does, in device-hours all that was "
    "trained."
)


class Curve(NamedTuple):
    """One setting against one kind of baseline. Matrices: (seeds, levels), in pairs of equal seeds.

    level: (levels,), the metric · misses, baseline_misses: the side does not reach the level · log_ratio,
    log_hours_ratio: ln(average / baseline), a miss counted as a bound, NaN where both miss.
    """

    versus: str
    workload: str
    training: int
    setting: int
    share: Floats
    level: Floats
    misses: Bools
    baseline_misses: Bools
    log_ratio: Floats
    log_hours_ratio: Floats


def levels(series: list[tuple[Floats, Floats]], length: float, higher: bool, shares: Floats) -> Floats:
    """level(q) = median over seeds of the running best metric at step q · length, linear between evaluations.

    NaN before the first evaluation. Args: series: (steps, metric) a seed. Returns: shape of `shares`.
    """
    found = [
        np.interp(shares * length, steps, running_best(metric, higher), left=np.nan, right=np.nan)
        for steps, metric in series
        if len(steps)
    ]
    if not found:
        return np.full(len(shares), np.nan)
    stacked = np.stack(found)
    median = np.full(len(shares), np.nan)
    known = ~np.isnan(stacked).all(axis=0)
    median[known] = np.nanmedian(stacked[:, known], axis=0)
    return median


def measure(cells: pd.DataFrame, records: pd.DataFrame, pairs: pd.DataFrame, shares: Floats = SHARES) -> list[Curve]:
    """Both sides of every pair at every level of its baseline, one Curve a (versus, setting); unknown levels left out.

    Args: cells: of `analysis.study.progress`; unfinished ones take no part. pairs: of `analysis.pairs.pair`.
    """
    series, clocks = curves(records), _clocks(records)
    trained = cells.loc[cells["state"] != "unfinished", _OF_CELL]
    of = {str(cell["cell_id"]): cell for cell in trained.to_dict("records")}
    raw_runs = trained[trained["scheme"] == "none"].groupby("training")["cell_id"].agg(list)
    pairs = pairs[pairs["cell_id"].isin(list(of)) & pairs["baseline_cell_id"].isin(list(of))]
    pairs = pairs[pairs["cell_id"] != pairs["baseline_cell_id"]].sort_values(["versus", "setting", "seed"])
    goals: dict[int, Floats] = {}
    sides: dict[tuple[str, int], tuple[Floats, Floats, Floats]] = {}
    none = (np.empty(0), np.empty(0))

    def side(cell_id: str, raw: int) -> tuple[Floats, Floats, Floats]:
        """Steps to each level of this raw training (NaN: missed), the same with bounds, and device-hours."""
        if (cell_id, raw) not in sides:
            cell = of[cell_id]
            steps = first_crossings(*series.get(cell_id, none), goals[raw], bool(cell["higher_is_better"]))
            at, seconds = clocks.get(cell_id, none)
            paid = np.where(np.isnan(steps), at[-1] if len(at) else 0.0, steps)
            hours = np.interp(paid, np.append(0.0, at), np.append(0.0, seconds))
            counted = np.where(np.isnan(steps), least_steps(cell), steps)
            sides[cell_id, raw] = steps, counted, hours * float(cell["num_devices"]) / 3600
        return sides[cell_id, raw]

    found = []
    for (versus, workload, training, setting), part in _groups(pairs):
        first = of[part["baseline_cell_id"].iloc[0]]
        raw = int(first["training"])
        if raw not in goals:
            length = float(min(first["length_steps"], first["step_budget"]))
            known = [series[cell_id] for cell_id in raw_runs.get(raw, []) if cell_id in series]
            goals[raw] = levels(known, length, bool(first["higher_is_better"]), shares)
        steps, counted, hours = _stacked(part["cell_id"], raw, side)
        raw_steps, raw_counted, raw_hours = _stacked(part["baseline_cell_id"], raw, side)
        misses, raw_misses = np.isnan(steps), np.isnan(raw_steps)
        both = misses & raw_misses
        log, log_hours = _log(counted, raw_counted, both), _log(hours, raw_hours, both)
        k = ~np.isnan(goals[raw])
        names = (versus, workload, training, setting)
        missed = (misses[:, k], raw_misses[:, k])
        found.append(Curve(*names, shares[k], goals[raw][k], *missed, log[:, k], log_hours[:, k]))
    return found


def saving_curve(measured: list[Curve]) -> pd.DataFrame:
    """ratio(q) = geometric mean over seeds of steps(level q) of the average / of the baseline.

    Returns one row a (versus, setting, share): workload, training · level (metric) · ratio, low, high · hours_ratio,
    hours_low, hours_high, of device-hours · num_pairs, num_exact (both reach the level), num_at_least (the average
    does not), num_at_most (the baseline does not), num_both_missed.
    """
    tables = []
    ratios = bootstrap_each([curve.log_ratio for curve in measured], scale=1.0)
    hours_ratios = bootstrap_each([curve.log_hours_ratio for curve in measured], scale=1.0)
    for curve, ratio, hours in zip(measured, ratios, hours_ratios, strict=True):
        names = {name: np.repeat(np.array([getattr(curve, name)]), len(curve.share)) for name in _KEYS}
        tables.append(
            {
                **names,
                "share": curve.share,
                "level": curve.level,
                **dict(zip(_ENDS, np.exp([*ratio, *hours]), strict=True)),
                **counts(curve),
            }
        )
    order = [*_KEYS, "share", "level", *_ENDS, *COUNTS]
    if not tables:
        return pd.DataFrame(columns=order)
    return pd.DataFrame({name: np.concatenate([table[name] for table in tables]) for name in order})


_OF_CELL = [
    *("cell_id", "training", "scheme", "state", "last_step", "length_steps", "step_budget"),
    *("higher_is_better", "num_devices"),
]
_KEYS = ["versus", "workload", "training", "setting"]
_ENDS = ["ratio", "low", "high", "hours_ratio", "hours_low", "hours_high"]
COUNTS = ["num_pairs", "num_exact", "num_at_least", "num_at_most", "num_both_missed"]


def counts(curve: Curve) -> dict[str, NDArray[np.int64]]:
    """How many pairs are of each kind at each level, by the names of COUNTS."""
    misses, raw_misses = curve.misses, curve.baseline_misses
    kinds = [~misses & ~raw_misses, misses & ~raw_misses, ~misses & raw_misses, misses & raw_misses]
    found = [np.full(len(curve.share), len(misses)), *(kind.sum(axis=0) for kind in kinds)]
    return dict(zip(COUNTS, found, strict=True))


def _clocks(records: pd.DataFrame) -> Series:
    """cell_id -> (steps, seconds of training and of this average)."""
    steps = records["step"].to_numpy(dtype=np.float64)
    seconds = (records["train_seconds"] + records["average_seconds"]).to_numpy(dtype=np.float64)
    return {cell_id: (steps[rows], seconds[rows]) for cell_id, rows in rows_of_cells(records).items()}


def _groups(pairs: pd.DataFrame) -> Iterator[tuple[tuple[str, str, int, int], pd.DataFrame]]:
    for key, part in pairs.groupby(_KEYS, sort=True):
        versus, workload, training, setting = key
        yield (str(versus), str(workload), int(str(training)), int(str(setting))), part


def _stacked(cell_ids: pd.Series, raw: int, side: Any) -> list[Floats]:
    return [np.stack(column) for column in zip(*(side(cell_id, raw) for cell_id in cell_ids), strict=True)]


def _log(top: Floats, bottom: Floats, unknown: Bools) -> Floats:
    unknown = unknown | ~(top > 0) | ~(bottom > 0)
    return np.log(np.where(unknown, np.nan, top) / np.where(unknown, 1.0, bottom))
