"""How often is each scheme, or each submission of imported logs, near the fastest?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import altair as alt
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis import words
from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import scheme_colours, submission_colours
from analysis.presentation.table_format import Column, Shown
from analysis.run_folder.study import SCHEME_NAMES
from analysis.statistics.algoperf_score import (
    EVALUATIONS_FILE,
    TAU,
    areas,
    best_trials,
    code_of,
    differences,
    performance_profile,
    ratios_to_best,
    read_evaluations,
    scored_times,
    seconds_to_target,
    trials_to_target,
)  # fmt: skip
from analysis.statistics.resampling import RESAMPLES, Interval, draws_of, interval, widening, with_interval

TITLE = "Performance profiles"
CAPTION = (
    "Left: on how many workloads a scheme is within τ times the fastest; the score is the area below, to τ = 4. Right: "
    "how far each is from the fastest; at the edge it missed. Pre-specified settings, on the reference schedule."
)
RULE = (
    "t(s, w): the median over studies, a miss counted as ∞; r: its ratio to the best submission's; ρ(τ): the share of "
    "workloads on which r ≤ τ; score: the area under ρ from 1 to 4, divided by 3, by trapezoid on 100 points "
    "(AlgoPerf's definition; Dahl et al. 2023). It depends on who else takes part. Intervals resample studies within "
    "each workload (10,000 resamples, percentile, widened for few): they speak of these workloads."
)
Floats = NDArray[np.float64]
CLEAN, EXACT, STEPS = "clean", "algoperf-exact", "steps"
FEWEST = 3  # workloads, for a profile of a study of ours
FRAMES = ("times", "scores", "leads", "profile")
LEAST = 1.3  # how far the axis of ratios reaches at least
_TICKS = [1, 1.1, 1.25, 1.5, 2, 3, 4]
FEW = 5  # submissions that a sentence names
SHOWN = (Shown("score_scores", "Scores", ("submission", "score", "fastest"), lambda frame: in_first_measure(frame)),)
COLUMNS = {
    "score": Column("score", lambda row: number(row, "score")),
    "fastest": Column("fastest on", lambda row: f"{row['num_fastest']}/{row['num_workloads']}"),
}


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """Frames with a column measure: a rule (of logs), or what is counted (of our studies, whose schemes submit their
    runs on the reference training at the pre-specified horizon, their seeds as studies).

    score_times: submission, workload · time (a miss ∞), ratio to the best, num_studies, num_missed, scored ·
    score_scores: submission · score, low, high, integral, num_fastest, num_workloads · score_leads: submission (the
    first), versus · difference, low, high · score_profile: submission, tau · share, at each τ where a share changes ·
    score_differences: of logs, between the two rules.
    """
    known = core.run is not None and (core.run / EVALUATIONS_FILE).is_file()
    found = of_submissions(read_evaluations(core.run)) if core.run and known else of_schemes(core)
    return found or {f"score_{name}": pd.DataFrame(columns=["measure"]) for name in FRAMES}


def sentences(score_scores: pd.DataFrame, score_leads: pd.DataFrame) -> list[str]:
    """The scores in order, in the first measure, and whether the lead of the highest is shown."""
    if score_scores.empty:
        return []
    scores = in_first_measure(score_scores).to_dict("records")
    each = [f"{row['submission']} {number(row, 'score')}" for row in scores]
    said = [f"Score: {words.first(each, FEW, rest=' and {} more in the table')}."]
    others = undecided(score_leads)
    if others:
        told = words.listed(others) if len(others) <= FEW else f"{len(others)} others"
        said.append(f"That {scores[0]['submission']} leads {told} is undecided.")
    return said


def in_first_measure(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the measure that counts: the first."""
    return table[table["measure"] == table["measure"].iloc[0]] if len(table) else table


def undecided(score_leads: pd.DataFrame) -> list[str]:
    """The submissions whose distance to the highest score covers 0, or has no interval."""
    leads = in_first_measure(score_leads)
    return list(leads.loc[~(leads["low"] > 0), "versus"])


def number(row: Any, name: str) -> str:
    """With the interval in the columns low and high."""
    return with_interval(Interval(row[name], row["low"], row["high"]), ".3f")


