"""Ratio against the target's tightness: the paper's points, this study's, and its saving curves, on the same axes."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis import chart as panels
from analysis.study import SCHEME_NAMES
from analysis.style import REFERENCE_LINE, SCHEME_COLOURS
from analysis.tightness import CURVES, PAPER, TARGETS

_WIDEST = 1.25  # a ratio up to which the axis makes room for curves and whiskers
_HEIGHT = 380
_ROWS = 5  # of names along an edge, so that neighbours do not meet


def tightness(points: pd.DataFrame, lines: pd.DataFrame) -> alt.ConcatChart | None:
    """One panel a scheme; a bound has a cross. None where there is nothing to draw.

    Args: points: of `analysis.tightness.paper_points`, `target_points` and `curve_points`, together. lines: of
      `analysis.tightness.regressions`.
    """
    parts: list[Any] = []
    for scheme in sorted(set(points.loc[points["source"] != CURVES, "scheme"])):
        mine = points[points["scheme"] == scheme]
        parts.append(
            panels.titled(
                _panel(mine, lines[lines["scheme"] == scheme], scheme),
                SCHEME_NAMES.get(scheme, scheme),
                height=_HEIGHT,
            )
        )
    return panels.grid(parts)


def _panel(points: pd.DataFrame, lines: pd.DataFrame, scheme: str) -> Any:
    colour = SCHEME_COLOURS.get(scheme, REFERENCE_LINE)
    dots, curves = points[points["source"] != CURVES], points[points["source"] == CURVES]
    low, high = panels.span(pd.concat([dots, curves[["ratio"]]]), ["low", "high", "ratio"], include=1.0)
    high = min(high, max(_WIDEST, panels.span(dots, ["ratio"], include=1.0)[1]))
    low = max(low, 0.3)
    low, high = low - 0.25 * (high - low), high + 0.25 * (high - low)  # for the names
    x = alt.X(
        "share:Q",
        title="share of the step budget after which the raw run is at the target (→ tighter)",
        scale=alt.Scale(domain=[0.25, 1.0], nice=False),
        axis=alt.Axis(format=".0%", grid=False, values=[0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
    )
    y = alt.Y(
        "ratio:Q",
        title="steps-to-target ÷ raw run's",
        scale=alt.Scale(domain=[low, high], nice=False, zero=False),
    )
    hover = panels.tooltips(
        *("source:N:from", "workload:N:workload", "share:Q:raw run at:.0%", "ratio:Q:ratio:.3f"),
        *("low:Q:from:.3f", "high:Q:to:.3f", "bound:N:the ratio is"),
    )
    thin = alt.Chart(curves).mark_line(clip=True, strokeWidth=1, opacity=0.45, color=colour)
    ours = dots[dots["source"] == TARGETS]
    whisker = alt.Chart(ours).mark_rule(clip=True, strokeWidth=1.2, opacity=0.6, color=colour)
    mark = alt.Chart(dots).mark_point(clip=True, size=75, strokeWidth=1.8, opacity=1, color=colour)
    filled = alt.when(alt.datum.source == TARGETS).then(alt.value(1)).otherwise(alt.value(0))
    shape = alt.when(alt.datum.bound == "exact").then(alt.value("circle")).otherwise(alt.value("cross"))
    layers = [
        panels.level_rule(1.0),
        thin.encode(x=x, y=y, detail="workload:N", tooltip=panels.tooltips("workload:N:saving curve of")),
        *(_line(row, colour) for row in lines.to_dict("records") if row["source"] != CURVES),
        whisker.encode(x=x, y=alt.Y("low:Q"), y2="high:Q"),
        mark.encode(x=x, y=y, fill=alt.value(colour), fillOpacity=filled, shape=shape, tooltip=hover),
        *_names(dots),
    ]
    return alt.layer(*(layer for layer in layers if len(_data(layer))))


def _names(dots: pd.DataFrame) -> list[alt.Chart]:
    """The last word of each workload's name, in rows with a line to its dot: ours along the top, the paper's below."""
    dots = dots.sort_values(["share", "ratio"], kind="stable")
    dots = dots.assign(name=dots["workload"].str.split("_").str[-1], place=dots.groupby("source").cumcount())
    charts = []
    for source, start, step in ((TARGETS, 10, 13), (PAPER, _HEIGHT - 6, -13)):
        for row in range(_ROWS):
            part = dots[(dots["source"] == source) & (dots["place"] % _ROWS == row)]
            x, at = alt.X("share:Q"), alt.value(start + step * row)
            leader = alt.Chart(part).mark_rule(opacity=0.35, color=REFERENCE_LINE, strokeDash=[1, 2])
            text = alt.Chart(part).mark_text(fontSize=10, color=REFERENCE_LINE)
            charts += [leader.encode(x=x, y=alt.Y("ratio:Q"), y2=at), text.encode(x=x, y=at, text="name:N")]
    return charts


def _line(row: dict[Any, Any], colour: str) -> alt.Chart:
    ends = pd.DataFrame({"share": [row["share_from"], row["share_to"]]})
    ends["ratio"] = row["intercept"] + row["slope"] * ends["share"]
    ends = ends.assign(source=row["source"], r2=row["r2"], r2_low=row["r2_low"], r2_high=row["r2_high"])
    hover = panels.tooltips(
        *("source:N:regression of", "r2:Q:variance explained:.0%"),
        *("r2_low:Q:from:.0%", "r2_high:Q:to:.0%"),
    )
    dash = [6, 4] if row["source"] == PAPER else [1, 0]
    line = alt.Chart(ends).mark_line(clip=True, strokeWidth=2, color=colour, strokeDash=dash)
    drawn: alt.Chart = line.encode(x=alt.X("share:Q"), y=alt.Y("ratio:Q"), tooltip=hover)
    return drawn


def _data(chart: Any) -> pd.DataFrame:
    frame: pd.DataFrame = chart.data
    return frame
