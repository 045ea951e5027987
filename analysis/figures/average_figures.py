"""Ratios and differences as charts: tables in, charts out; computes nothing but scales and positions."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis import chart as panels
from analysis.figures.drawing import Drawing
from analysis.study import SCHEME_NAMES


def ratio_dots(d: Drawing) -> alt.ConcatChart | None:
    """Steps-to-target ratio of every setting of the reference schedule: dot, whisker, seeds as ticks, line at 1."""
    parts: list[Any] = []
    for versus in ("same schedule", "best baseline"):
        for workload in d.workloads:
            part = _dots(d, versus, workload)
            if part is not None:
                parts.append(part)
    return panels.grid(parts)


def _dots(d: Drawing, versus: str, workload: str) -> Any:
    table = d.tables.ratios
    mine = table[(table["versus"] == versus) & (table["workload"] == workload)]
    mine = mine[mine["setting"].isin(d.shown["setting"]) & (mine["scheme"] != "none")]
    mine = mine[mine["geometric_mean"].notna()]
    if mine.empty or (versus == "best baseline" and _best_is_reference(d, workload)):
        return None
    mine = mine.assign(scheme_name=mine["scheme"].map(SCHEME_NAMES).fillna(mine["scheme"]))
    seeds = d.tables.ratios_by_seed
    seeds = seeds[(seeds["versus"] == versus) & seeds["setting"].isin(mine["setting"])]
    seeds = seeds[seeds["ratio"].notna()][["setting", "scheme_label", "seed", "ratio", "bound"]]
    seeds = seeds.merge(mine[["setting", "scheme_name"]], on="setting")
    y = d.rows(mine, workload)
    x = "steps-to-target ÷ baseline's (left of 1: fewer steps)"
    chart = panels.dots_and_whiskers(
        mine, seeds, "geometric_mean", "ratio", y, x, panels.scheme_colour(d.averages), at=1.0, by_bound=True
    )
    return panels.titled(chart, workload, f"against the {versus}", **panels.row_size(mine))


def _best_is_reference(d: Drawing, workload: str) -> bool:
    rows = d.tables.baselines
    best = rows[(rows["workload"] == workload) & (rows["rank"] == 1)]["training"]
    return bool(best.isin(d.shown[d.shown["workload"] == workload]["training"]).all())


def horizon_lines(d: Drawing) -> alt.ConcatChart | None:
    """Ratio against the averaging horizon, LAWA and EMA on one logarithmic axis, the flat region shaded."""
    table = d.tables.horizon_map
    table = table[table["training"].isin(d.shown["training"]) & table["ratio"].notna()]
    if table["horizon_fraction"].nunique() < 2:
        return None
    table = table.assign(scheme_name=table["scheme"].map(SCHEME_NAMES).fillna(table["scheme"]))
    regions = d.tables.flat_region
    colour = panels.scheme_colour(d.averages)
    axis = [float(table["horizon_fraction"].min() / 1.3), float(table["horizon_fraction"].max() * 1.3)]
    smooth = d.tables.horizon_curve
    parts: list[Any] = []
    for workload in d.workloads:
        mine = table[table["workload"] == workload]
        if mine.empty:
            continue
        fit = smooth[(smooth["workload"] == workload) & smooth["training"].isin(mine["training"])]
        fit = fit[fit["scheme"].isin(mine["scheme"])]
        flat = regions[(regions["workload"] == workload) & regions["training"].isin(mine["training"])]
        parts.append(panels.titled(_horizon_panel(d, mine, fit, flat, colour, axis), workload, height=240))
    return panels.grid(parts)


def _horizon_panel(
    d: Drawing,
    mine: pd.DataFrame,
    fit: pd.DataFrame,
    flat: pd.DataFrame,
    colour: alt.Color,
    axis: list[float],
) -> Any:
    x = panels.horizon_x("horizon_fraction", axis)
    low, high = panels.span(mine, ["low", "high", "ratio"], include=1.0)
    y = alt.Y("ratio:Q", title="steps-to-target ÷ baseline's").scale(domain=[low, high], zero=False)
    strips = panels.flat_strips(flat, SCHEME_NAMES, list(d.averages), colour, panels.horizon_scale(axis))
    base = alt.Chart(mine).encode(x=x, color=colour)
    line = base.mark_line(strokeWidth=1, opacity=0.35).encode(y=y, detail="every_steps:N")
    fit = fit.assign(scheme_name=fit["scheme"].map(SCHEME_NAMES).fillna(fit["scheme"]))
    smooth = alt.Chart(fit).encode(x=x, color=colour)
    band = smooth.mark_area(opacity=0.1, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q")
    parabola = smooth.mark_line(strokeWidth=2, clip=True).encode(y=y)
    whisker = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q")
    hover = panels.tooltips(
        *("scheme_label:N:setting", "ratio:Q:ratio:.3f", "low:Q:from:.3f", "high:Q:to:.3f"),
        *("bound:N:the ratio is", "num_pairs:Q:seeds:d", "flat:N:in flat region"),
    )
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, tooltip=hover)
    dots = dots.encode(shape=panels.scheme_shape(d.averages))
    under = [band, parabola] if len(fit) else []
    rules = [panels.level_rule(1.0), *panels.marked_at(0.01, "1 %")]
    return alt.layer(*strips, *under, *rules, line, whisker, dots)


def final_metric(d: Drawing) -> alt.ConcatChart | None:
    """Final metric minus the baseline's, paired by seed, with intervals and a line at 0."""
    table = d.tables.generalization
    if "final_difference" not in table:
        return None
    table = table[table["setting"].isin(d.shown["setting"]) & table["final_difference"].notna()]
    parts: list[Any] = []
    for workload in d.workloads:
        mine = table[(table["workload"] == workload) & (table["scheme"] != "none")]
        if mine.empty:
            continue
        mine = mine.assign(scheme_name=mine["scheme"].map(SCHEME_NAMES).fillna(mine["scheme"]))
        mine = mine.rename(columns={"num_pairs": "pairs"})
        info = d.shown[d.shown["workload"] == workload].iloc[0]
        y = d.rows(mine, workload)
        side = "right" if info["higher_is_better"] else "left"
        x = f"final {info['metric_name']} − baseline's ({side} of 0 is better)"
        chart = panels.dots_and_whiskers(
            mine, None, "final_difference", "final_difference", y, x, panels.scheme_colour(d.averages), at=0.0
        )
        parts.append(panels.titled(chart, workload, **panels.row_size(mine)))
    return panels.grid(parts)
