"""Device-hours: what a user pays, and what the sweep paid."""

from __future__ import annotations

from typing import Any

import altair as alt
import pandas as pd

from analysis import chart as panels
from analysis.figures.drawing import Drawing
from analysis.pairs import sign
from analysis.study import SCHEME_NAMES
from analysis.style import REFERENCE_LINE


def user_hours(d: Drawing, unit: str) -> alt.ConcatChart | None:
    """What a user pays to the target: training and averaging, mean over seeds."""
    table = d.tables.ratios
    table = table[(table["versus"] == "same schedule") & table["setting"].isin(d.shown["setting"])]
    table = table[table["device_hours"].notna() & table["baseline_device_hours"].notna()]
    parts: list[Any] = []
    for workload in d.workloads:
        mine = table[table["workload"] == workload]
        if mine.empty:
            continue
        raw: dict[str, Any] = {"scheme_label": SCHEME_NAMES["none"], "scheme": "none", "bound": "exact"}
        raw |= {"device_hours": mine["baseline_device_hours"].iloc[0], "hours_ratio": 1.0}
        mine = pd.concat([pd.DataFrame([raw]), mine[[*raw, "hours_ratio_low", "hours_ratio_high"]]])
        mine["said"] = [_said(row) for row in mine.to_dict("records")]
        mine = mine.assign(scheme_name=mine["scheme"].map(SCHEME_NAMES).fillna(mine["scheme"]))
        hover = panels.tooltips(
            *("scheme_label:N:setting", f"device_hours:Q:{unit}:.4g", "hours_ratio:Q:÷ baseline's:.3f"),
            *("hours_ratio_low:Q:from:.3f", "hours_ratio_high:Q:to:.3f", "bound:N:the ratio is"),
        )
        bars = alt.Chart(mine).encode(
            y=d.rows(mine, workload),
            x=alt.X("device_hours:Q", title=f"{unit} to the target", axis=alt.Axis(format="~g", tickCount=5)),
        )
        text = bars.mark_text(align="left", dx=4, fontSize=11, color=REFERENCE_LINE)
        layered = alt.layer(
            bars.mark_bar(height={"band": 0.7}).encode(color=panels.scheme_colour(d.schemes), tooltip=hover),
            text.encode(text="said:N"),
        )
        parts.append(panels.titled(layered, workload, **panels.row_size(mine)))
    return panels.grid(parts)


def _said(row: dict[Any, Any]) -> str:
    """What stands at a bar: the ratio, or why there is none."""
    ratio = row["hours_ratio"]
    return f"{sign(row['bound'], mixed='~ ')}{ratio:.2f}" if ratio == ratio else "no ratio: both miss"


def sweep_hours(d: Drawing, unit: str) -> alt.ConcatChart | None:
    """What the sweep paid, beside one trial a trajectory and one trial a cell, by part."""
    table = d.tables.sweep_device_hours
    table = table[table["device_hours"] > 0]
    if table.empty:
        return None
    names = {"paid": "paid, wall time of all trials"}
    table = table.assign(way=table["way"].map(names).fillna(table["way"] + ", by records"))
    parts = ["all", "training", "averaging", "evaluation"]
    colours = dict(zip(parts, ["#808080", "#5f7fe0", "#d1477a", "#b08a00"], strict=True))
    table = table.assign(rank=table["part"].map({part: i for i, part in enumerate(parts)}))
    order = list(dict.fromkeys(table["way"]))
    chart = (
        alt.Chart(table)
        .mark_bar(height={"band": 0.6})
        .encode(
            y=alt.Y("way:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False, labelLimit=300)),
            x=alt.X("device_hours:Q", title=f"{unit}, whole sweep", axis=alt.Axis(format="~g")),
            color=alt.Color("part:N", title=None, sort=parts, scale=panels.scale(colours)),
            order="rank:Q",
            tooltip=panels.tooltips("way:N:way", "part:N:part", f"device_hours:Q:{unit}:.4g"),
        )
    )
    return panels.grid([panels.titled(chart, "", height=36 * len(order) + 10, width=640)])
