"""One number for many workloads: several ways to pool the ratio, each with its accounting rule, side by side.

They differ by many points on the same data, so none is shown without the others and the rule it follows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from analysis.statistics import resampling, verdicts
from analysis.statistics.pairs import AT_LEAST, AT_MOST, BOTH_MISSED, EXACT, PENDING, overall_bound
from analysis.statistics.resampling import FEWEST, Floats, mean, widening
from analysis.statistics.steps_to_target import HELD
from analysis.statistics.survival import restricted_pairs

FIXED, BEST = "pre-specified", "selected post hoc"
LEFT_OUT_RESAMPLES = 2_000


def _exp_mean(logs: Floats) -> Floats:
    return np.asarray(np.exp(mean(logs)))


def _geometric(top: Floats, bottom: Floats) -> Floats:
    return _exp_mean(np.log(top / bottom))


def _sums(top: Floats, bottom: Floats) -> Floats:
    return mean(top) / mean(bottom)


def _median(top: Floats, bottom: Floats) -> Floats:
    values = top / bottom
    ordered = np.sort(values, axis=-1)  # NaN last
    count = (~np.isnan(values)).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[-1] - 1), axis=-1)
    return np.asarray((low + high)[..., 0] / 2)


class Way(NamedTuple):
    """One way to pool. columns: of the pairs, averaged over seeds: a ratio's, or the average's and the baseline's."""

    columns: tuple[str, ...]
    over: Callable[..., Floats]  # the workloads on the last axis
    within: Callable[..., Any] = np.mean
    logs: bool = True  # its interval is stretched on the log scale
    crossing: str = ""  # of which crossings: first ones, or held_ ones


STEPS, HOURS = ("counted", "baseline_counted"), ("device_hours", "baseline_device_hours")
SUITE = "suite device-hours"  # says nothing on one workload
WAYS = {
    "geometric mean": Way(("log_ratio",), _exp_mean),
    "sustained geometric mean": Way(("log_held_ratio",), _exp_mean, crossing="held_"),
    "mean ratio": Way(("ratio",), mean, logs=False),
    "median ratio": Way(STEPS, _median, within=np.median),
    "RMST": Way(STEPS, _geometric),
    "device-hours": Way(("log_hours_ratio",), _exp_mean),
    SUITE: Way(HOURS, _sums),
}
RULES = {
    "geometric mean": "geometric mean over seeds, then over workloads; missed targets as for the mean ratio",
    "sustained geometric mean": f"the same of the steps to {HELD} evaluations in a row that meet the target",
    "mean ratio": "arithmetic mean over seeds, then over workloads; a missed target counted at the step budget, a pair "
    "that both miss left out",
    "median ratio": "median steps over seeds, missed ones at the step budget, average ÷ baseline; then the median over "
    "workloads",
    "RMST": "restricted mean survival time: mean steps up to the step budget over seeds, average ÷ baseline, a pair "
    "that both miss counted T/T; then the geometric mean over workloads",
    "device-hours": "device-hours of training + averaging to the target, × devices: geometric mean over seeds, then "
    "over workloads; a run that misses pays for all it trained, a pair that both miss left out",
    SUITE: "Σ over workloads of the mean device-hours, average ÷ baseline: long workloads weigh more; a workload that "
    "nobody solves is charged all it trained",
}
FRONT = tuple(WAYS)  # side by side in the figure, the first before the others
SAME, AGAINST_BEST = "same schedule", "best baseline"
_MEANS = list(dict.fromkeys((column, way.within) for way in WAYS.values() for column in way.columns))


_NAMES = ["versus", "horizon", "scheme"]
_COLUMNS = [*_NAMES, "scope", "workload", "statistic", "value", "low", "high", "seeds_low", "seeds_high", "bound"]
_COLUMNS += ["num_workloads", "num_pairs", "num_missed", "num_pending"]


def picks(chosen: pd.DataFrame, horizons: pd.DataFrame) -> pd.DataFrame:
    """Which setting stands for a scheme on a workload: the pre-specified one, and the one selected post hoc.

    Args: chosen: of `pairs.chosen_settings`. horizons: of `analysis.core.horizon_map`.
    Returns: horizon (FIXED or BEST), scheme, workload, setting; BEST on the trainings of `chosen` only. Where every
    setting of a scheme misses the target, the smallest lower bound stands for it: no workload drops out by missing.
    """
    fixed = chosen[chosen["near"].astype(bool)].assign(horizon=FIXED)
    trainings = horizons.loc[horizons["setting"].isin(chosen["setting"]), "training"]
    best = horizons[horizons["training"].isin(trainings)].assign(horizon=BEST)
    best = best.sort_values(["best", "ratio", "setting"], ascending=[False, True, True], kind="stable")
    best = best.groupby(["workload", "scheme"], sort=True).head(1)
    return pd.concat([one[["horizon", "scheme", "workload", "setting"]] for one in (fixed, best)], ignore_index=True)


