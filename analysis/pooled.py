"""One number for many workloads: several ways to pool the ratio, each with its accounting rule, side by side.

They differ by many points on the same data, so none is shown without the others and the rule it follows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.pairs import AT_LEAST, AT_MOST, BOTH_MISSED, EXACT, PENDING, overall_bound
from analysis.resampling import FEWEST, RESAMPLES, draws_of, interval, resample_workloads, widening
from analysis.survival import restricted_pairs

Floats = NDArray[np.float64]

FIXED, BEST = "fixed beforehand", "best-looking"
LEFT_OUT_RESAMPLES = 2_000

RULES = {
    "mean ratio": "arithmetic mean over seeds, then over workloads; a missed target counted at the step budget, "
    "a pair that both miss left out",
    "geometric mean": "geometric mean over seeds, then over workloads; missed targets as for the mean ratio",
    "median ratio": "median steps over seeds, missed ones at the step budget, average ÷ baseline; then the median "
    "over workloads",
    "restricted mean": "mean steps up to the step budget over seeds, average ÷ baseline, a pair that both miss "
    "counted T/T; then the geometric mean over workloads",
    "survivors only": "the mean ratio over the pairs that both meet the target: seeds that miss it are dropped; "
    "shown to compare, not to use",
    "device-hours": "device-hours of training + averaging to the target, × devices: geometric mean over seeds, then "
    "over workloads; a run that misses pays for all it trained, a pair that both miss left out",
    "suite device-hours": "Σ over workloads of the mean device-hours, average ÷ baseline: long workloads weigh more; "
    "a workload that nobody solves is charged all it trained",
    "suite, solved only": "the same sum; workloads that nobody solves left out",
}

SHOWN = (  # side by side in the report, the first before the others
    "geometric mean",
    "mean ratio",
    "median ratio",
    "restricted mean",
    "device-hours",
    "suite device-hours",
)
SUMS = ("suite device-hours", "suite, solved only")  # say nothing on one workload

RULE = (
    f"{len(RULES)} ways to pool, each with its accounting rule: they answer different questions and differ on "
    "the same data. Intervals resample workloads with replacement, and seeds within each drawn workload "
    "(hierarchical bootstrap, 10,000 resamples): they speak of workloads like these; seeds alone resampled, they "
    "speak of these workloads. Widened by √(W/(W−1))·t/z for W workloads; for fewer than three there is none. Where "
    "workloads differ less than seeds do it is wider than it need be (two levels count the seeds twice): over 8 "
    "workloads of 3 normal seeds it covers 94 to 99 times in 100. "
    "Leave-one-out repeats each number without one workload."
)


def picks(chosen: pd.DataFrame, horizons: pd.DataFrame) -> pd.DataFrame:
    """Which setting stands for a scheme on a workload: the one fixed beforehand, and the best-looking one.

    Args: chosen: of `analysis.pairs.chosen_settings`. horizons: of `analysis.core.horizon_map`.
    Returns: horizon (FIXED or BEST), scheme, workload, setting; BEST on the trainings of `chosen` only. Where every
    setting of a scheme misses the target, the smallest lower bound stands for it: no workload drops out by missing.
    """
    fixed = chosen[chosen["near"].astype(bool)].assign(horizon=FIXED)
    trainings = horizons.loc[horizons["setting"].isin(chosen["setting"]), "training"]
    best = horizons[horizons["training"].isin(trainings)].assign(horizon=BEST)
    best = best.sort_values(["best", "ratio", "setting"], ascending=[False, True, True], kind="stable")
    best = best.groupby(["workload", "scheme"], sort=True).head(1)
    names = ["horizon", "scheme", "workload", "setting"]
    return pd.concat([fixed[names], best[names]], ignore_index=True)


def pool(by_seed: pd.DataFrame, steps: pd.DataFrame, picked: pd.DataFrame) -> pd.DataFrame:
    """Every statistic of RULES: over all workloads, without each workload, and on each workload alone.

    Args: by_seed: of `analysis.pairs.ratios_by_seed`. steps: of `analysis.steps_to_target`. picked: of `picks`.
    Returns: versus, horizon, scheme · scope (``all``, ``without``, ``alone``), workload (the one left out or alone) ·
    statistic · value, low, high (workloads and seeds resampled; null for fewer than FEWEST workloads) · seeds_low,
    seeds_high (seeds resampled within these workloads; null where a workload has one seed, and for ``without``) ·
    bound (of the pairs; ``none`` without a value) · num_workloads (that have a value), num_pairs, num_missed (pairs
    in which a side misses), num_pending (left out of everything).
    """
    pairs = restricted_pairs(by_seed, steps).merge(picked, on=["workload", "setting"], how="inner")
    if _baselines(pairs, "same schedule") == _baselines(pairs, "best baseline"):
        pairs = pairs[pairs["versus"] == "same schedule"]
    rows: list[dict[str, Any]] = []
    for key, part in pairs.groupby(["versus", "horizon", "scheme"], sort=True):
        names = dict(zip(["versus", "horizon", "scheme"], key, strict=True))
        rows += [names | row for row in _scopes(part)]
    table = pd.DataFrame(rows, columns=COLUMNS)
    # 'same schedule' and what was fixed beforehand come first: what was chosen after the fact flatters.
    order = table.assign(versus=table["versus"] != "same schedule", horizon=table["horizon"] != FIXED)
    return table.loc[order.sort_values(["versus", "horizon", "scheme"], kind="stable").index].reset_index(drop=True)


COLUMNS = [
    *("versus", "horizon", "scheme", "scope", "workload", "statistic", "value", "low", "high", "seeds_low"),
    *("seeds_high", "bound", "num_workloads", "num_pairs", "num_missed", "num_pending"),
]


def overall(table: pd.DataFrame) -> pd.DataFrame:
    """The rows over all workloads, each with the rule it counts by."""
    rows = table[table["scope"] == "all"].drop(columns=["scope", "workload"])
    return rows.assign(rule=rows["statistic"].map(RULES)).reset_index(drop=True)


def by_workload(table: pd.DataFrame) -> pd.DataFrame:
    """The same statistics on each workload alone; low and high are over its seeds."""
    rows = table[(table["scope"] == "alone") & ~table["statistic"].isin(SUMS)]
    rows = rows.drop(columns=["scope", "low", "high", "num_workloads"])
    return rows.rename(columns={"seeds_low": "low", "seeds_high": "high"}).reset_index(drop=True)


def leave_one_out(table: pd.DataFrame) -> pd.DataFrame:
    """Each pooled number without each workload, and `change`: it minus the number over all."""
    keys = ["versus", "horizon", "scheme", "statistic"]
    whole = table[table["scope"] == "all"][[*keys, "value"]].rename(columns={"value": "over_all"})
    rows = table[table["scope"] == "without"].merge(whole, on=keys, how="left")
    rows["change"] = rows["value"] - rows["over_all"]
    names = [*keys, "workload", "value", "low", "high", "change", "num_workloads", "num_pairs"]
    return rows[names].rename(columns={"workload": "without"}).reset_index(drop=True)


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
    parts = {name: done[done["workload"] == name] for name in names}
    draws = np.stack([_means(part, place + 1) for place, part in enumerate(parts.values())], axis=-1)
    values = np.stack([_means(part, None) for part in parts.values()], axis=-1)
    sizes = np.stack([_sizes(part) for part in parts.values()], axis=-1)
    rows = _rows("all", None, pairs, values, draws, sizes)
    for place, name in enumerate(names):
        own = _means(parts[name], 0)[:, :, None]  # the seeds that the table of ratios draws
        mine = pairs["workload"] == name
        rows += _rows("alone", name, pairs[mine], values[:, :, [place]], own, sizes[:, [place]])
        if len(names) > 1:
            rest = np.delete(np.arange(len(names)), place)
            left = draws[:, :LEFT_OUT_RESAMPLES, rest]
            rows += _rows("without", name, pairs[~mine], values[:, :, rest], left, sizes[:, rest])
    return rows


# What the statistics are made of: means over the seeds of one workload, of these columns.
_PARTS = ["ratio", "log_ratio", "exact_ratio", "log_hours_ratio"]  # of a pair
_SIDES = ["counted", "hours", "solved_hours"]  # of either side of a pair
_INDEX = {
    name: place
    for place, name in enumerate(
        [*_PARTS, *(f"{side}{name}" for name in [*_SIDES, "median"] for side in ("", "baseline_"))]
    )
}


def _columns(part: pd.DataFrame) -> dict[str, Floats]:
    solved = bool((part["bound"] != BOTH_MISSED).any())
    both = part[["device_hours", "baseline_device_hours"]].notna().all(axis=1)
    found = {
        "ratio": part["ratio"],
        "log_ratio": np.log(part["ratio"]),
        "exact_ratio": part["ratio"].where(part["bound"] == EXACT),
        "log_hours_ratio": np.log(part["hours_ratio"]),
    }
    for side in ("", "baseline_"):
        hours = part[f"{side}device_hours"].where(both)
        found |= {f"{side}counted": part[f"{side}counted"], f"{side}hours": hours}
        found |= {
            f"{side}solved_hours": hours if solved else hours * np.nan,
            f"{side}median": part[f"{side}counted"],
        }
    return {name: column.to_numpy(dtype=np.float64) for name, column in found.items()}


def _means(part: pd.DataFrame, stream: int | None) -> Floats:
    """The means of the resamples of this stream, or of the pairs themselves. Returns: shape (len(_INDEX), resamples).

    A pair without a value takes no part in that column, as in `analysis.resampling.bootstrap`.
    """
    found, columns = [], _columns(part)
    for name in _INDEX:
        of, known = np.median if name.endswith("median") else np.mean, columns[name][~np.isnan(columns[name])]
        if len(known) == 0:
            found.append(np.full(1 if stream is None else RESAMPLES, np.nan))
        else:
            found.append(of(known, keepdims=True) if stream is None else draws_of(known, stream, of))
    return np.stack(found)


def _sizes(part: pd.DataFrame) -> NDArray[np.int64]:
    """How many pairs of a workload each statistic rests on, in the order of RULES."""
    count = {name: int((~np.isnan(values)).sum()) for name, values in _columns(part).items()}
    return np.array([count[name] for name in _RESTS_ON.values()])


_RESTS_ON = {
    "mean ratio": "ratio",
    "geometric mean": "ratio",
    "median ratio": "counted",
    "restricted mean": "counted",
    "survivors only": "exact_ratio",
    "device-hours": "log_hours_ratio",
    "suite device-hours": "hours",
    "suite, solved only": "solved_hours",
}


def _statistics(means: Floats) -> Floats:
    """Shape (len(_INDEX), …, workloads) -> (len(RULES), …): each statistic, in the order of RULES."""
    of = {name: means[place] for name, place in _INDEX.items()}
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.stack(
            [
                _mean(of["ratio"]),
                np.exp(_mean(of["log_ratio"])),
                _median(of["median"] / of["baseline_median"]),
                np.exp(_mean(np.log(of["counted"] / of["baseline_counted"]))),
                _mean(of["exact_ratio"]),
                np.exp(_mean(of["log_hours_ratio"])),
                _mean(of["hours"]) / _mean(of["baseline_hours"]),
                _mean(of["solved_hours"]) / _mean(of["baseline_solved_hours"]),
            ]
        )


def _mean(values: Floats) -> Floats:
    """Over the last axis, NaN left out."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.asarray(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))


