"""How much does the averaging horizon matter?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import chart as charts
from analysis import horizon_fit as smooth
from analysis import words
from analysis.chart import Look
from analysis.core import Core
from analysis.horizon_fit import CUBIC, NEITHER
from analysis.pairs import leading, over_workloads, overall_bound, sign
from analysis.resampling import with_interval
from analysis.study import SCHEME_NAMES, counted, percent

TITLE = "Averaging horizon"
RULE = (
    "Flat region: the neighbouring horizons around a scheme's best one whose 95 % interval covers the best ratio. The "
    "curve is a parabola in the log horizon with a level a seed, least squares; a cubic where the cubic term's "
    "interval leaves out 0. Where a fourth power's does, neither fits: no curve is drawn, and the optimum lies between "
    "the neighbours of the horizons not told from the best."
)
HEIGHT = 240  # of a panel, whose strips lie along the bottom


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
    horizon_map: pd.DataFrame,
    horizon_fit: pd.DataFrame,
    ratios_by_seed: pd.DataFrame,
    chosen: pd.DataFrame,
    look: Look,
    primary: tuple[str, float],
) -> list[str]:
    """What the pre-specified horizon costs against the best one run, where the optimum lies, and what does not fit."""
    mine = horizon_map[horizon_map["training"].isin(look.shown["training"])]
    fits = horizon_fit[horizon_fit["training"].isin(look.shown["training"])]
    return [*_cost(mine, ratios_by_seed, leading(chosen, primary[0])), *_optima(fits)]


def _cost(horizons: pd.DataFrame, ratios_by_seed: pd.DataFrame, picked: pd.DataFrame) -> Iterator[str]:
    """The pre-specified horizon against the best of its scheme, seed by seed: what the choice costs."""
    best = horizons[horizons["best"] & horizons["scheme"].isin(picked["scheme"])].drop_duplicates("workload")
    several = horizons.groupby(["workload", "scheme"])["horizon_fraction"].transform("nunique") > 1
    picked = picked[picked["setting"].isin(horizons.loc[several, "setting"])]
    rows = ratios_by_seed[(ratios_by_seed["versus"] == "same schedule") & ratios_by_seed["ratio"].notna()]
    rows = rows[["workload", "seed", "setting", "ratio", "bound"]]
    pairs = rows[rows["setting"].isin(picked["setting"])].merge(
        rows[rows["setting"].isin(best["setting"])], on=["workload", "seed"], suffixes=("", "_best")
    )
    if pairs.empty:
        return
    pairs["value"] = np.log(pairs["ratio"].astype(float) / pairs["ratio_best"].astype(float))
    told, same = [], []
    for workload, part in pairs.groupby("workload", sort=True):
        if (part["setting"] == part["setting_best"]).all():
            same.append(str(workload))
            continue
        ratio = over_workloads(part)
        open_ = ratio.value < 1 and (part["bound"] == "at least").any()  # a lower bound shows no saving
        verdict = words.Verdict(words.UNDECIDED) if open_ else words.verdict(ratio, len(part))
        told.append((str(workload), ratio.value - 1, verdict))
    number, name = len(told) + len(same), picked["scheme_label"].mode()[0]
    if not told:
        each = "each of " if number > 1 else ""
        yield f"{name}, pre-specified, is itself the best horizon run on {each}{counted(number, 'workload')}."
        return
    bound = sign(overall_bound(pairs.loc[pairs["bound"] == "at least", "bound"]))
    itself = f"; it is itself the best on {len(same)} ({', '.join(same)})" if same else ""
    yield (
        f"{name}, pre-specified, takes {bound}{with_interval(over_workloads(pairs))} of the steps of the best horizon "
        f"run, selected post hoc, over {counted(number, 'workload')}: "
        f"{words.tally(told, 'a saving', 'a loss')}{itself}."
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
