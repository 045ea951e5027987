"""The two figures of the replication: ratio against the target's tightness, and what the field predicts."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis.paper.numbers import OURS, PAPER, regression
from analysis.presentation import chart as panels
from analysis.presentation.chart import REFERENCE_LINE, SCHEME_COLOURS
from analysis.run_folder.study import SCHEME_NAMES

HEIGHT = 380
ROWS = 5  # of names along an edge, so that neighbours do not meet
HUES = ("#1f5fa8", "#2f86d1", "#84bdee", "#b565c4", "#d1477a", "#b08a00")
AXES = {  # claim -> what a ratio is, and what it is drawn over
    "batch_size": ("steps to its own target ÷ the baseline's", "horizon"),
    "batch_norm": ("metric ÷ that with recomputed statistics", "horizon"),
    "equal_centre": ("steps-to-target of LAWA ÷ EMA's", "horizon"),
    "merged_decay": ("final metric ÷ that of the decay", "decay"),
}


def tightness(points: pd.DataFrame) -> alt.ConcatChart | None:
    """One panel a scheme: the paper's workloads hollow, this study's filled, a bound a cross; regressions as lines.

    Args: points: of `analysis.paper.numbers.points`. None where this study has none.
    """
    if not (points["source"] == OURS).any():
        return None
    parts = ((str(scheme), mine) for scheme, mine in points.groupby("scheme", sort=True))
    made = [panels.titled(_panel(mine, SCHEME_COLOURS[s]), SCHEME_NAMES[s], height=HEIGHT) for s, mine in parts]
    return panels.grid(made)


def _panel(points: pd.DataFrame, colour: str) -> Any:
    low, high = panels.span(points, ["ratio", "ratio_low", "ratio_high"], include=1.0)
    low, high = max(low, 0.3) - 0.2, min(high, 1.5) + 0.2  # with room for the names
    x = alt.X("share:Q", title="share of the step budget after which the baseline is at the target (→ tighter)")
    x = x.scale(domain=[0.2, 1.0], nice=False).axis(format=".0%", grid=False)
    y = alt.Y("ratio:Q", title="steps-to-target ÷ the baseline's").scale(domain=[low, high], nice=False, zero=False)
    filled = alt.when(alt.datum.source == OURS).then(alt.value(1)).otherwise(alt.value(0))
    shape = alt.when(alt.datum.bound == "exact").then(alt.value("circle")).otherwise(alt.value("cross"))
    base = alt.Chart(points).encode(x=x)
    whiskers = base.mark_rule(clip=True, strokeWidth=1.2, opacity=0.6, color=colour)
    dots = base.mark_point(clip=True, size=75, strokeWidth=1.8, opacity=1, color=colour)
    layers = [
        panels.level_rule(1.0),
        whiskers.encode(y=alt.Y("ratio_low:Q"), y2="ratio_high:Q"),
        dots.encode(y=y, fill=alt.value(colour), fillOpacity=filled, shape=shape),
    ]
    for source, mine in points.groupby("source"):
        if line := regression(mine):
            ends = mine["share"].agg(["min", "max"]).to_frame("share")
            ends = ends.assign(ratio=line["intercept"] + line["slope"] * ends["share"])
            dash = [6, 4] if source == PAPER else [1, 0]
            drawn = alt.Chart(ends).mark_line(clip=True, strokeWidth=2, color=colour, strokeDash=dash)
            layers.append(drawn.encode(x="share:Q", y="ratio:Q"))
    return alt.layer(*layers, *_names(points))


def _names(dots: pd.DataFrame) -> list[alt.Chart]:
    """The last word of each workload's name, in rows with a line to its dot: ours along the top, the paper's below."""
    dots = dots.sort_values(["share", "ratio"], kind="stable")
    dots = dots.assign(name=dots["workload"].str.split("_").str[-1], row=dots.groupby("source").cumcount() % ROWS)
    charts = []
    for (source, row), part in dots.groupby(["source", "row"]):
        edge = 13 * int(str(row))
        at = alt.value(HEIGHT - 6 - edge if source == PAPER else 10 + edge)
        base = alt.Chart(part).encode(x=alt.X("share:Q"))
        leader = base.mark_rule(opacity=0.35, color=REFERENCE_LINE, strokeDash=[1, 2])
        text = base.mark_text(fontSize=10, color=REFERENCE_LINE).encode(y=at, text="name:N")
        charts += [leader.encode(y=alt.Y("ratio:Q"), y2=at), text]
    return charts


def predictions(points: pd.DataFrame) -> alt.ConcatChart | None:
    """A panel a claim and workload: ratios with their intervals, a line a series, stepped aside from one another.

    Args: points: of `analysis.paper.measure.POINTS`.
    """
    parts = []
    for (claim, workload), mine in points.groupby(["claim", "workload"], sort=False):
        title, over = AXES[str(claim)]
        order = {series: place for place, series in enumerate(dict.fromkeys(mine["series"]))}
        mine = mine.assign(at=mine["x"] * 1.04 ** (mine["series"].map(order) - (len(order) - 1) / 2))
        x = alt.X("at:Q", title=f"{over}, share of the step budget (log)")
        x = x.axis(format="~p", grid=False, values=sorted(set(mine["x"])))
        x = x.scale(type="log", domain=[float(mine["at"].min() / 1.2), float(mine["at"].max() * 1.2)], nice=False)
        low, high = panels.span(mine, ["low", "high", "value"], include=1.0)
        y = alt.Y("value:Q", title=title).scale(domain=[low, high], nice=False, zero=False)
        colours = {series: HUES[place % len(HUES)] for series, place in order.items()}
        base = alt.Chart(mine).encode(x=x, color=alt.Color("series:N", title=None, scale=panels.scale(colours)))
        whiskers = base.mark_rule(strokeWidth=1.5, opacity=0.8).encode(y=alt.Y("low:Q"), y2="high:Q")
        line, dots = base.mark_line(strokeWidth=2), base.mark_point(filled=True, size=60, opacity=1)
        layers = alt.layer(panels.level_rule(1.0), whiskers, line.encode(y=y), dots.encode(y=y))
        parts.append(panels.titled(layers, str(workload), str(claim).replace("_", " ")))
    chart = panels.grid(parts)
    return chart.resolve_scale(color="independent") if chart else None
