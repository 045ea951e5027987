"""The saving curves as charts: over all workloads, then one a workload."""

from __future__ import annotations

from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.figures import panels
from analysis.figures.drawing import Drawing
from analysis.figures.palette import REFERENCE_LINE
from analysis.pooled_curve import SAME
from analysis.study import SCHEME_NAMES

WIDEST = 1.6  # a ratio up to which an axis makes room for bands
_UNIT = "saving_unit"  # the parameter that says what is drawn: steps or device-hours


def saving_curves(d: Drawing) -> alt.ConcatChart | None:
    """The ratio at every target level, same schedule, with its band and the targets; a toggle: steps, device-hours."""
    table = d.tables.saving_curve
    table = table[(table["versus"] == SAME) & table["setting"].isin(d.shown["setting"])]
    table = table[table["ratio"].notna()]
    if table.empty:
        return None
    pick = panels.legend_pick(d.chosen, "saving_pick")
    colours = {label: colour for label, colour in d.colours.items() if label != SCHEME_NAMES["none"]}
    axis = _axis(table[table["scheme_label"].isin(d.chosen)])
    parts: list[Any] = []
    pooled, targets = over_workloads(d), target_shares(d)
    if len(pooled):
        layers = _curve(pooled, pick, colours, _axis(pooled), "pooled")
        number = int(pooled["num_workloads"].max())
        parts.append(panels.titled(alt.layer(*layers, *_places(targets)), f"all {number} workloads"))
    for place, workload in enumerate(d.workloads):
        mine = table[table["workload"] == workload]
        if mine.empty:
            continue
        share = targets.get(workload, np.nan)
        marked = panels.marked_at(share, "target") if share < 1 else []
        layers = [*_curve(mine, pick, colours, axis, str(place), first=not parts), *marked]
        parts.append(panels.titled(alt.layer(*layers), workload))
    chart = panels.grid(parts)
    radio = alt.binding_radio(options=["steps", "device-hours"], name="ratio in ")
    return None if chart is None else chart.add_params(alt.param(name=_UNIT, value="steps", bind=radio))


def over_workloads(d: Drawing) -> pd.DataFrame:
    """The pooled curve of each scheme, under the label of its horizon; the band over seeds where there is no other."""
    table = d.tables.pooled_curve
    table = table[table["versus"] == SAME].copy()
    labels = d.tables.chosen[d.tables.chosen["near"]].groupby("scheme")["scheme_label"].agg(lambda all_: all_.mode()[0])
    table["scheme_label"] = table["scheme"].map(labels)
    for end in ("low", "high", "hours_low", "hours_high"):
        seeds = end.replace("hours_", "hours_seeds_") if "hours" in end else f"seeds_{end}"
        table[end] = table[end].fillna(table[seeds])
    return table.assign(setting=-1 - pd.factorize(table["scheme"])[0])


def target_shares(d: Drawing) -> dict[str, float]:
    """Where on the axis each workload's target lies: the raw runs' median steps to it ÷ their schedule's length."""
    raw = d.shown[d.shown["scheme"] == "none"]
    cells = d.study.cells.drop_duplicates("setting").set_index("setting")
    length = cells[["length_steps", "step_budget"]].min(axis=1)
    share = raw["steps_to_target"].to_numpy(dtype=float) / length.loc[list(raw["setting"])].to_numpy(dtype=float)
    return {str(w): float(s) for w, s in zip(raw["workload"], share, strict=True) if s == s}


def _curve(
    table: pd.DataFrame,
    pick: alt.Parameter,
    colours: dict[str, str],
    domain: list[float],
    name: str,
    first: bool = True,
) -> list[Any]:
    """Line at 1, bands, lines and points of one panel. first: it holds the legend's switch for all."""
    table = table.assign(all_reach=table["num_exact"] == table["num_pairs"])
    x, y = _axes(domain)
    colour = panels.setting_colour(colours)
    base = _in_unit(alt.Chart(table)).transform_filter(pick).encode(x=x, color=colour, detail="setting:N")
    band = base.mark_area(clip=True, opacity=0.16).encode(y=alt.Y("shown_low:Q"), y2="shown_high:Q")
    line = base.mark_line(clip=True, strokeWidth=2).encode(y=y, strokeDash=panels.dashes())
    line = panels.zoomable(line, f"saving_zoom_{name}")
    line = line.add_params(pick) if first else line
    hover = panels.tooltips(
        *(
            "scheme_label:N:setting",
            "share:Q:target at share:.1%",
            "ratio:Q:ratio in steps:.3f",
            "low:Q:from:.3f",
        ),
        *(
            "high:Q:to:.3f",
            "hours_ratio:Q:in device-hours:.3f",
            "hours_low:Q:from:.3f",
            "hours_high:Q:to:.3f",
        ),
        *("num_exact:Q:pairs that reach it:d", "num_pairs:Q:pairs:d"),
        *(["num_workloads:Q:workloads:d"] if "num_workloads" in table else ["level:Q:target level:.4g"]),
    )
    full = alt.when(alt.datum.all_reach).then(alt.value(1)).otherwise(alt.value(0))
    fill = alt.Color("scheme_label:N", legend=None, scale=panels.scale(colours))
    dots = base.mark_point(clip=True, size=20, strokeWidth=1.2, opacity=1)
    dots = dots.encode(y=y, tooltip=hover, fill=fill, fillOpacity=full)
    return [panels.level_rule(1.0), band, line, dots]


def _places(targets: dict[str, float]) -> list[Any]:
    """A tick along the bottom for the target of each workload of this study."""
    table = pd.DataFrame({"workload": list(targets), "share": list(targets.values())})
    if table.empty:
        return []
    hover = panels.tooltips("workload:N:target of", "share:Q:at share:.0%")
    ticks = alt.Chart(table).mark_tick(color=REFERENCE_LINE, thickness=2, size=12, clip=True)
    drawn: alt.Chart = ticks.encode(x=alt.X("share:Q"), y=alt.value(panels.HEIGHT - 6), tooltip=hover)
    return [drawn]


def _in_unit(chart: alt.Chart) -> alt.Chart:
    """Adds shown, shown_low, shown_high: of steps or of device-hours, as the toggle says."""
    for shown, (steps, hours) in _COLUMNS.items():
        chart = chart.transform_calculate(**{shown: f"{_UNIT} === 'steps' ? datum.{steps} : datum.{hours}"})
    return chart


_COLUMNS = {
    "shown": ("ratio", "hours_ratio"),
    "shown_low": ("low", "hours_low"),
    "shown_high": ("high", "hours_high"),
}


def _axes(domain: list[float]) -> tuple[alt.X, alt.Y]:
    x = alt.X(
        "share:Q",
        title="target level: where the baseline is after this share of its training (→ tighter)",
        axis=alt.Axis(format=".0%", grid=False, values=[0.1, 0.25, 0.5, 0.75, 1.0]),
        scale=alt.Scale(domain=[0.08, 1.0], nice=False),
    )
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    return x, alt.Y("shown:Q", title="steps (or device-hours) ÷ baseline's", scale=scale)


def _axis(table: pd.DataFrame) -> list[float]:
    """Holds every ratio of both units and 1; wild bands run off it."""
    ratios = [name for name in ("ratio", "hours_ratio") if name in table]
    low, high = panels.span(table, ["low", "high", "hours_low", "hours_high", *ratios], include=1.0)
    least, most = panels.span(table, ratios, include=1.0)
    return [max(low, least - 0.15), min(high, max(WIDEST, most))]
