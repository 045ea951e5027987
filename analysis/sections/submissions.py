"""Does a submission to AlgoPerf reach the targets sooner than the baseline?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import words
from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.table_format import Column, Shown
from analysis.run_folder.study import counted
from analysis.sections.profiles import colours_of, in_first_measure, met_shape, number, undecided
from analysis.statistics import verdicts
from analysis.statistics.algoperf_score import base_workload, best_trials, read_evaluations, trials_to_target
from analysis.statistics.resampling import Interval, ratios_of_medians, with_interval

TITLE = "Against the baseline"
CAPTION = (
    "A row a submission, a panel a workload: median time to the target ÷ the baseline's, with the 95 % interval over "
    "studies; left of 1 is sooner, a cross at an edge missed the target (right), or the baseline did (left)."
)
RULE = (
    "A study's value is its best trial's, by seconds; a study that misses counts as ∞. The ratio is between medians "
    "over studies, and none where both are ∞; its interval resamples the studies of both sides, widened for few. An "
    "infinite bound is a bound: where a resampled median is ∞ so is the ratio, or 0; a resample in which both are ∞ "
    "leaves the ratio open, and counts as 0 for the lower bound and as ∞ for the upper one."
)
SHOWN = (
    Shown(
        "against_baseline",
        "Median time to the target ÷ the baseline's",
        ("submission", "workload", "ratio", "verdict", "num_missed", "baseline_missed"),
        lambda frame: frame[frame["measure"] == "seconds"],
    ),
)
COLUMNS = {
    "ratio": Column("seconds ÷ baseline's", lambda row: ratio_text(row)),
    "num_missed": Column("missed", lambda row: f"{row['num_missed']}/{row['num_studies']}"),
    "baseline_missed": Column("baseline missed", lambda row: f"{row['baseline_missed']}/{row['baseline_studies']}"),
}


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """against_baseline: one row a (measure, submission, base workload): measure (``seconds``, ``steps``), baseline ·
    ratio, low, high: of medians over studies, ∞ where the submission misses, 0 where the baseline does · verdict ·
    num_missed of num_studies, baseline_missed of baseline_studies.
    """
    if core.run is None:
        return {"against_baseline": pd.DataFrame(columns=COLUMNS_OF_TABLE)}
    return {"against_baseline": against(read_evaluations(core.run), core.study.plan.get("baseline"))}


COLUMNS_OF_TABLE = [
    *("measure", "baseline", "submission", "workload", "ratio", "low", "high", "verdict"),
    *("num_missed", "num_studies", "baseline_missed", "baseline_studies"),
]


def against(evaluations: pd.DataFrame, named: str | None = None) -> pd.DataFrame:
    """See `tables`. Args: evaluations: of `read_evaluations`. named: the baseline, if one is asked for."""
    studies = best_trials(trials_to_target(evaluations))
    studies = studies[studies["workload"].map(base_workload).isna()]
    met = studies["met"].astype(bool)
    studies = studies.assign(steps=studies["step"].where(met, np.inf), missed=~met)
    baseline = baseline_of(named, sorted(set(studies["submission"])))
    rows = []
    for (submission, workload), mine in studies.groupby(["submission", "workload"], sort=True):
        other = studies[(studies["submission"] == baseline) & (studies["workload"] == workload)]
        if submission == baseline or other.empty:
            continue
        missed = [count for side in (mine, other) for count in (int(side["missed"].sum()), len(side))]
        for measure in ("seconds", "steps"):
            top, bottom = (side[measure].to_numpy(dtype=float) for side in (mine, other))
            if not np.isnan(np.concatenate([top, bottom])).any():
                found = ratios_of_medians(top, bottom)
                rows.append((measure, baseline, submission, workload, *found, verdict(found), *missed))
    return pd.DataFrame(rows, columns=COLUMNS_OF_TABLE)


def baseline_of(named: str | None, submissions: list[str]) -> str | None:
    """The submission asked for, else one called baseline, else one of NadamW's; None where there is none of these."""
    if named is not None:
        return named
    return next((name for word in ("baseline", "nadamw") for name in submissions if word in name.lower()), None)


def verdict(ratio: Interval) -> str:
    """``sooner``, ``later`` (shown), ``undecided``, ``both miss``."""
    if np.isnan(ratio.value):
        return "both miss"
    if np.isnan(ratio.low) or ratio.low <= 1 <= ratio.high:
        return verdicts.UNDECIDED
    return "sooner" if ratio.high < 1 else "later"


def ratio_text(row: Any) -> str:
    """'0.90 [0.88, 0.92]'; ∞ where the submission misses in most studies."""
    return "both miss" if np.isnan(row["ratio"]) else with_interval(Interval(row["ratio"], row["low"], row["high"]))