def _median(values: Floats) -> Floats:
    """Over the last axis, NaN left out."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = (~np.isnan(values)).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[-1] - 1), axis=-1)
    return np.asarray((low + high)[..., 0] / 2)


def _rows(
    scope: str,
    workload: str | None,
    pairs: pd.DataFrame,
    values: Floats,
    draws: Floats,
    sizes: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """One row a statistic. Args: values, draws: shape (len(_INDEX), 1 or resamples, workloads). sizes: (len(RULES),
    workloads), how many pairs each statistic rests on in each workload.
    """
    found = _statistics(values)[:, 0]
    rests_on = [of[of > 0].tolist() for of in sizes]
    logs = np.array([statistic not in ("mean ratio", "survivors only") for statistic in RULES])
    wide = narrow = np.stack([found, found * np.nan, found * np.nan])
    if max(len(mine) for mine in rests_on) >= FEWEST:
        factors = np.array([widening(len(mine)) if len(mine) >= FEWEST else np.nan for mine in rests_on])
        wide = interval(found, _statistics(resample_workloads(draws)).T, factors, logs=logs)
    if scope != "without":
        narrow = interval(found, _statistics(draws).T, np.array([widening(*mine) for mine in rests_on]), logs=logs)
    missed = pairs["bound"].isin([*_MISSED])
    done = pairs[pairs["bound"] != PENDING]
    rows = []
    for place, statistic in enumerate(RULES):
        rows.append(
            {
                "scope": scope,
                "workload": workload,
                "statistic": statistic,
                "value": float(found[place]),
                "low": float(wide[1, place]),
                "high": float(wide[2, place]),
                "seeds_low": float(narrow[1, place]),
                "seeds_high": float(narrow[2, place]),
                "bound": _bound(statistic, done) if not np.isnan(found[place]) else "none",
                "num_workloads": len(rests_on[place]),
                "num_pairs": len(pairs),
                "num_missed": int(missed.sum()),
                "num_pending": len(pairs) - len(done),
            }
        )
    return rows


_MISSED = (AT_LEAST, AT_MOST, BOTH_MISSED)


def _bound(statistic: str, done: pd.DataFrame) -> str:
    """What the number is, given that some runs miss the target."""
    if statistic in ("restricted mean", "survivors only"):
        return EXACT  # by their definition
    if statistic not in ("mean ratio", "geometric mean", "device-hours"):
        if statistic == "suite, solved only":
            solved = done.loc[done["bound"] != BOTH_MISSED, "workload"]
            done = done[done["workload"].isin(solved)]
        if (done["bound"] == BOTH_MISSED).any():
            return "mixed"  # both sides are counted at a step budget they would have exceeded
    return overall_bound(done["bound"])
