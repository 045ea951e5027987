"""How much does the averaging horizon matter?"""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis import chart as charts
from analysis import horizon_fit
from analysis.chart import Look
from analysis.core import Core
from analysis.study import SCHEME_NAMES

TITLE = "Averaging horizon"
CAPTION = ""
RULE = ""
HEIGHT = 240  # of a panel, whose strips lie along the bottom


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """flat_region, horizon_fit: one row a training and scheme · horizon_curve: the fits with their bands."""
    fits, curves = horizon_fit.horizon_fit(core.by_seed, core.cells)
    return {"flat_region": horizon_fit.flat_region(core.horizons), "horizon_fit": fits, "horizon_curve": curves}


def chart(
    horizon_map: pd.DataFrame, flat_region: pd.DataFrame, horizon_curve: pd.DataFrame, look: Look
) -> alt.ConcatChart | None:
    """Ratio against the averaging horizon, LAWA and EMA on one logarithmic axis, the flat region as a strip."""
    table = horizon_map[horizon_map["training"].isin(look.shown["training"]) & horizon_map["ratio"].notna()]
    if table["horizon_fraction"].nunique() < 2:
        return None
    ends = [float(table["horizon_fraction"].min() / 1.3), float(table["horizon_fraction"].max() * 1.3)]
    parts: list[Any] = []
    for workload in look.workloads:
        mine = table[table["workload"] == workload]
        if mine.empty:
            continue
        curve, flat = (_named(one[one["training"].isin(mine["training"])]) for one in (horizon_curve, flat_region))
        panel = _panel(_named(mine), curve[curve["scheme"].isin(mine["scheme"])], flat, look, ends)
        parts.append(charts.titled(panel, workload, height=HEIGHT))
    return charts.grid(parts)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(scheme_name=table["scheme"].map(SCHEME_NAMES).fillna(table["scheme"]))


def _panel(mine: pd.DataFrame, curve: pd.DataFrame, flat: pd.DataFrame, look: Look, ends: list[float]) -> Any:
    colour = charts.scheme_colour(look.averages)
    x = charts.horizon_x("horizon_fraction", ends)
    low, high = charts.span(mine, ["low", "high", "ratio"], include=1.0)
    y = alt.Y("ratio:Q", title="steps-to-target ÷ baseline's").scale(domain=[low, high], zero=False)
    base = alt.Chart(mine).encode(x=x, color=colour)
    line = base.mark_line(strokeWidth=1, opacity=0.35).encode(y=y, detail="every_steps:N")
    smooth = alt.Chart(curve).encode(x=x, color=colour)
    band = smooth.mark_area(opacity=0.1, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q")
    fit = smooth.mark_line(strokeWidth=2, clip=True).encode(y=y)
    whisker = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q")
    hover = charts.tooltips(
        *("scheme_label:N:setting", "ratio:Q:ratio:.3f", "low:Q:from:.3f", "high:Q:to:.3f"),
        *("bound:N:the ratio is", "num_pairs:Q:seeds:d", "flat:N:in flat region"),
    )
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, tooltip=hover)
    dots = dots.encode(shape=charts.scheme_shape(look.averages))
    under = [band, fit] if len(curve) else []
    rules = [charts.level_rule(1.0), *charts.marked_at(0.01, "1 %")]
    return alt.layer(*_strips(flat, look, colour, ends), *under, *rules, line, whisker, dots)


def _strips(flat: pd.DataFrame, look: Look, colour: alt.Color, ends: list[float]) -> list[alt.Chart]:
    """The flat region of each scheme: a thick strip along the bottom."""
    flat = flat.assign(start=flat["flat_from"] / 1.08, end=flat["flat_to"] * 1.08)
    x = alt.X("start:Q", scale=charts.horizon_scale(ends))
    hover = charts.tooltips("scheme_name:N:flat region of", "flat_from:Q:from:.2~p", "flat_to:Q:to:.2~p")
    strips = []
    for place, name in enumerate(look.averages):
        mine = flat[flat["scheme_name"] == name]
        if len(mine):
            strip = alt.Chart(mine).mark_rule(strokeWidth=7, opacity=0.55)
            strip = strip.encode(x=x, x2="end:Q", color=colour, tooltip=hover)
            strips.append(strip.encode(y=alt.value(HEIGHT - 6 - 10 * place)))
    return strips