def chart(score_scores: pd.DataFrame, score_profile: pd.DataFrame, score_times: pd.DataFrame) -> alt.ConcatChart | None:
    """ρ(τ) for τ from 1 to 4, and the ratio to the fastest on each workload, misses at the right edge."""
    if score_scores.empty:
        return None
    colours = colours_of(list(in_first_measure(score_scores)["submission"]))
    shown = "datum.measure == score_measure"
    pick = charts.switch("score_measure", "by: ", list(dict.fromkeys(score_scores["measure"])))
    left = _steps(score_profile, colours).transform_filter(shown)
    left = charts.titled(left, "Performance profile", "share of workloads within τ times the fastest", width=400)
    made = charts.grid([left, _ratios(score_times, colours, shown)])
    return None if made is None else made.add_params(pick)


def colours_of(names: list[str]) -> dict[str, str]:
    """A scheme has its own colour everywhere, a submission one by its place."""
    own = {SCHEME_NAMES[scheme]: colour for scheme, colour in scheme_colours(list(SCHEME_NAMES)).items()}
    return {name: own[name] for name in names} if set(names) <= set(own) else submission_colours(names)


def _steps(profile: pd.DataFrame, colours: dict[str, str]) -> Any:
    x = alt.X("tau:Q", title="τ, times the fastest (log)", axis=alt.Axis(values=_TICKS, format="~g", grid=True))
    x = x.scale(alt.Scale(type="log", domain=[1, float(TAU[-1])], nice=False))
    y = alt.Y("share:Q", title="ρ(τ), share of workloads", scale=alt.Scale(domain=[0, 1.02], nice=False))
    base = alt.Chart(profile).encode(x=x, y=y, color=_colour(colours))
    dashes = [([1, 0], [8, 4], [2, 3])[place % 3] for place in range(len(colours))]
    dash = alt.StrokeDash("submission:N", legend=None, scale=alt.Scale(domain=list(colours), range=dashes))
    hover = charts.tooltips("submission:N:who", "tau:Q:τ:.3f", "share:Q:within τ:.1%")
    line = base.mark_line(interpolate="step-after", strokeWidth=2.5, clip=True).encode(strokeDash=dash)
    return alt.layer(line, base.mark_point(filled=True, size=28, opacity=1, clip=True).encode(tooltip=hover))


def _ratios(times: pd.DataFrame, colours: dict[str, str], shown: str) -> Any:
    times = times[times["scored"].astype(bool)]  # variants are in the table
    finite = times["ratio"].where(np.isfinite(times["ratio"]))
    end = float(min(max(LEAST, 1.05 * finite.max()), TAU[-1])) if finite.notna().any() else LEAST
    edge = end**1.12
    table = times.assign(
        at=finite.clip(upper=end).fillna(edge),
        is_met=np.where(finite.notna(), "met", "missed"),
        said=[_time(value) for value in times["time"]],
        missed=[f"{row.num_missed}/{row.num_studies}" for row in times.itertuples()],
    )
    axis = alt.Axis(values=[tick for tick in _TICKS if tick <= end], format="~g", grid=True)
    x = alt.X("at:Q", title="median time ÷ the fastest's (log; cross at the edge: missed)", axis=axis)
    hover = charts.tooltips(
        *("submission:N:who", "workload:N:workload", "said:N:time", "ratio:Q:÷ the fastest's:.3f"),
        "missed:N:studies that miss",
    )
    base = alt.Chart(table).encode(
        x=x.scale(alt.Scale(type="log", domain=[0.99, edge * 1.02], nice=False)),
        y=alt.Y("workload:N", title=None, axis=alt.Axis(ticks=False, domain=False, grid=True)),
        yOffset=alt.YOffset("submission:N", sort=list(colours)),
        color=_colour(colours),
        tooltip=hover,
        shape=met_shape("is_met"),
    )
    chart = base.mark_point(filled=True, size=60, opacity=1).transform_filter(shown)
    layered = alt.layer(charts.vertical_rule(1.0, width=1.2), chart)
    height = max(charts.HEIGHT, (8 + 8 * len(colours)) * times["workload"].nunique())
    return charts.titled(layered, "Time to the target", "median over studies", height=height, width=330)


