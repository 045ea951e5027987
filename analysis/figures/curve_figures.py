"""Metric against step: learning curves, and averages beside raw runs of other LR schedules."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import chart as panels
from analysis.figures.drawing import Drawing
from analysis.study import SCHEME_NAMES
from analysis.style import REFERENCE_LINE

MAX_POINTS = 120  # a curve; a chart is 400 pixels wide
SEED_CURVES = 2_000  # points of single seeds a panel may hold, else medians only


def learning_curves(d: Drawing) -> alt.ConcatChart | None:
    """Metric against step: the median of each setting, thin lines for its seeds, the target dashed."""
    medians = d.tables.median_curves
    medians = medians[medians["setting"].isin(d.shown["setting"])]
    if medians.empty:
        return None
    pick = panels.legend_pick(d.chosen, "curves_pick")
    colour = panels.setting_colour(d.colours)
    parts: list[Any] = []
    for number, workload in enumerate(d.workloads):
        mine = panels.thin(medians[medians["workload"] == workload], "setting", MAX_POINTS)
        if mine.empty:
            continue
        row = d.shown[d.shown["workload"] == workload].iloc[0]
        seeds = _seed_curves(d, workload)
        seen_at = pd.concat([mine[["step", "median"]], seeds[["step", "median"]]])
        y = alt.Y(
            "median:Q",
            title=panels.metric_title(row["metric_name"], row["higher_is_better"]),
            scale=alt.Scale(domain=panels.zoomed(seen_at, "median"), nice=False),
        )
        x = alt.X("step:Q", title="step", axis=panels.step_axis())
        seen = alt.when(pick).then(alt.value(1)).otherwise(alt.value(0))
        faint = alt.when(pick).then(alt.value(0.3)).otherwise(alt.value(0))
        hover = panels.tooltips("scheme_label:N:setting", "step:Q:step:,", "median:Q:median:.4g", "num_seeds:Q:seeds:d")
        layers = [
            alt.Chart(seeds)
            .mark_line(clip=True, strokeWidth=0.8)
            .encode(x=x, y=y, color=colour, strokeOpacity=faint, detail="cell:N")
            .transform_filter(pick)
        ]
        layers.append(
            alt.Chart(mine)
            .mark_line(clip=True, strokeWidth=2)
            .encode(x=x, y=y, color=colour, opacity=seen, tooltip=hover, detail="setting:N")
            .encode(strokeDash=panels.dashes())
            .transform_filter(pick)  # what is hidden is not drawn, and has no tooltip
        )
        layers[-1] = panels.zoomable(layers[-1], f"curves_zoom_{number}")
        if not parts:  # one legend: its switch lives in the first panel and works in all
            layers[-1] = layers[-1].add_params(pick)
        if pd.notna(row["target"]):
            layers += panels.target_line(float(row["target"]))
        parts.append(panels.titled(alt.layer(*layers), workload))
    return panels.grid(parts)


def _seed_curves(d: Drawing, workload: str) -> pd.DataFrame:
    cells = d.study.cells
    mine = cells[cells["setting"].isin(d.shown["setting"]) & (cells["workload"] == workload)]
    records = d.study.records
    rows = records[records["cell_id"].isin(mine["cell_id"]) & np.isfinite(records["metric"].astype(float))]
    if len(rows) > SEED_CURVES:
        mine = mine[mine["scheme_label"].isin(d.chosen)]
        rows = rows[rows["cell_id"].isin(mine["cell_id"])]
    rows = rows.merge(mine[["cell_id", "scheme_label"]], on="cell_id").sort_values(["cell_id", "step"])
    rows = rows.assign(cell=rows.groupby("cell_id", sort=True).ngroup(), median=rows["metric"])
    most = max(2, SEED_CURVES * 2 // max(1, rows["cell"].nunique()))
    return panels.thin(rows[["cell", "scheme_label", "step", "median"]], "cell", min(most, MAX_POINTS))


def schedule_curves(d: Drawing) -> alt.ConcatChart | None:
    """Raw runs of every schedule, their envelope, and averages beside them.

    Where schedules differ in length: the averages fixed beforehand, of the reference schedule. Where they differ in
    how far they decay: the best-looking average of each. Learning rates and batch sizes have a figure of their own.
    """
    bound, medians = d.tables.envelope, d.tables.median_curves
    axes = d.tables.across_trainings.drop_duplicates("training")[["workload", "training", "axis", "name"]]
    axes = axes[~axes["axis"].isin(["lr", "batch_size"])]
    parts: list[Any] = []
    for number, workload in enumerate(d.workloads):
        names = axes[axes["workload"] == workload]
        mine = medians[medians["training"].isin(names["training"])]
        raw = mine[mine["scheme"] == "none"]
        edge = bound[bound["workload"] == workload]
        if edge.empty or raw.empty:
            continue
        averaged = mine[mine["setting"].isin(_beside_raw(d, names))]
        kind = averaged["scheme"].map(SCHEME_NAMES).fillna(averaged["scheme"])
        rows = [raw.assign(group="raw run"), averaged.assign(group=kind)]
        table = panels.thin(pd.concat(rows), "setting", MAX_POINTS)
        table = table.merge(names[["training", "name"]], on="training")
        table["series"] = table["name"] + ", " + table["scheme_label"]
        info = d.shown[d.shown["workload"] == workload].iloc[0]
        parts.append(panels.titled(_schedule_panel(d, table, edge, info, f"schedule_zoom_{number}"), workload))
    return panels.grid(parts)


def _beside_raw(d: Drawing, names: pd.DataFrame) -> pd.Series:
    """The averaged settings that a panel of `schedule_curves` shows."""
    rows = d.tables.against_decayed
    if (names["axis"] == "schedule").all() and len(rows):
        return rows.loc[rows["best"].astype(bool), "setting"]
    return d.tables.chosen["setting"]


def _schedule_panel(d: Drawing, table: pd.DataFrame, edge: pd.DataFrame, info: Any, zoom: str) -> Any:
    higher = bool(info["higher_is_better"])
    scale = alt.Scale(domain=panels.zoomed(table, "median"), nice=False)
    y = alt.Y("median:Q", title=panels.metric_title(info["metric_name"], higher), scale=scale)
    colours = {"raw run": d.schemes.get(SCHEME_NAMES["none"], REFERENCE_LINE), **d.averages}
    colour = alt.Color("group:N", title=None, scale=panels.scale(colours))
    base = alt.Chart(table).encode(x=alt.X("step:Q", title="step", axis=panels.step_axis()), y=y)
    hover = panels.tooltips("series:N:run", "step:Q:step:,", "median:Q:median:.4g", "num_seeds:Q:seeds:d")
    lines = base.mark_line(clip=True, strokeWidth=1.8).encode(color=colour, detail="setting:N", tooltip=hover)
    lines = lines.encode(strokeDash=panels.dashes())
    ends = table.sort_values("step").groupby("setting", as_index=False).last()
    ends = ends[ends["group"] == "raw run"]
    dots = alt.Chart(ends).mark_point(filled=True, size=60, opacity=1, clip=True).encode(x="step:Q", y=y, color=colour)
    names = alt.Chart(ends).mark_text(align="right", dx=-2, dy=-13 if higher else 13, fontSize=11, color=REFERENCE_LINE)
    names = names.encode(x="step:Q", y=y, text="name:N")
    shown = panels.thin(edge.assign(setting=0), "setting", MAX_POINTS)
    best = alt.Chart(shown).mark_line(clip=True, strokeWidth=9, opacity=0.28, color=REFERENCE_LINE)
    best = best.encode(
        x="step:Q",
        y=alt.Y("envelope:Q", scale=scale),
        tooltip=panels.tooltips("step:Q:step:,", "envelope:Q:best raw so far:.4g"),
    )
    target = panels.target_line(float(info["target"])) if pd.notna(info["target"]) else []
    return alt.layer(best, panels.zoomable(lines, zoom), dots.encode(tooltip=hover), names, *target)
