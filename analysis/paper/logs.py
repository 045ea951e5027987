"""What AlgoPerf's accelerator logs say on the same questions: how tight real targets are, how noisy, what a built-in
average saves at full size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from analysis.paper import numbers
from analysis.run_folder import records as schema
from analysis.run_folder.study import percent
from analysis.statistics.algoperf_score import ALL_BASE, read_evaluations, score
from analysis.statistics.resampling import ratios_of_medians, with_interval
from analysis.statistics.verdicts import by_luck

BASELINE, AVERAGING = "baseline", "schedule_free_adamw"
NAMES = {AVERAGING: "Schedule-Free", BASELINE: "NadamW"}


def sentences(run: str | Path) -> list[str]:
    """The findings of an imported run folder that holds AlgoPerf's baseline and Schedule-Free.

    Raises: analysis.run_folder.records.BadRun where the folder was not imported from AlgoPerf's logs.
    """
    studies = score(read_evaluations(run)).studies
    studies = studies[studies["workload"].isin(ALL_BASE)]
    budgets = schema.load_cells(run).groupby("workload")["step_budget"].first()
    return [*built_in_average(studies), *_real_tightness(studies, budgets), *_noise(studies)]


def built_in_average(studies: pd.DataFrame) -> list[str]:
    """Schedule-Free against NadamW, in seconds to the target; none where no workload has both."""
    told, never, sides = [], [], {"less": 0, "more": 0, "undecided": 0}
    for workload, mine in studies.groupby("workload", sort=True):
        seconds = [mine.loc[mine["submission"] == one, "seconds"].to_numpy(dtype=float) for one in NAMES]
        if not all(map(len, seconds)):
            continue
        missed = [int(np.isinf(side).sum()) for side in seconds]
        all_miss = [number == len(side) for number, side in zip(missed, seconds, strict=True)]
        if all(all_miss):
            told.append(f"{workload} neither")
            continue
        found = ratios_of_medians(*seconds)
        told.append(f"{workload} {'none' if np.isnan(found.value) else with_interval(found)}")
        sides["less" if found.high < 1 else "more" if found.low > 1 else "undecided"] += 1
        if any(all_miss):
            told_of = zip(all_miss, NAMES.values(), missed, map(len, seconds), strict=True)
            (*_, other, some, several), (*_, one, _, every) = sorted(told_of)  # who misses it in all is last
            never.append(
                f"{one} misses the target of {workload} in all {every} studies, {other} in {some} of {several}."
            )
    if not told:
        return []
    total = sum(sides.values())
    luck = percent(by_luck(sides["less"], total))
    text = (
        "At full size an optimizer with an average built in (Schedule-Free) needs less time to the target than NadamW "
        f"on {sides['less']} of {total} workloads (by luck alone {luck}), more on {sides['more']}, undecided on "
        f"{sides['undecided']}. Ratio of median seconds: {'; '.join(told)}."
    )
    return [" ".join([text, *never])]


def _real_tightness(studies: pd.DataFrame, budgets: pd.Series) -> list[str]:
    mine = studies[studies["submission"] == BASELINE]
    mine = mine.assign(step=mine["step"].where(mine["met"].astype(bool), np.inf))  # NaN: its counter counts no steps
    mine = mine[mine["step"].notna().groupby(mine["workload"]).transform("all")]
    steps = mine.groupby("workload")["step"].median()
    share = steps / budgets.reindex(steps.index)
    never = ", ".join(share.index[np.isinf(share)])
    paper = {name: point["share"] for name, point in numbers.read()["points"].items()}
    both = {name: (one, paper[name]) for name, one in share.items() if name in paper and np.isfinite(one)}
    if not both:
        return []
    told = ", ".join(f"{name} {ours:.2f} ({theirs:.2f})" for name, (ours, theirs) in both.items())
    apart = np.median([abs(ours - theirs) for ours, theirs in both.values()])
    return [
        "AlgoPerf's own NadamW meets its target after this share of the step hint, median over studies, beside the "
        f"paper's NadamW: {told}; they differ by {apart:.2f} (median)."
        + (f" Its median study misses on {never}." if never else "")
    ]


def _noise(studies: pd.DataFrame) -> list[str]:
    met = studies[studies["met"].astype(bool)]
    if met.empty:
        return [f"No study of {len(studies)} meets its target."]
    width = ((met["seconds"] - met["seconds_before"]) / met["seconds"]).groupby(met["workload"]).median()
    lost = met.groupby("workload")["lost_again"].mean()
    again = ", ".join(f"{name} {100 * share:.0f} %" for name, share in lost[lost > 0].items())
    missed = (~studies["met"].astype(bool))[studies["submission"] == BASELINE].groupby(studies["workload"])
    gone = missed.agg(["sum", "size"]).query("sum > 0").sort_values("sum", ascending=False, kind="stable")
    names = ", ".join(f"{name} {missing} of {size}" for name, missing, size in gone.itertuples())
    return [
        f"The time to a target is known within {100 * width.median():.1f} % of itself (median over workloads; at most "
        f"{100 * width.max():.0f} %, on {width.idxmax()}), since evaluations go by the clock.",
        f"Of {len(met)} best trials that meet their target {int(met['lost_again'].sum())} fall behind it again at a "
        f"later evaluation ({again}).",
        f"Studies in which NadamW misses, which a mean over survivors would drop: {names or 'none'}.",
    ]
