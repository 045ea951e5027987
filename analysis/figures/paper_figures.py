"""The paper's steps ratios beside this study's as a chart."""

from __future__ import annotations

import altair as alt
import pandas as pd

from analysis import chart as panels
from analysis.paper_rows import RATIO, SUITE
from analysis.study import SCHEME_NAMES
from analysis.style import scheme_colours

_SUITE_ROW = "suite, device-hours"


def ratios_beside(rows: pd.DataFrame) -> alt.ConcatChart | None:
    """A row a workload: ours a dot with its interval, the paper's a diamond; below them the suite's device-hours.

    Args: rows: of `analysis.paper_rows.paper_rows`. None where there is nothing to draw.
    """
    mine = rows[rows["quantity"].isin([RATIO, SUITE])]
    if mine.empty:
        return None
    name = mine["scheme"].map(SCHEME_NAMES)
    mine = mine.assign(scheme_name=name, row=mine["workload"].mask(mine["quantity"] == SUITE, _SUITE_ROW))
    colours = {SCHEME_NAMES[s]: c for s, c in scheme_colours(sorted(set(mine["scheme"]))).items()}
    order = [
        *mine.sort_values("paper").loc[mine["quantity"] == RATIO, "workload"].drop_duplicates(),
        _SUITE_ROW,
    ]
    y = alt.Y("row:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False))
    offset = alt.YOffset("scheme_name:N", sort=list(colours))
    low, high = panels.span(mine, ["low", "high", "ours", "paper"], include=1.0)
    inner = panels.span(mine, ["ours", "paper"], include=1.0)
    axis = alt.Scale(domain=[max(low, inner[0] - 0.2), min(high, inner[1] + 0.2)], nice=False, zero=False)
    x = alt.X("ours:Q", title="ratio to the baseline (dots: ours, diamonds: the paper's)", scale=axis)
    colour = panels.scheme_colour(colours)
    base = alt.Chart(mine).encode(y=y, yOffset=offset, color=colour)
    hover = panels.tooltips(
        *("row:N:row", "scheme_name:N:scheme", "paper:Q:the paper:.3f", "ours:Q:ours:.3f", "low:Q:from:.3f"),
        *("high:Q:to:.3f", "bound:N:ours is", "verdict:N:the paper's is"),
    )
    filled = alt.when(alt.datum.bound == "exact").then(alt.value(1)).otherwise(alt.value(0))
    fill = alt.Color("scheme_name:N", legend=None, scale=panels.scale(colours))
    dots = base.mark_point(size=62, strokeWidth=2, opacity=1, clip=True).encode(x=x, fill=fill, fillOpacity=filled)
    paper = base.mark_point(shape="diamond", size=75, strokeWidth=1.8, filled=False, opacity=1, clip=True)
    chart = alt.layer(
        panels.vertical_rule(1.0, title=""),
        base.mark_rule(strokeWidth=2, clip=True).encode(x=alt.X("low:Q", title=""), x2="high:Q"),
        dots.encode(tooltip=hover),
        paper.encode(x=alt.X("paper:Q", title=""), tooltip=hover),
    )
    height = (10 + 11 * len(colours)) * mine["row"].nunique()
    return panels.grid([panels.titled(chart, "steps-to-target ÷ baseline's", height=height)])
