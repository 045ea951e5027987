"""Heat maps of the grids ν × k and ν × γ."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis import chart as panels
from analysis.figures.drawing import Drawing
from analysis.pairs import sign
from analysis.study import SCHEME_NAMES, percent

INK = "#1f2328"  # on the light colours of a cell, in both themes
RANGE = ["#4f9be0", "#eceff2", "#e8854a"]  # fewer steps than the baseline, as many, more
SYMBOL = {"lawa": "k, snapshots averaged", "ema": "γ"}


def snapshot_maps(d: Drawing) -> alt.ConcatChart | None:
    """A panel a (workload, scheme): snapshot interval against memory, colour the ratio of steps, a mark a seed."""
    table = d.tables.snapshot_grid
    table = table[table["training"].isin(d.shown["training"])]
    if table.empty:
        return None
    seeds = d.tables.ratios_by_seed
    seeds = seeds[(seeds["versus"] == "same schedule") & seeds["setting"].isin(table["setting"])]
    seeds = seeds[["setting", "seed", "ratio", "bound", "steps", "baseline_steps"]]
    most = max([1.05, *(max(value, 1 / value) for value in table["ratio"].dropna())])
    scale = alt.Scale(type="log", domain=[1 / most, 1.0, most], range=RANGE, clamp=True, interpolate="rgb")
    legend = alt.Legend(title="steps ÷ baseline's", format=".2f", gradientLength=220, direction="horizontal")
    colour = alt.Color("ratio:Q", scale=scale, legend=legend)
    parts = []
    for (workload, scheme), part in table.groupby(["workload", "scheme"], sort=True):
        title = f"{workload}, {SCHEME_NAMES.get(str(scheme), str(scheme))}"
        chart = _map(part, seeds.merge(part[["setting", "every_steps", "memory"]], on="setting"), str(scheme), colour)
        parts.append(panels.titled(chart, title, height=44 + 62 * part["every_steps"].nunique()))
    return panels.grid(parts)


def _map(part: pd.DataFrame, seeds: pd.DataFrame, scheme: str, colour: alt.Color) -> Any:
    part = part.assign(
        text=[_text(row["ratio"], row["bound"]) for row in part.to_dict("records")],
        horizon=[f"horizon {percent(float(share))}" for share in part["horizon_fraction"]],
        missed=[f"✕ {row['num_missed']}/{row['num_seeds']}" for row in part.to_dict("records")],
    )
    x = alt.X("memory:O", title=SYMBOL[scheme], axis=alt.Axis(labelAngle=0, format="~g", ticks=False, domain=False))
    y = alt.Y("every_steps:O", title="snapshot every … steps", sort="descending")
    base = alt.Chart(part).encode(x=x, y=y)
    hover = panels.tooltips(
        *(
            "scheme_label:N:setting",
            "horizon_fraction:Q:horizon, share of the step budget:.2~%",
            "ratio:Q:ratio:.3f",
        ),
        *("low:Q:from:.3f", "high:Q:to:.3f", "bound:N:the ratio is", "num_missed:Q:seeds that missed:d"),
        *("num_seeds:Q:seeds:d",),
    )
    cells = base.mark_rect(stroke="#ffffff", strokeWidth=2).encode(color=colour, tooltip=hover)
    unknown = alt.Chart(part[part["ratio"].isna()]).mark_rect(stroke="#ffffff", strokeWidth=2, color=RANGE[1])
    text = base.mark_text(color=INK, fontSize=13, fontWeight=600, dy=-14).encode(text="text:N")
    horizon = base.mark_text(color=INK, fontSize=10, dy=0).encode(text="horizon:N")
    crosses = alt.Chart(part[part["num_missed"] > 0]).mark_text(color=INK, fontSize=11, dx=46, dy=-14)
    layers = [unknown.encode(x=x, y=y), cells, text, horizon, crosses.encode(x=x, y=y, text="missed:N")]
    order = sorted(set(seeds["seed"]))
    hover = panels.tooltips("seed:Q:seed:d", "ratio:Q:ratio:.3f", "bound:N:it is", "steps:Q:steps:,.0f")
    for place, seed in enumerate(order):
        mine = seeds[seeds["seed"] == seed].assign(met=seeds["bound"].isin(["exact", "at most"]))
        across = 0.5 + 0.8 * (place - (len(order) - 1) / 2) / max(8, len(order))
        marks = alt.Chart(mine).mark_point(filled=True, size=46, opacity=1, stroke=INK, strokeWidth=0.8)
        shape = alt.when(alt.datum.met).then(alt.value("circle")).otherwise(alt.value("cross"))
        marks = marks.encode(x=x.bandPosition(across), y=y.bandPosition(0.8), shape=shape, color=colour)
        layers.append(marks.encode(tooltip=hover))
    return alt.layer(*layers)


def _text(ratio: float, bound: str) -> str:
    return f"{sign(bound, mixed='~ ')}{ratio:.2f}" if ratio == ratio else "no ratio"