def pool(by_seed: pd.DataFrame, steps: pd.DataFrame, picked: pd.DataFrame) -> pd.DataFrame:
    """Every one of WAYS: over all workloads, without each workload, and on each workload alone.

    Args: by_seed: of `pairs.ratios_by_seed`. steps: of `steps_to_target`. picked: of `picks`.
    Returns: versus, horizon, scheme · scope (``all``, ``without``, ``alone``), workload (the one left out or alone) ·
    statistic · value, low, high (workloads and seeds resampled; NaN for fewer than FEWEST workloads) · seeds_low,
    seeds_high (seeds resampled within these workloads; NaN where a workload has one seed, and for ``without``) ·
    bound (of the pairs; ``none`` without a value) · num_workloads (that have a value), num_pairs, num_missed (pairs
    in which a side misses), num_pending (left out of everything).
    """
    pairs = restricted_pairs(by_seed, steps).merge(picked, on=["workload", "setting"], how="inner")
    if _baselines(pairs, SAME) == _baselines(pairs, AGAINST_BEST):
        pairs = pairs[pairs["versus"] == SAME]
    logs = {f"log_{name}": np.log(pairs[name]) for name in ("ratio", "held_ratio", "hours_ratio")}
    pairs = pairs.assign(**logs, **pairs[list(HOURS)].dropna().reindex(pairs.index))  # hours of both sides or of none
    rows: list[dict[str, Any]] = []
    for key, part in pairs.groupby(_NAMES, sort=True):
        rows += [dict(zip(_NAMES, key, strict=True)) | row for row in _scopes(part)]
    table = pd.DataFrame(rows, columns=_COLUMNS)
    # 'same schedule' and what was pre-specified come first: what was selected post hoc flatters.
    order = table.assign(versus=table["versus"] != SAME, horizon=table["horizon"] != FIXED)
    return table.loc[order.sort_values(_NAMES, kind="stable").index].reset_index(drop=True)


def _baselines(pairs: pd.DataFrame, versus: str) -> set[tuple[str, str]]:
    mine = pairs[pairs["versus"] == versus]
    return set(zip(mine["cell_id"], mine["baseline_cell_id"], strict=True))


def _scopes(pairs: pd.DataFrame) -> list[dict[str, Any]]:
    """All rows of one (versus, horizon, scheme)."""
    done = pairs[pairs["bound"] != PENDING]
    # Workloads with a ratio first: then `stratified_geometric_mean` draws the same seeds and has the same interval.
    rated = done.groupby("workload", sort=True)["ratio"].count() > 0
    names = [str(name) for name in [*rated[rated].index, *rated[~rated].index]]
    if not names:
        return []
    parts = [done[done["workload"] == name] for name in names]
    floors = np.stack([_floors(part) for part in parts], axis=-1)
    draws = np.stack([_means(part, 1 + place) for place, part in enumerate(parts)], axis=-1)
    values = np.stack([_means(part, None) for part in parts], axis=-1)
    sizes = np.array([[part[way.columns[0]].notna().sum() for part in parts] for way in WAYS.values()])
    rows = _rows("all", None, pairs, values, draws, sizes, floors)
    for place, name in enumerate(names):
        own = _means(parts[place], 0)[:, :, None]  # the seeds that the table of ratios draws
        mine, here = pairs["workload"] == name, np.arange(len(names)) == place
        rows += _rows("alone", name, pairs[mine], values[:, :, here], own, sizes[:, here], floors[:, here])
        if len(names) > 1:
            rest, left = ~here, draws[:, :LEFT_OUT_RESAMPLES, ~here]
            rows += _rows("without", name, pairs[~mine], values[:, :, rest], left, sizes[:, rest], floors[:, rest])
    return rows


def _means(part: pd.DataFrame, stream: int | None) -> Floats:
    """The means of the resamples of this stream, or of the pairs themselves. Returns: shape (len(_MEANS), resamples).

    A pair without a value takes no part in that column, as in `resampling.bootstrap`.
    """
    found = []
    for name, of in _MEANS:
        known = part[name].dropna().to_numpy(dtype=np.float64)
        if len(known) == 0:
            found.append(np.full(1 if stream is None else resampling.RESAMPLES, np.nan))
        else:
            found.append(of(known, keepdims=True) if stream is None else resampling.draws_of(known, stream, of))
    return np.stack(found)