def met_shape(field: str) -> alt.Shape:
    """A circle where the column says ``met``, a cross where ``missed``."""
    kinds = alt.Scale(domain=["met", "missed"], range=["circle", "cross"])
    return alt.Shape(f"{field}:N", legend=None, scale=kinds)


def _colour(colours: dict[str, str]) -> alt.Color:
    legend = alt.Legend(title=None, symbolOpacity=1, symbolType="circle", symbolStrokeWidth=0)
    return alt.Color("submission:N", scale=charts.scale(colours), sort=list(colours), legend=legend)


def _time(value: float) -> str:
    return f"{value:,.4g}" if np.isfinite(value) and value < 1000 else f"{value:,.0f}".replace("inf", "∞")


def of_submissions(evaluations: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The clean rule with intervals, AlgoPerf's beside it; nothing where no base workload was run.

    Args: evaluations: of `algoperf_score.read_evaluations`.
    """
    parts: dict[str, dict[str, pd.DataFrame]] = {}
    for measure in (CLEAN, EXACT):
        exact = measure == EXACT
        code = code_of(evaluations, exact)
        studies = best_trials(trials_to_target(evaluations, exact), exact)
        medians = seconds_to_target(studies)
        times = scored_times(medians, code)
        if times.empty:
            continue
        studies, every = (table.rename(columns={"seconds": "time"}) for table in (studies, medians))
        every = every[["submission", "workload", "time", "num_studies", "num_missed"]]
        parts[measure] = _measured(measure, times, studies, every, paired=False, intervals=not exact)
    return _joined(parts) | {"score_differences": differences(evaluations)} if CLEAN in parts else {}


def of_schemes(core: Core) -> dict[str, pd.DataFrame]:
    """Of a study with a baseline and pre-specified settings on FEWEST workloads or more, else nothing.

    A workload takes part where every run of every scheme has ended; a scheme where it was run on all of those.
    """
    runs = _runs(core)
    waiting = runs.loc[runs["status"] == "unfinished", "workload"]
    runs = runs[~runs["workload"].isin(waiting)]
    counts = runs.groupby("submission")["workload"].nunique()
    runs = runs[runs["submission"].isin(counts.index[counts == runs["workload"].nunique()])]
    if runs["workload"].nunique() < FEWEST or runs["submission"].nunique() < 2:
        return {}
    parts = {}
    for measure, column in {STEPS: "point", core.unit: "device_hours"}.items():
        studies = runs.assign(time=runs[column].where(runs["status"] == "met", np.inf).fillna(np.inf))
        groups = studies.assign(missed=np.isinf(studies["time"])).groupby(["submission", "workload"], as_index=False)
        every = groups.agg(time=("time", "median"), num_studies=("study", "nunique"), num_missed=("missed", "sum"))
        times = every.pivot(index="submission", columns="workload", values="time")
        parts[measure] = _measured(measure, times, studies, every, paired=True)
    return _joined(parts)


def _runs(core: Core) -> pd.DataFrame:
    """submission, workload, study (seed), status, point, device_hours: the runs that stand for each scheme."""
    every = core.cells.drop_duplicates("setting")
    own = every[(every["scheme"] == "none") & (every["training"] == every["workload"].map(core.reference))]
    picked = pd.concat([own, core.chosen[core.chosen["near"].astype(bool)]])[["setting", "scheme"]]
    picked = picked.assign(submission=picked["scheme"].map(SCHEME_NAMES))
    runs = core.named(core.steps).merge(core.hours, on="cell_id", how="left")
    runs = runs.merge(picked[["setting", "submission"]], on="setting", how="inner").rename(columns={"seed": "study"})
    runs = runs.sort_values(["submission", "workload", "study"], kind="stable")
    return runs[["submission", "workload", "study", "status", "point", "device_hours"]]


def _measured(
    measure: str, times: pd.DataFrame, studies: pd.DataFrame, every: pd.DataFrame, paired: bool, intervals: bool = True
) -> dict[str, pd.DataFrame]:
    """Args: times: submissions × workloads that the score takes. every: all medians, with those it does not take."""
    shown = np.unique(np.concatenate([[1.0, TAU[-1]], ratios_to_best(times).to_numpy(dtype=float).ravel()]))
    profile = performance_profile(times, shown[np.isfinite(shown) & (shown <= TAU[-1])])
    changes = profile["share"] != profile.groupby("submission")["share"].shift()
    profile = profile[changes | (profile["tau"] == TAU[-1])]
    scores = areas(times, performance_profile(times))
    fastest = (times == times.min(axis=0)) & np.isfinite(times)
    scores = scores.assign(num_fastest=[int(fastest.loc[name].sum()) for name in scores["submission"]])
    scores = scores.sort_values(["score", "submission"], ascending=[False, True], kind="stable")
    best = every.groupby("workload")["time"].transform("min")
    ratio = np.where(np.isfinite(every["time"]), every["time"] / best, np.inf)
    first, rest = scores.iloc[0], scores.iloc[1:]  # how far the highest score lies above each other one
    apart = {"versus": rest["submission"], "difference": first["score"] - rest["score"]}
    leads = pd.DataFrame({"submission": first["submission"]} | apart)
    if intervals:
        draws = _score_draws(times, studies, paired)
        of_each = studies[studies["workload"].isin(times.columns)].groupby(["submission", "workload"])
        factor = widening(*of_each.size())  # NaN where some submission has one study of a workload
        scores = _with_bounds(scores, "score", [draws[name] for name in scores["submission"]], factor, 0.0)
        between = [draws[a] - draws[b] for a, b in zip(leads["submission"], leads["versus"], strict=True)]
        leads = _with_bounds(leads, "difference", between, factor, -1.0)
    else:
        scores, leads = (table.assign(low=np.nan, high=np.nan) for table in (scores, leads))
    columns = ["submission", "score", "low", "high", "integral", "num_fastest", "num_workloads"]
    every = every.assign(ratio=ratio, scored=every["workload"].isin(times.columns))
    found = {"times": every, "scores": scores[columns], "leads": leads, "profile": profile}
    return {name: table.assign(measure=measure).reset_index(drop=True) for name, table in found.items()}


def _score_draws(times: pd.DataFrame, studies: pd.DataFrame, paired: bool) -> Mapping[str, Floats]:
    """submission -> its score over resamples of the studies of each workload; together where they are paired."""
    medians = np.full((RESAMPLES, *times.shape), np.inf)
    groups = dict(iter(studies.groupby(["submission", "workload"], sort=True)["time"]))
    for column, workload in enumerate(times.columns):
        for row, submission in enumerate(times.index):
            if (submission, workload) in groups:
                values = groups[submission, workload].to_numpy(dtype=float)
                seed = 1 + column if paired else 1 + row + column * len(times)
                medians[:, row, column] = draws_of(values, seed, np.median)
    with np.errstate(invalid="ignore"):
        ratio = medians / medians.min(axis=1, keepdims=True)
    weights = np.full(len(TAU), 1.0 / (len(TAU) - 1))  # of the trapezoid
    weights[[0, -1]] /= 2
    beyond = np.append(np.cumsum(weights[::-1])[::-1], 0.0)  # from the first point of TAU with τ ≥ r on
    place = np.searchsorted(TAU, np.where(np.isnan(ratio), np.inf, ratio))
    drawn = beyond[place].mean(axis=2)
    return {str(name): drawn[:, row] for row, name in enumerate(times.index)}


def _with_bounds(table: pd.DataFrame, name: str, draws: list[Floats], factor: float, least: float) -> pd.DataFrame:
    columns = np.stack(draws, axis=1) if draws else np.empty((RESAMPLES, 0))
    value, low, high = interval(table[name].to_numpy(dtype=float), columns, factor, scale=1.0)
    low, high = np.clip([low, high], least, 1.0)
    return table.assign(low=np.minimum(low, value), high=np.maximum(high, value))


def _joined(parts: dict[str, dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    found = {}
    for name in FRAMES:
        table = pd.concat([part[name] for part in parts.values()], ignore_index=True)
        found[f"score_{name}"] = table[["measure", *(column for column in table if column != "measure")]]
    return found
