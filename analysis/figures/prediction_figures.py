"""A panel a prediction of the field: ratios by horizon, or setting by setting, with their intervals."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis import chart as panels
from analysis.study import percent
from analysis.style import SCHEME_COLOURS

TITLES = {  # question -> panel, what a ratio is
    "batch_size": ("horizon and batch size", "steps to its own target ÷ raw weights'"),
    "batch_norm": ("batch-norm statistics of an average, halfway", "metric ÷ that with recomputed ones"),
    "equal_centre": ("one centre of mass", "steps-to-target of LAWA ÷ EMA's"),
    "merged_decay": ("merging instead of a decay", "final metric ÷ that of the decay"),
}
IN_ROWS = ("merged_decay",)
ASIDE = 1.05  # between the series of one horizon
HUES = ("#1f5fa8", "#2f86d1", "#84bdee", "#b565c4", "#d1477a", "#b08a00")
POLICY_COLOURS = {"live": "#d1477a", "average": "#1a9e77"}


def prediction_panels(points: pd.DataFrame) -> alt.ConcatChart | None:
    """Args: points: of `analysis.findings.predictions.points`."""
    colours = _colours(points)
    parts = []
    for (question, workload), mine in points.groupby(["question", "workload"], sort=False):
        name, axis = TITLES[str(question)]
        draw = _rows if question in IN_ROWS else _lines
        parts.append(panels.titled(draw(mine, axis, colours), str(workload), name))
    return panels.grid(parts)


def _colours(points: pd.DataFrame) -> dict[str, str]:
    batches = points.loc[points["question"] == "batch_size", "series"].unique()
    found = {str(series): HUES[place % len(HUES)] for place, series in enumerate(batches)}
    for series, scheme in zip(points["series"], points["scheme"], strict=True):
        found.setdefault(series, POLICY_COLOURS.get(series, SCHEME_COLOURS[scheme]))
    return found


def _lines(mine: pd.DataFrame, axis: str, colours: dict[str, str]) -> Any:
    """Ratio against horizon, a line a series, stepped a little aside so that the intervals do not hide each other."""
    order = {series: place for place, series in enumerate(dict.fromkeys(mine["series"]))}
    aside = mine["series"].map(order) - (len(order) - 1) / 2
    mine = mine.assign(at=mine["x"] * ASIDE**aside)
    ends = [float(mine["at"].min() / 1.2), float(mine["at"].max() * 1.2)]
    x = panels.horizon_x("at", ends)
    low, high = panels.span(mine, ["low", "high", "value"], include=1.0)
    y = alt.Y("value:Q", title=axis).scale(domain=[low, high], nice=False, zero=False)
    base = alt.Chart(mine).encode(x=x, color=_colour(colours))
    whiskers = base.mark_rule(strokeWidth=1.5, opacity=0.8).encode(y=alt.Y("low:Q"), y2="high:Q")
    dots = base.mark_point(filled=True, size=60, opacity=1).encode(y=y, tooltip=_hover("horizon"))
    return alt.layer(panels.level_rule(1.0), whiskers, base.mark_line(strokeWidth=2).encode(y=y), dots)


def _rows(mine: pd.DataFrame, axis: str, colours: dict[str, str]) -> Any:
    """A row a setting, a group of rows a length of the decay."""
    mine = mine.assign(row=[f"{row['series']}, {percent(row['x'])}" for row in mine.to_dict("records")])
    low, high = panels.span(mine, ["low", "high", "value"], include=1.0)
    x = alt.X("value:Q", title=axis).scale(domain=[low, high], nice=False, zero=False)
    y = alt.Y("row:N", title=None, sort=list(mine["row"]), axis=alt.Axis(ticks=False, domain=False))
    base = alt.Chart(mine).encode(y=y, color=_colour(colours))
    whiskers = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q"), x2="high:Q")
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(x=x, tooltip=_hover("decay"))
    return alt.layer(panels.vertical_rule(1.0, width=1.2), whiskers, dots)


def _colour(colours: dict[str, str]) -> alt.Color:
    return alt.Color("series:N", title=None, scale=panels.scale(colours))


def _hover(x: str) -> list[alt.Tooltip]:
    return panels.tooltips(
        *("series:N:setting", f"x:Q:{x}:.2~%", "value:Q:ratio:.3f"),
        *("low:Q:from:.3f", "high:Q:to:.3f", "num_pairs:Q:seeds:d"),
    )
