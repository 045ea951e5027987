"""How does the metric fall (or rise) with the steps?"""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.core import Core
from analysis.presentation import chart as charts
from analysis.presentation.chart import Look
from analysis.run_folder.study import Study, counted

MAX_POINTS = 120  # a curve; a chart is 400 pixels wide
SEED_CURVES = 2_000  # points of single seeds a panel may hold, else those of the pre-specified settings alone

TITLE = "Learning curves"
RULE = ""


def tables(core: Core) -> dict[str, pd.DataFrame]:
    """None of its own: `median_curves` is the core's."""
    return {}


def chart(median_curves: pd.DataFrame, study: Study, look: Look) -> alt.ConcatChart | None:
    """Metric against step: the median of each setting, thin lines for its seeds, the target dashed."""
    medians = median_curves[median_curves["setting"].isin(look.shown["setting"])]
    pick = charts.legend_pick(look.chosen, "curves_pick")
    parts: list[Any] = []
    for number, workload in enumerate(look.workloads):
        mine = charts.thin(medians[medians["workload"] == workload], "setting", MAX_POINTS)
        if mine.empty:
            continue
        row = look.shown[look.shown["workload"] == workload].iloc[0]
        layers = _lines(mine, _seed_curves(study, look, workload), row, look, pick)
        layers[-1] = charts.zoomable(layers[-1], f"curves_zoom_{number}")
        if not parts:  # one legend: its switch lives in the first panel and works in all
            layers[-1] = layers[-1].add_params(pick)
        parts.append(charts.titled(alt.layer(*layers, *charts.target_line(row["target"])), workload))
    return charts.grid(parts)


def caption(look: Look) -> str:
    """Of the lines that are there."""
    text = "A thick line is a setting's median over seeds, a thin one a seed"
    text += "; the level line is the target." if look.shown["target"].notna().any() else "."
    text += " LAWA's lines are dashed." if (look.shown["scheme"] == "lawa").any() else ""
    return text


def _lines(mine: pd.DataFrame, seeds: pd.DataFrame, row: pd.Series, look: Look, pick: alt.Parameter) -> list[Any]:
    """Thin lines of seeds, then thick ones of medians; what is hidden is not drawn, and has no tooltip."""
    seen_at = pd.concat([mine[["step", "median"]], seeds[["step", "median"]]])
    title = charts.metric_title(row["metric_name"], row["higher_is_better"])
    y = alt.Y("median:Q", title=title, scale=alt.Scale(domain=charts.zoomed(seen_at, "median"), nice=False))
    x = alt.X("step:Q", title="step", axis=charts.step_axis())
    colour = charts.setting_colour(look.colours)
    seen = charts.opaque_where(pick)
    faint = alt.when(pick).then(alt.value(0.3)).otherwise(alt.value(0))
    hover = charts.tooltips("scheme_label:N:setting", "step:Q:step:,", "median:Q:median:.4g", "num_seeds:Q:seeds:d")
    thin = alt.Chart(seeds).mark_line(clip=True, strokeWidth=0.8)
    thin = thin.encode(x=x, y=y, color=colour, strokeOpacity=faint, detail="cell:N").transform_filter(pick)
    thick = alt.Chart(mine).mark_line(clip=True, strokeWidth=2)
    thick = thick.encode(x=x, y=y, color=colour, opacity=seen, tooltip=hover, detail="setting:N")
    return [thin, thick.encode(strokeDash=charts.dashes()).transform_filter(pick)]


def _seed_curves(study: Study, look: Look, workload: str) -> pd.DataFrame:
    cells, records = study.cells, study.records
    mine = cells[cells["setting"].isin(look.shown["setting"]) & (cells["workload"] == workload)]
    rows = records[records["cell_id"].isin(mine["cell_id"]) & np.isfinite(records["metric"].astype(float))]
    if len(rows) > SEED_CURVES:
        mine = mine[mine["scheme_label"].isin(look.chosen)]
        rows = rows[rows["cell_id"].isin(mine["cell_id"])]
    rows = rows.merge(mine[["cell_id", "scheme_label"]], on="cell_id").sort_values(["cell_id", "step"])
    rows = rows.assign(cell=rows.groupby("cell_id", sort=True).ngroup(), median=rows["metric"])
    most = max(2, SEED_CURVES * 2 // max(1, rows["cell"].nunique()))
    return charts.thin(rows[["cell", "scheme_label", "step", "median"]], "cell", min(most, MAX_POINTS))


def sentences(look: Look) -> list[str]:
    """What the figure leaves out."""
    few = f"{counted(look.num_left_out, 'further setting')} of these schedules: in the tables alone."
    return [few] if look.num_left_out else []
