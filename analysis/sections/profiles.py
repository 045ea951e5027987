"""How often is each scheme, or each submission of imported logs, near the fastest?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import chart as charts
from analysis import profiles
from analysis.algoperf_score import EVALUATIONS_FILE, TAU, read_evaluations
from analysis.core import Core
from analysis.resampling import Interval, with_interval
from analysis.study import SCHEME_NAMES
from analysis.style import scheme_colours, submission_colours

TITLE = "Performance profiles"
CAPTION = (
    "Left: on how many workloads a scheme is within τ times the fastest; the score is the area below, to τ = 4. Right: "
    "how far each is from the fastest; at the edge it missed. Pre-specified settings, on the reference schedule."
)
RULE = profiles.RULE
LEAST = 1.3  # how far the axis of ratios reaches at least
_TICKS = [1, 1.1, 1.25, 1.5, 2, 3, 4]


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """score_times, score_scores, score_leads, score_profile, of logs score_differences: see `analysis.profiles`."""
    known = core.run is not None and (core.run / EVALUATIONS_FILE).is_file()
    found = profiles.of_submissions(read_evaluations(core.run)) if core.run and known else profiles.of_schemes(core)
    return found or {f"score_{name}": pd.DataFrame(columns=["measure"]) for name in profiles.FRAMES}


def sentences(score_scores: pd.DataFrame, score_leads: pd.DataFrame) -> list[str]:
    """The scores in order, in the first measure, and whether the lead of the highest is shown."""
    if score_scores.empty:
        return []
    scores, leads = (
        table[table["measure"] == score_scores["measure"].iloc[0]] for table in (score_scores, score_leads)
    )
    each = "; ".join(f"{row['submission']} {number(row, 'score')}" for row in scores.to_dict("records"))
    said = [f"Score: {each}."]
    open_ = leads.loc[~(leads["low"] > 0), "versus"]
    if len(leads) and len(open_):
        said.append(f"That {leads['submission'].iloc[0]} leads {listed(list(open_))} is undecided.")
    return said


def number(row: Any, name: str) -> str:
    """With the interval in the columns low and high."""
    return with_interval(Interval(row[name], row["low"], row["high"]), ".3f")


def listed(names: list[str]) -> str:
    """'a, b and c'."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def chart(score_scores: pd.DataFrame, score_profile: pd.DataFrame, score_times: pd.DataFrame) -> alt.ConcatChart | None:
    """ρ(τ) for τ from 1 to 4, and the ratio to the fastest on each workload, misses at the right edge."""
    if score_scores.empty:
        return None
    names = list(score_scores.loc[score_scores["measure"] == score_scores["measure"].iloc[0], "submission"])
    measures, colours = list(dict.fromkeys(score_scores["measure"])), colours_of(names)
    radio = alt.binding_radio(options=measures, name="by: ")
    bound = radio if len(measures) > 1 else alt.Undefined
    pick = alt.param(name="score_measure", value=measures[0], bind=bound)
    shown = "datum.measure == score_measure"
    left = charts.titled(
        _steps(score_profile, colours).transform_filter(shown),
        "Performance profile",
        "share of workloads within τ times the fastest",
        width=400,
    )
    made = charts.grid([left, _ratios(score_times, colours, shown)])
    return None if made is None else made.add_params(pick)


def colours_of(names: list[str]) -> dict[str, str]:
    """A scheme has its own colour everywhere, a submission one by its place."""
    keys = {name: key for key, name in SCHEME_NAMES.items()}
    if not set(names) <= set(keys):
        return submission_colours(names)
    colours = scheme_colours([keys[name] for name in names])
    return {name: colours[keys[name]] for name in names}


def _steps(profile: pd.DataFrame, colours: dict[str, str]) -> Any:
    base = alt.Chart(profile).encode(
        x=alt.X(
            "tau:Q",
            title="τ, times the fastest (log)",
            scale=alt.Scale(type="log", domain=[1, float(TAU[-1])], nice=False),
            axis=alt.Axis(values=_TICKS, format="~g", grid=True),
        ),
        y=alt.Y("share:Q", title="ρ(τ), share of workloads", scale=alt.Scale(domain=[0, 1.02], nice=False)),
        color=_colour(colours),
    )
    names = list(colours)
    dash = alt.StrokeDash(
        "submission:N",
        legend=None,
        scale=alt.Scale(domain=names, range=[([1, 0], [8, 4], [2, 3])[i % 3] for i in range(len(names))]),
    )
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
    base = alt.Chart(table).encode(
        x=alt.X(
            "at:Q",
            title="median time ÷ the fastest's (log; cross at the edge: missed)",
            scale=alt.Scale(type="log", domain=[0.99, edge * 1.02], nice=False),
            axis=alt.Axis(values=[tick for tick in _TICKS if tick <= end], format="~g", grid=True),
        ),
        y=alt.Y("workload:N", title=None, axis=alt.Axis(ticks=False, domain=False, grid=True)),
        yOffset=alt.YOffset("submission:N", sort=list(colours)),
        color=_colour(colours),
        tooltip=charts.tooltips(
            *("submission:N:who", "workload:N:workload", "said:N:time", "ratio:Q:÷ the fastest's:.3f"),
            "missed:N:studies that miss",
        ),
        shape=alt.Shape("is_met:N", legend=None, scale=alt.Scale(domain=["met", "missed"], range=["circle", "cross"])),
    )
    chart = base.mark_point(filled=True, size=60, opacity=1).transform_filter(shown)
    layered = alt.layer(charts.vertical_rule(1.0, width=1.2), chart)
    height = max(charts.HEIGHT, (8 + 8 * len(colours)) * times["workload"].nunique())
    return charts.titled(layered, "Time to the target", "median over studies", height=height, width=330)


def _colour(colours: dict[str, str]) -> alt.Color:
    legend = alt.Legend(title=None, symbolOpacity=1, symbolType="circle", symbolStrokeWidth=0)
    return alt.Color("submission:N", scale=charts.scale(colours), sort=list(colours), legend=legend)


def _time(value: float) -> str:
    return f"{value:,.4g}" if np.isfinite(value) and value < 1000 else f"{value:,.0f}".replace("inf", "∞")
