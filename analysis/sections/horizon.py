"""How much does the averaging horizon matter?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import pandas as pd

from analysis import chart as charts
from analysis import horizon_fit as smooth
from analysis.chart import Look
from analysis.core import Core
from analysis.horizon_fit import CUBIC, NEITHER
from analysis.pairs import leading
from analysis.study import SCHEME_NAMES, percent

TITLE = "Averaging horizon"
RULE = (
    "Flat region: the horizons next to a scheme's best one whose 95 % interval covers the best ratio. The curve is a "
    "least-squares parabola in the log horizon, or a cubic where the cubic term's interval leaves out 0; where a "
    "fourth power's does, no curve is drawn, and the optimum is only bounded by the flat region's neighbours."
)
HEIGHT = 240  # of a panel, whose strips lie along the bottom
FEW = 3  # workloads whose flat regions are told one by one


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """flat_region, horizon_fit: one row a training and scheme · horizon_curve: the fits with their bands."""
    fits, curves = smooth.horizon_fit(core.by_seed, core.cells)
    return {"flat_region": smooth.flat_region(core.horizons), "horizon_fit": fits, "horizon_curve": curves}


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


def caption(horizon_map: pd.DataFrame, flat_region: pd.DataFrame, horizon_curve: pd.DataFrame, look: Look) -> str:
    """Of the marks that are there."""
    mine = set(horizon_map.loc[horizon_map["training"].isin(look.shown["training"]), "training"])
    text = "A dot is a horizon's ratio of steps, below 1: fewer than the baseline's; its bar is the 95 % interval."
    if len(horizon_curve[horizon_curve["training"].isin(mine)]):
        text += " The curve is the smooth fit with its band."
    if len(flat_region[flat_region["training"].isin(mine)]):
        text += " A strip at the bottom spans the horizons that are not told from the best."
    return text


def sentences(
    flat_region: pd.DataFrame, horizon_fit: pd.DataFrame, chosen: pd.DataFrame, look: Look, primary: tuple[str, float]
) -> list[str]:
    """How far the flat region reaches and whether the pre-specified horizon lies inside; where the optimum lies."""
    flat, fits = (one[one["training"].isin(look.shown["training"])] for one in (flat_region, horizon_fit))
    return [*_flat(flat, leading(chosen, primary[0])), *_optima(fits)]


def _flat(regions: pd.DataFrame, picked: pd.DataFrame) -> Iterator[str]:
    """Nothing is tested against the best horizon: it was selected on the same seeds, and so looks better than it is."""
    mine = picked.merge(regions, on=["workload", "scheme"]).sort_values("workload", kind="stable")
    if mine.empty:
        return
    scheme = SCHEME_NAMES.get(str(mine["scheme"].iloc[0]), str(mine["scheme"].iloc[0]))
    horizon = percent(float(mine["horizon_fraction"].median()))
    inside = mine["horizon_fraction"].between(mine["flat_from"], mine["flat_to"])
    if len(mine) <= FEW:
        each = (f"{_region(row['flat_from'], row['flat_to'])} on {row['workload']}" for row in mine.to_dict("records"))
        yield f"The flat region of {scheme} is {', '.join(each)}; {_inside(horizon, mine, inside)}."
        return
    low, high = float(mine["flat_from"].max()), float(mine["flat_to"].min())
    common = f"{_region(low, high)} lies in all of them" if low <= high else "no horizon lies in all of them"
    yield f"Of the flat regions of {scheme} on {len(mine)} workloads: {common}; {_inside(horizon, mine, inside)}."


def _region(low: float, high: float) -> str:
    return f"{percent(low)} alone" if low == high else f"{percent(low)} to {percent(high)}"


def _inside(horizon: str, mine: pd.DataFrame, inside: pd.Series) -> str:
    """'the pre-specified 1 % lies inside on 3 of 4 workloads, outside on lm'."""
    if len(mine) == 1:
        return f"the pre-specified {horizon} lies {'inside' if inside.all() else 'outside'}"
    outside = ", ".join(mine.loc[~inside, "workload"])
    number = f"all {len(mine)}" if inside.all() else f"{inside.sum()} of {len(mine)}"
    return f"the pre-specified {horizon} lies inside on {number} workloads" + (
        f", outside on {outside}" if outside else ""
    )


def _optima(fits: pd.DataFrame) -> Iterator[str]:
    """Of the fit with the most schemes of each workload."""
    order = fits.assign(num=fits["scheme"].str.count(r"\+")).sort_values(["workload", "num"], kind="stable")
    widest = order.groupby("workload", sort=True).tail(1)
    if widest.empty:
        return
    inside, edge = widest[~widest["edge"].astype(bool)], widest[widest["edge"].astype(bool)]
    bound = (
        f"on {_listed(edge, widest)} the shortest or longest horizon run is the best, so a bound" if len(edge) else ""
    )
    if len(inside) == 1:
        row = inside.iloc[0].map(lambda value: percent(value) if isinstance(value, float) else value)
        ends = "" if inside["optimum_low"].isna().all() else f" [{row['optimum_low']}, {row['optimum_high']}]"
        yield f"The optimum on {row['workload']} is {row['optimum']}{ends} of the step budget{bound and '; ' + bound}."
    elif len(inside):
        low, middle, high = (percent(float(value)) for value in inside["optimum"].quantile([0, 0.5, 1]))
        where = f"are all {middle}" if low == high else f"lie from {low} to {high}, in the middle at {middle},"
        of = " and ".join(SCHEME_NAMES.get(one, one) for one in str(widest["scheme"].mode()[0]).split(" + "))
        yield f"The optima of {of} {where} of the step budget on {_listed(inside, widest)}{bound and '; ' + bound}."
    else:
        yield f"{bound[0].upper()}{bound[1:]}."
    cubic, neither = (widest[widest["shape"] == shape] for shape in (CUBIC, NEITHER))
    parts = [f"a cubic is drawn on {_listed(cubic, widest)}"] if len(cubic) else []
    parts += [f"no smooth curve fits on {_listed(neither, widest)}, so read the dots"] if len(neither) else []
    if parts:
        yield f"A parabola, the same on both sides, does not fit everywhere: {'; '.join(parts)}."


def _listed(fits: pd.DataFrame, every: pd.DataFrame) -> str:
    names = sorted(set(fits["workload"]))
    return f"all {len(names)} workloads" if len(names) == len(every) > 1 else ", ".join(names)


def _named(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(scheme_name=table["scheme"].map(SCHEME_NAMES).fillna(table["scheme"]))


def _panel(mine: pd.DataFrame, curve: pd.DataFrame, flat: pd.DataFrame, look: Look, ends: list[float]) -> Any:
    colour = charts.scheme_colour(look.averages)
    x = charts.horizon_x("horizon_fraction", ends)
    low, high = charts.span(mine, ["low", "high", "ratio"], include=1.0)
    y = alt.Y("ratio:Q", title="steps-to-target ÷ baseline's").scale(domain=[low, high], zero=False)
    base = alt.Chart(mine).encode(x=x, color=colour)
    line = base.mark_line(strokeWidth=1, opacity=0.35).encode(y=y, detail="every_steps:N")
    drawn = alt.Chart(curve).encode(x=x, color=colour)
    band = drawn.mark_area(opacity=0.1, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q")
    fit = drawn.mark_line(strokeWidth=2, clip=True).encode(y=y)
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
