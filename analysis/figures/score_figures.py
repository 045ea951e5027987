"""Performance profiles as a figure: a step line a submission, and beside it how far each is from the fastest."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import chart as panels
from analysis.algoperf_score import TAU
from analysis.profiles import Profiles
from analysis.study import SCHEME_NAMES
from analysis.style import scheme_colours, submission_colours

LEAST = 1.3  # how far the axis of ratios reaches at least
_TICKS = [1, 1.1, 1.25, 1.5, 2, 3, 4]


def profiles(found: Profiles | None) -> alt.ConcatChart | None:
    """ρ(τ) for τ from 1 to 4, and the ratio to the fastest on each workload, misses at the right edge."""
    if found is None:
        return None
    first = found.scores[found.scores["measure"] == found.measures[0]]
    colours = _colours(list(first["submission"]), found.imported)
    radio = alt.binding_radio(options=found.measures, name="rule: " if found.imported else "measured in: ")
    pick = alt.param(
        name="score_measure",
        value=found.measures[0],
        bind=radio if len(found.measures) > 1 else alt.Undefined,
    )
    shown = "datum.measure == score_measure"
    parts = [
        panels.titled(
            _steps(found.profile, colours).transform_filter(shown),
            "Performance profile",
            "share of workloads within τ times the fastest",
            width=400,
        ),
        _ratios(found.times, colours, shown),
    ]
    chart = panels.grid(parts)
    return None if chart is None else chart.add_params(pick)


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
    hover = panels.tooltips("submission:N:who", "tau:Q:τ:.3f", "share:Q:within τ:.1%")
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
        tooltip=panels.tooltips(
            *("submission:N:who", "workload:N:workload", "said:N:time", "ratio:Q:÷ the fastest's:.3f"),
            "missed:N:studies that miss",
        ),
        shape=alt.Shape("is_met:N", legend=None, scale=alt.Scale(domain=["met", "missed"], range=["circle", "cross"])),
    )
    chart = base.mark_point(filled=True, size=60, opacity=1).transform_filter(shown)
    layered = alt.layer(panels.vertical_rule(1.0, width=1.2), chart)
    height = max(panels.HEIGHT, (8 + 8 * len(colours)) * times["workload"].nunique())
    return panels.titled(layered, "Time to the target", "median over studies", height=height, width=330)


def _colours(names: list[str], imported: bool) -> dict[str, str]:
    if imported:
        return submission_colours(names)
    keys = {name: key for key, name in SCHEME_NAMES.items()}
    colours = scheme_colours([keys.get(name, name) for name in names])
    return {name: colours[keys.get(name, name)] for name in names}


def _colour(colours: dict[str, str]) -> alt.Color:
    legend = alt.Legend(title=None, symbolOpacity=1, symbolType="circle", symbolStrokeWidth=0)
    return alt.Color("submission:N", scale=panels.scale(colours), sort=list(colours), legend=legend)


def _time(value: float) -> str:
    return f"{value:,.4g}" if np.isfinite(value) and value < 1000 else f"{value:,.0f}".replace("inf", "∞")
