"""Many workloads in one picture: the ratio of each, and below them the numbers that pool it."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import chart as panels
from analysis.figures.drawing import Drawing
from analysis.pooled import BEST, FIXED, SHOWN
from analysis.resampling import FEWEST
from analysis.study import SCHEME_NAMES
from analysis.style import REFERENCE_LINE

STATISTIC = "geometric mean"  # of the rows of single workloads
SPREAD = 1.0  # how far whiskers may reach beyond the dots, in widths of the dots' range


def forest(d: Drawing) -> alt.ConcatChart | None:
    """A row a workload, a row a pooled number, a colour a scheme; a tick is the number without one workload."""
    parts: list[Any] = []
    for horizon in (FIXED, BEST):
        of = d.tables.pooled
        of = of[(of["versus"] == "same schedule") & (of["horizon"] == horizon) & of["statistic"].isin(SHOWN)]
        of = of[of["value"].notna()]
        if of.empty or of["num_workloads"].max() < FEWEST:
            continue
        parts.append(_panel(d, of, horizon))
    return panels.grid(parts)


def _panel(d: Drawing, of: pd.DataFrame, horizon: str) -> Any:
    single = d.tables.pooled_by_workload
    single = single[(single["versus"] == "same schedule") & (single["horizon"] == horizon)]
    single = single[(single["statistic"] == STATISTIC) & single["value"].notna()]
    left = d.tables.leave_one_out
    left = left[(left["versus"] == "same schedule") & (left["horizon"] == horizon)]
    left = left[left["statistic"].isin(SHOWN) & left["value"].notna()]
    of = of.assign(row="all: " + of["statistic"], num_workloads=of["num_workloads"].map("{} workloads".format))
    single = single.assign(row=single["workload"], num_workloads="this workload")
    rows = pd.concat([single, of], ignore_index=True)
    rows = rows.assign(scheme_name=rows["scheme"].map(SCHEME_NAMES).fillna(rows["scheme"]))
    left = left.assign(
        row="all: " + left["statistic"], scheme_name=left["scheme"].map(SCHEME_NAMES).fillna(left["scheme"])
    )
    order = single.groupby("workload")["value"].min().sort_values(kind="stable")
    sort = [*order.index, *(f"all: {name}" for name in SHOWN)]
    schemes = [name for name in d.averages if name in set(rows["scheme_name"])]
    y = alt.Y("row:N", title=None, sort=sort, axis=alt.Axis(ticks=False, domain=False))
    offset = alt.YOffset("scheme_name:N", sort=schemes)
    x = alt.X(
        "value:Q",
        title="ratio to the baseline (left of 1: averaging saves)",
        axis=alt.Axis(grid=True, tickCount=6, format=".2f"),
        scale=alt.Scale(domain=_axis(rows), nice=False, zero=False),
    )
    colour = panels.scheme_colour(d.averages)
    base = alt.Chart(rows).encode(y=y, yOffset=offset, color=colour)
    shade = alt.Chart(of[["row"]].drop_duplicates()).mark_rect(color=REFERENCE_LINE, opacity=0.09)
    seen = panels.tooltips(
        *("row:N:row", "scheme_name:N:scheme", "value:Q:ratio:.3f", "low:Q:from:.3f", "high:Q:to:.3f"),
        *("bound:N:it is", "num_workloads:N:over", "num_pairs:Q:pairs:d", "num_missed:Q:a side misses:d"),
    )
    ticks = alt.Chart(left).mark_tick(thickness=1.5, size=8, clip=True)
    without = panels.tooltips(
        *(
            "without:N:without",
            "row:N:row",
            "scheme_name:N:scheme",
            "value:Q:ratio:.3f",
            "change:Q:change:+.3f",
        )
    )
    filled = alt.when(alt.datum.bound == "exact").then(alt.value(1)).otherwise(alt.value(0))
    dots = base.mark_point(size=62, strokeWidth=2, opacity=1, clip=True)
    dots = dots.encode(x=x, tooltip=seen, shape=panels.scheme_shape(d.averages), fillOpacity=filled)
    chart = alt.layer(
        shade.encode(y=y),
        panels.vertical_rule(1.0, title=""),
        ticks.encode(x=x, y=y, yOffset=offset, color=colour, opacity=alt.value(0.6), tooltip=without),
        base.mark_rule(strokeWidth=2, clip=True).encode(x=alt.X("low:Q", title=""), x2="high:Q"),
        dots.encode(fill=alt.Color("scheme_name:N", legend=None, scale=panels.scale(d.averages))),
    )
    height = (10 + 11 * len(schemes)) * len(set(rows["row"]))
    width = max(220, 500 - 6 * int(rows["row"].str.len().max()))
    return panels.titled(chart, f"horizon {horizon}", "against the same schedule", height=height, width=width)


def _axis(rows: pd.DataFrame) -> list[float]:
    """Holds every dot and 1; whiskers that are much wider run off it."""
    low, high = panels.span(rows, ["value"], include=1.0)
    room = SPREAD * (high - low)
    ends = rows[["low", "high", "value"]].to_numpy(dtype=float)
    ends = ends[np.isfinite(ends)]
    return [max(low - room, min(low, float(ends.min()))), min(high + room, max(high, float(ends.max())))]