def chart(against_baseline: pd.DataFrame) -> alt.ConcatChart | None:
    """A panel a workload, a row a submission, on one logarithmic axis; a switch between seconds and steps."""
    table = against_baseline[against_baseline["ratio"].notna()]
    if table.empty:
        return None
    finite = table[["ratio", "low", "high"]].to_numpy(dtype=float)
    inside = finite[(finite > 0) & np.isfinite(finite)]
    edges = [max(0.2, float(inside.min(initial=1.0)) / 1.1), min(5.0, float(inside.max(initial=1.0)) * 1.1)]
    place = {name: table[name].astype(float).clip(*edges) for name in ("ratio", "low", "high")}
    missed = ~np.isfinite(table["ratio"]) | (table["ratio"] == 0)
    said = [ratio_text(row) for row in table.to_dict("records")]
    table = table.assign(**place, kind=np.where(missed, "missed", "met"), said=said)
    names = sorted(set(table["submission"]))
    colour = alt.Color("submission:N", scale=charts.scale(colours_of(names)), legend=None)
    pick = charts.switch("submissions_measure", "time in ", list(dict.fromkeys(table["measure"])))
    scale = alt.Scale(type="log", domain=edges, nice=False, clamp=True)
    x = alt.X("ratio:Q", title=f"time to the target ÷ {table['baseline'].iloc[0]}'s (log)", scale=scale)
    hover = charts.tooltips(
        *("submission:N:submission", "workload:N:workload", "said:N:ratio", "verdict:N:it is"),
        *("num_missed:Q:studies that miss:d", "num_studies:Q:of:d", "baseline_missed:Q:baseline's that miss:d"),
    )
    parts = []
    for workload, mine in table.groupby("workload", sort=True):
        y = alt.Y("submission:N", title=None, sort=names, axis=alt.Axis(ticks=False, domain=False, labelLimit=220))
        base = alt.Chart(mine).transform_filter("datum.measure == submissions_measure").encode(y=y, color=colour)
        rule = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title="", scale=scale), x2="high:Q")
        dots = base.mark_point(filled=True, size=60, opacity=1).encode(x=x, shape=met_shape("kind"), tooltip=hover)
        layers = alt.layer(charts.vertical_rule(1.0), rule, dots)
        parts.append(charts.titled(layers, str(workload), height=18 * mine["submission"].nunique() + 14, width=300))
    made = charts.grid(parts)
    return None if made is None else made.add_params(pick)


def sentences(against_baseline: pd.DataFrame) -> list[str]:
    """Each submission: on how many workloads it is sooner and later, and how often that many come by luck."""
    table = against_baseline[against_baseline["measure"] == "seconds"]
    if table.empty:
        return []
    counts = pd.crosstab(table["submission"], table["verdict"]).reindex(columns=["sooner", "later"], fill_value=0)
    counts = counts.assign(of=table.groupby("submission").size(), ahead=counts["sooner"] - counts["later"])
    counts = counts.sort_values("ahead", ascending=False, kind="stable")
    told = [f"{name} {one['sooner']} and {one['later']} of {one['of']}" for name, one in counts.iterrows()]
    of = counts["of"].max()
    luck = 100 * verdicts.by_luck(2, of)
    return [
        f"Shown to be sooner and later than {table['baseline'].iloc[0]}, in seconds: "
        f"{words.first(told, 6, rest=' and {} more in the table')}.",
        f"Two of {of} come by luck {luck:.1f} times in 100 where nothing differs; intervals are "
        "over studies, on these workloads.",
    ]


def answer(against_baseline: pd.DataFrame, score_scores: pd.DataFrame, score_leads: pd.DataFrame) -> list[str]:
    """Who has the highest score, whether its lead is shown, and how it does against the baseline."""
    if score_scores.empty:
        return ["These logs hold no base workload of AlgoPerf, so there is no score."]
    scores = in_first_measure(score_scores)
    first, workloads = scores.iloc[0], counted(int(scores["num_workloads"].iloc[0]), "workload")
    if len(scores) == 1:
        met = f"meets the target on {first['num_fastest']} of {workloads}"
        return [f"One submission, {first['submission']}: it {met}. A score compares submissions; there is no other."]
    if not scores["num_fastest"].any():
        return [f"No submission of {len(scores)} meets a target on any of {workloads}."]
    others = words.listed(undecided(score_leads)[:4])
    lead = f"its lead over {others} is undecided" if others else "its lead over every other is shown"
    said = [
        f"Of {len(scores)} submissions {first['submission']} has the highest score, {number(first, 'score')}, and is "
        f"fastest on {first['num_fastest']} of {workloads}; {lead}."
    ]
    mine = against_baseline[against_baseline["measure"] == "seconds"]
    mine = mine[mine["submission"] == first["submission"]]
    if len(mine):
        sooner, later = (int((mine["verdict"] == word).sum()) for word in ("sooner", "later"))
        said.append(
            f"Against {mine['baseline'].iloc[0]} it is shown to be sooner on {sooner} of {len(mine)} workloads and "
            f"later on {later}; the others are undecided."
        )
    return said