def _floors(part: pd.DataFrame) -> Floats:
    """The half-width that the evaluation grid leaves to each of WAYS on one workload; NaN where it has no value."""
    known = {one: part[[f"log_{one}ratio", f"{one}grid_sd"]].dropna().to_numpy().T for one in ("", "held_")}
    found = {crossing: float(resampling.grid_floor(*of)) for crossing, of in known.items()}
    return np.array([found[way.crossing] if part[way.columns[0]].notna().any() else np.nan for way in WAYS.values()])


def _statistics(means: Floats) -> Floats:
    """Shape (len(_MEANS), …, workloads) -> (len(WAYS), …)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        of = dict(zip(_MEANS, means, strict=True))
        return np.stack([way.over(*(of[column, way.within] for column in way.columns)) for way in WAYS.values()])


def _rows(
    scope: str, workload: str | None, pairs: pd.DataFrame, values: Floats, draws: Floats, sizes: Any, floors: Floats
) -> list[dict[str, Any]]:
    """One row a statistic. Args: values, draws: shape (len(_MEANS), 1 or resamples, workloads). sizes: (len(WAYS),
    workloads), how many pairs each statistic rests on in each workload; floors: the same shape, of `_floors`.
    """
    found = _statistics(values)[:, 0]
    rests_on = [of[of > 0].tolist() for of in sizes]
    logs = np.array([way.logs for way in WAYS.values()])
    floor = resampling.pooled_floor(floors.T) * np.where(logs, 1.0, found)
    wide = narrow = np.full((3, len(WAYS)), np.nan)
    if max(len(mine) for mine in rests_on) >= FEWEST:
        factors = np.array([widening(len(mine)) if len(mine) >= FEWEST else np.nan for mine in rests_on])
        both = _statistics(resampling.resample_workloads(draws)).T
        wide = resampling.interval(found, both, factors, logs=logs, floor=floor)
    if scope != "without":
        factors = np.array([widening(*mine) for mine in rests_on])
        narrow = resampling.interval(found, _statistics(draws).T, factors, logs=logs, floor=floor)
    bounds = pairs["bound"]
    missed, pending = bounds.isin([AT_LEAST, AT_MOST, BOTH_MISSED]).sum(), (bounds == PENDING).sum()
    numbers = {"num_pairs": len(pairs), "num_missed": int(missed), "num_pending": int(pending)}
    ends = zip(found, *wide[1:], *narrow[1:], strict=True)
    return [
        {"scope": scope, "workload": workload, "statistic": statistic}
        | dict(zip(("value", "low", "high", "seeds_low", "seeds_high"), map(float, of), strict=True))
        | {"bound": "none" if np.isnan(of[0]) else _bound(statistic, bounds), "num_workloads": len(mine), **numbers}
        for statistic, of, mine in zip(WAYS, ends, rests_on, strict=True)
    ]


def _bound(statistic: str, bounds: pd.Series) -> str:
    """What the number is, given that some runs miss the target."""
    if statistic == "RMST":
        return EXACT  # by its definition
    counted = statistic in ("median ratio", SUITE)  # both sides at a step budget they would have exceeded
    return "mixed" if counted and (bounds == BOTH_MISSED).any() else overall_bound(bounds)


def families(ratios: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """One row a (versus, scheme): on how many of num_families workloads the pre-specified average takes fewer steps,
    more steps, or a change beyond the margin is excluded, by `analysis.verdicts.side`; the rest are undecided.

    num_with_missed: where some seed misses the target, on either side · by_luck: the chance of num_fewer or more where
    nothing is saved. Pairs that wait are no family's yet.
    Args: ratios: of `pairs.ratios`. chosen: of `pairs.chosen_settings`, near ones only.
    """
    near = chosen[chosen["near"].astype(bool)][["setting", "scheme"]]
    table = ratios.drop(columns="scheme", errors="ignore").merge(near, on="setting")
    table = table[table["num_pending"] < table["num_pairs"]]
    rows: list[dict[str, Any]] = []
    for (versus, scheme), part in table.groupby(["versus", "scheme"], sort=True):
        found = part.to_dict("records")
        count = Counter(verdicts.side(row, "geometric_mean", row["num_pairs"]) or verdicts.UNDECIDED for row in found)
        missed = part[["num_at_least", "num_at_most", "num_both_missed"]].sum(axis=1) > 0
        row: dict[str, Any] = {"versus": versus, "scheme": scheme, "num_families": len(part)}
        row |= {f"num_{kind}": count[kind] for kind in ("fewer", verdicts.EXCLUDED, "more", verdicts.UNDECIDED)}
        luck = verdicts.by_luck(count["fewer"], len(part))
        rows.append(row | {"num_with_missed": int(missed.sum()), "by_luck": luck})
    return pd.DataFrame(rows, columns=_FAMILIES)


_FAMILIES = ["versus", "scheme", "num_families", "num_fewer", "num_excluded", "num_more", "num_undecided"]
_FAMILIES += ["num_with_missed", "by_luck"]
