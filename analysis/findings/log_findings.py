"""What AlgoPerf's accelerator logs say on the same questions: how tight real targets are, how noisy, what a built-in
average saves at full size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import records as schema
from analysis import tightness
from analysis.algoperf_score import ALL_BASE, read_evaluations, score
from analysis.resampling import TAILS, Interval, draws_of, widening, with_interval

BASELINE, AVERAGING = "baseline", "schedule_free_adamw"

RULE = (
    "A study's value is its best trial's, by seconds; a study that misses counts as ∞. The ratio is between medians "
    "over studies, and none where both are ∞; its interval resamples the studies of both sides, widened for few. An "
    "infinite bound is a bound: where a resampled median is ∞ so is the ratio, or 0; a resample in which both are ∞ "
    "leaves the ratio open, and counts as 0 for the lower bound and as ∞ for the upper one."
)


def ratios_of_medians(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> Interval:
    """median(top) ÷ median(bottom) of two independent samples, ∞ allowed; the value is NaN where both medians are ∞.

    A resample with both medians ∞ is open: 0 for the lower bound, ∞ for the upper. The interval is widened about a
    value between 0 and ∞ alone: from 0, ∞ or none there is no distance to stretch. Low and high are NaN where a side
    has one value.
    """
    value = float(_ratio(np.median(top), np.median(bottom)))
    n = min(len(top), len(bottom))
    if n < 2:
        return Interval(value, np.nan, np.nan)
    draws = _ratio(draws_of(top, 1, np.median), draws_of(bottom, 2, np.median))
    open_ = np.isnan(draws)
    low = float(np.quantile(np.where(open_, 0.0, draws), TAILS[0], method="nearest"))
    high = float(np.quantile(np.where(open_, np.inf, draws), TAILS[1], method="nearest"))
    if 0 < value < np.inf:
        factor = widening(n, n)
        low, high = value * (low / value) ** factor, value * (high / value) ** factor
    return Interval(value, low, high)


def _ratio(top: Any, bottom: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isinf(bottom), np.where(np.isinf(top), np.nan, 0.0), top / bottom)


def sentences(run: str | Path) -> list[str]:
    """The findings of an imported run folder that holds AlgoPerf's baseline and Schedule-Free.

    Raises: analysis.records.BadRun where the folder was not imported from AlgoPerf's logs.
    """
    studies = score(read_evaluations(run)).studies
    studies = studies[studies["workload"].isin(ALL_BASE)]
    budgets = schema.load_cells(run).groupby("workload")["step_budget"].first()
    return [
        *_built_in_average(studies),
        *_real_tightness(studies, budgets),
        *_noise(studies),
    ]


def _built_in_average(studies: pd.DataFrame) -> list[str]:
    told: list[str] = []
    one_sided: list[str] = []
    verdicts: dict[str, list[str]] = {name: [] for name in ("less", "more", "open", "one side", "one study")}
    for workload in ALL_BASE:
        mine = studies[studies["workload"] == workload]
        seconds = [mine[mine["submission"] == name]["seconds"].to_numpy(dtype=float) for name in (AVERAGING, BASELINE)]
        if any(len(side) == 0 for side in seconds):
            continue
        missed = [np.isinf(side) for side in seconds]
        if all(side.all() for side in missed):
            told.append(f"{workload} neither")
            continue
        found = ratios_of_medians(*seconds)
        told.append(f"{workload} {'none' if np.isnan(found.value) else with_interval(found)}")
        if any(side.all() for side in missed):
            one_sided.append(_one_sided(workload, missed))
        verdicts[_verdict(found, missed)].append(workload)
    if not told:
        return []
    total = sum(len(workloads) for workloads in verdicts.values())
    tails = {
        "one side": "only one of the two ever meets it, in too few studies to tell",
        "one study": "one study gives no interval",
    }
    also = "".join(f"; on {len(verdicts[name])} {words}" for name, words in tails.items() if verdicts[name])
    text = (
        "At full size an optimizer with an average built in (Schedule-Free) needs less time to the target than NadamW "
        f"on {len(verdicts['less'])} of {total} workloads, more on {len(verdicts['more'])}, and no difference is shown "
        f"on {len(verdicts['open'])}{also}. Ratio of median seconds: {'; '.join(told)}."
    ).replace("inf", "∞")
    return [" ".join([text, *one_sided])]


def _verdict(found: Interval, missed: list[NDArray[np.bool_]]) -> str:
    if np.isnan(found.low):
        return "one study"
    if found.high < 1 or found.low > 1:
        return "less" if found.high < 1 else "more"
    return "one side" if any(side.all() for side in missed) else "open"


def _one_sided(workload: str, missed: list[NDArray[np.bool_]]) -> str:
    """Which of the two never meets the target of a workload that the other meets."""
    order = (0, 1) if missed[0].all() else (1, 0)
    never, other = (("Schedule-Free", "NadamW")[place] for place in order)
    counts = [(int(missed[place].sum()), len(missed[place])) for place in order]
    return (
        f"{never} misses the target of {workload} in all {counts[0][1]} studies, {other} in {counts[1][0]} of "
        f"{counts[1][1]}."
    )


def _real_tightness(studies: pd.DataFrame, budgets: pd.Series) -> list[str]:
    mine = studies[(studies["submission"] == BASELINE)]
    met = mine["met"].astype(bool)
    mine = mine.assign(step=mine["step"].where(met, np.inf))  # null: its counter does not count steps
    known = mine.groupby("workload")["step"].apply(lambda steps: steps.notna().all())
    steps = mine[mine["workload"].isin(known.index[known])].groupby("workload")["step"].median()
    share = steps / budgets.reindex(steps.index)
    never = ", ".join(share.index[np.isinf(share)])
    share = share[np.isfinite(share)]
    paper = tightness.paper_points()
    paper = paper[paper["scheme"] == "ema"].set_index("workload")
    both = share.index.intersection(paper.index)
    if both.empty:
        return []
    told = [f"{name} {share[name]:.2f} ({paper['share'][name]:.2f})" for name in both]
    apart = (share[both] - paper["share"][both]).abs()
    points = paper.loc[both].reset_index().assign(source="the paper", share=share[both].to_numpy())
    line = tightness.regressions(points[tightness.POINTS])
    found = [
        "AlgoPerf's own NadamW meets its target after this share of the step hint, median over studies, beside the "
        f"paper's NadamW: {', '.join(told)}; they differ by {apart.median():.2f} (median)."
        + (f" Its median study misses on {never}." if never else "")
    ]
    found += [
        f"With these shares the paper's EMA ratios rise by {row['slope']:.2f} [{row['slope_low']:.2f}, "
        f"{row['slope_high']:.2f}] from an immediate target to one at the end, which explains {100 * row['r2']:.0f} % "
        f"[{100 * row['r2_low']:.0f}, {100 * row['r2_high']:.0f}] of their variance "
        f"({row['num_workloads']} workloads).".replace("-", "−")
        for row in line.to_dict("records")
    ]
    return found


def _noise(studies: pd.DataFrame) -> list[str]:
    if not studies["met"].any():
        return [f"No study of {len(studies)} meets its target."]
    met = studies[studies["met"].astype(bool)]
    width = ((met["seconds"] - met["seconds_before"]) / met["seconds"]).groupby(met["workload"]).median()
    widest = width.sort_values(ascending=False)
    lost = met.groupby("workload")["lost_again"].mean()
    missed = studies[(studies["submission"] == BASELINE) & ~studies["met"].astype(bool)]["workload"].value_counts()
    number = studies[studies["submission"] == BASELINE].groupby("workload").size()
    gone = ", ".join(f"{name} {count} of {number.to_dict()[name]}" for name, count in missed.items())
    return [
        f"The time to a target is known within {100 * width.median():.1f} % of itself (median over workloads; at most "
        f"{100 * widest.iloc[0]:.0f} %, on {widest.index[0]}), since evaluations go by the clock.",
        f"Of {len(met)} best trials that meet their target {int(met['lost_again'].sum())} fall behind it again at a "
        f"later evaluation ({', '.join(f'{name} {100 * share:.0f} %' for name, share in lost[lost > 0].items())}).",
        f"Studies in which NadamW misses, which a mean over survivors would drop: {gone or 'none'}.",
    ]
