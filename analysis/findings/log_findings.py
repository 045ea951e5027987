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
from analysis.algoperf_score import BASE, read_evaluations, score
from analysis.intervals import LEVEL, RESAMPLES, Interval, resample, small_sample_factor, with_interval

BASELINE, AVERAGING = "baseline", "schedule_free_adamw"

RULE = (
    "A study's value is its best trial's, by seconds; a study that misses counts as ∞. The ratio is between medians "
    "over studies; its interval resamples the studies of both sides, widened for few; where a resampled median is ∞ "
    "the bound is."
)


def ratios_of_medians(top: NDArray[np.float64], bottom: NDArray[np.float64]) -> Interval:
    """median(top) ÷ median(bottom) of two independent samples, ∞ allowed; NaN where both medians are ∞."""
    value = _ratio(np.median(top), np.median(bottom))
    draws = _ratio(
        np.median(top[resample(len(top), RESAMPLES, 1)], axis=1),
        np.median(bottom[resample(len(bottom), RESAMPLES, 2)], axis=1),
    )
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    n = min(len(top), len(bottom))
    factor = small_sample_factor(n, 2 * (n - 1)) if n > 1 else np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        return Interval(
            float(value), float(value * (low / value) ** factor), float(value * (high / value) ** factor)
        )


def _ratio(top: Any, bottom: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isinf(bottom), np.where(np.isinf(top), np.nan, 0.0), top / bottom)


def sentences(run: str | Path) -> list[str]:
    """The findings of an imported run folder that holds AlgoPerf's baseline and Schedule-Free.

    Raises: analysis.records.BadRun where the folder was not imported from AlgoPerf's logs.
    """
    evaluations = read_evaluations(run)
    studies = score(evaluations).studies
    studies = studies[studies["workload"].isin(BASE)]
    budgets = schema.load_cells(run).groupby("workload")["step_budget"].first()
    return [
        *_built_in_average(studies),
        *_real_tightness(studies, budgets),
        *_noise(evaluations, studies),
    ]


def _built_in_average(studies: pd.DataFrame) -> list[str]:
    told: list[str] = []
    below: list[str] = []
    above: list[str] = []
    covers: list[str] = []
    for workload in BASE:
        mine = studies[studies["workload"] == workload]
        seconds = [
            mine[mine["submission"] == name]["seconds"].to_numpy(dtype=float)
            for name in (AVERAGING, BASELINE)
        ]
        if any(len(side) == 0 for side in seconds):
            continue
        found = ratios_of_medians(*seconds)
        if np.isnan(found.value):
            told.append(f"{workload} neither")
            continue
        told.append(f"{workload} {with_interval(found)}")
        (below if found.high < 1 else above if found.low > 1 else covers).append(workload)
    if not told:
        return []
    total = len(below) + len(above) + len(covers)
    return [
        "At full size an optimizer with an average built in (Schedule-Free) needs less time to the target than NadamW "
        f"on {len(below)} of {total} workloads, more on {len(above)}, and no difference is shown on {len(covers)}. "
        f"Ratio of median seconds: {'; '.join(told)}.".replace("inf", "∞")
    ]


def _real_tightness(studies: pd.DataFrame, budgets: pd.Series) -> list[str]:
    mine = studies[(studies["submission"] == BASELINE)]
    steps = mine.assign(step=mine["step"].fillna(np.inf)).groupby("workload")["step"].median()
    share = (steps / budgets.reindex(steps.index)).replace(np.inf, np.nan).dropna()
    paper = tightness.paper_points()
    paper = paper[paper["scheme"] == "ema"].set_index("workload")
    both = share.index.intersection(paper.index)
    told = [f"{name} {share[name]:.2f} ({paper['share'][name]:.2f})" for name in both]
    apart = (share[both] - paper["share"][both]).abs()
    points = paper.loc[both].reset_index().assign(source="the paper", share=share[both].to_numpy())
    line = tightness.regressions(points[tightness.POINTS])
    found = [
        "AlgoPerf's own NadamW meets its target after this share of the step hint, median over studies, beside the "
        f"paper's NadamW: {', '.join(told)}; they differ by {apart.median():.2f} (median)."
    ]
    found += [
        f"With these shares the paper's EMA ratios rise by {row['slope']:.2f} [{row['slope_low']:.2f}, "
        f"{row['slope_high']:.2f}] from an immediate target to one at the end, which explains {100 * row['r2']:.0f} % "
        f"[{100 * row['r2_low']:.0f}, {100 * row['r2_high']:.0f}] of their variance "
        f"({row['num_workloads']} workloads).".replace("-", "−")
        for row in line.to_dict("records")
    ]
    return found


def _noise(evaluations: pd.DataFrame, studies: pd.DataFrame) -> list[str]:
    met = studies[studies["met"].astype(bool)]
    width = ((met["seconds"] - met["seconds_before"]) / met["seconds"]).groupby(met["workload"]).median()
    widest = width.sort_values(ascending=False)
    lost = met.groupby("workload")["lost_again"].mean()
    missed = studies[(studies["submission"] == BASELINE) & ~studies["met"].astype(bool)][
        "workload"
    ].value_counts()
    number = studies[studies["submission"] == BASELINE].groupby("workload").size()
    gone = ", ".join(f"{name} {count} of {number.to_dict()[name]}" for name, count in missed.items())
    return [
        f"The time to a target is known within {100 * width.median():.1f} % of itself (median over workloads; at most "
        f"{100 * widest.iloc[0]:.0f} %, on {widest.index[0]}), since evaluations go by the clock.",
        f"Of {len(met)} best trials that meet their target {int(met['lost_again'].sum())} fall behind it again at a "
        f"later evaluation ({', '.join(f'{name} {100 * share:.0f} %' for name, share in lost[lost > 0].items())}).",
        f"Studies in which NadamW misses, which a mean over survivors would drop: {gone or 'none'}.",
    ]
