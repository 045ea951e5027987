"""Raw runs and averages at every learning rate, optimizer, schedule, length or batch size."""

from __future__ import annotations

import json
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import chart as panels
from analysis.figures.drawing import Drawing
from analysis.style import REFERENCE_LINE
from analysis.training_axis import TITLES

FEW = 6  # settings up to which all are shown at first
SIDE = 0.04  # how far apart the settings of one place stand, as a share of the axis
FAR = 3.0  # the final metric's axis ends this many interquartile ranges beyond the middle half of its values


def training_panels(d: Drawing) -> alt.ConcatChart | None:
    """Two panels a workload: steps to target, and the final metric, against the axis of its trainings."""
    table = d.tables.across_trainings
    table = table[table["scheme_label"].isin(d.colours)]
    if table.empty:
        return None
    labels = [label for label in d.colours if label in set(table["scheme_label"])]
    first = labels if len(labels) <= FEW else d.chosen
    pick = panels.legend_pick(first, "trainings_pick")
    colour = panels.setting_colour({label: d.colours[label] for label in labels})
    parts: list[Any] = []
    for workload, mine in table.groupby("workload", sort=True):
        for panel in (_steps(d, mine), _final(d, mine)):
            if panel is not None:
                rows, seeds, rules, y = panel
                chart = _panel(mine, rows, seeds, rules, y, labels, colour, pick, first=not parts)
                parts.append(panels.titled(chart, str(workload)))
    return panels.grid(parts)


Panel = tuple[pd.DataFrame, pd.DataFrame, list[Any], alt.Y]


def _steps(d: Drawing, mine: pd.DataFrame) -> Panel | None:
    rows = mine[mine["restricted_mean"].notna()]
    if rows.empty:
        return None
    rows = _summary(rows, "restricted_mean").assign(missed=rows["num_missed"] > 0)
    seeds = d.tables.steps_to_target
    seeds = seeds[seeds["setting"].isin(rows["setting"]) & seeds["counted_steps"].notna()]
    seeds = seeds[["setting", "seed", "counted_steps", "status"]].rename(columns={"counted_steps": "value"})
    seeds = seeds.assign(missed=seeds["status"] != "met")
    budget = float(rows["step_budget"].max())
    low, high = _most(rows, seeds["value"])
    high = min(high, budget + 0.06 * (budget - low))  # no mean lies beyond it
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    y = alt.Y("value:Q", title="steps to target", scale=scale, axis=alt.Axis(format=",d", tickCount=6))
    rule = alt.Chart(pd.DataFrame({"at": [budget], "label": ["step budget"]}))
    line = rule.mark_rule(color=REFERENCE_LINE, strokeDash=[6, 4], clip=True).encode(y="at:Q")
    return rows, seeds, [line] if high > 0.98 * budget else [], y


def _final(d: Drawing, mine: pd.DataFrame) -> Panel | None:
    rows = mine[mine["final_metric"].notna()]
    if rows.empty:
        return None
    rows = _summary(rows, "final_metric").assign(missed=False)
    seeds = d.tables.generalization_by_cell
    seeds = seeds[seeds["setting"].isin(rows["setting"]) & seeds["final_metric"].notna()]
    seeds = seeds[["setting", "seed", "final_metric"]].rename(columns={"final_metric": "value"})
    seeds = seeds.assign(missed=False, status="final")
    title = panels.metric_title(rows["metric_name"].iloc[0], bool(rows["higher_is_better"].iloc[0]))
    scale = alt.Scale(domain=_most(rows, seeds["value"]), nice=False, zero=False)
    return (
        rows,
        seeds,
        [],
        alt.Y("value:Q", title=f"final {title}", scale=scale, axis=alt.Axis(format=".4~g")),
    )


def _summary(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    return rows.assign(value=rows[name], low=rows[f"{name}_low"], high=rows[f"{name}_high"])


def _most(rows: pd.DataFrame, values: pd.Series) -> list[float]:
    """An axis for all values but those far off the others: a run that went astray must not hide the rest.

    Intervals may stretch it by half of what the values need; longer ones run off it.
    """
    lower, upper = np.quantile(values, [0.25, 0.75])
    room = FAR * (upper - lower)
    low, high = max(float(values.min()), lower - room), min(float(values.max()), upper + room)
    spare = (high - low) or 0.1 * abs(high) or 0.1
    ends = rows[["low", "high"]].to_numpy(dtype=float).ravel()
    ends = ends[np.isfinite(ends)]
    low = max(low - spare / 2, min([low, *ends]))
    high = min(high + spare / 2, max([high, *ends]))
    return [low - 0.06 * spare, high + 0.06 * spare]


def _panel(
    mine: pd.DataFrame,
    rows: pd.DataFrame,
    seeds: pd.DataFrame,
    rules: list[Any],
    y: alt.Y,
    labels: list[str],
    colour: alt.Color,
    pick: alt.Parameter,
    first: bool,
) -> Any:
    keep = ["setting", "scheme", "scheme_label", "name", "place"]
    seeds = seeds.merge(rows[keep], on="setting")
    axis, x = str(mine["axis"].iloc[0]), _axis(mine)
    rows, seeds = (_beside(table, mine, labels, axis) for table in (rows, seeds))
    seen = alt.when(pick).then(alt.value(1)).otherwise(alt.value(0))
    base, ticks = (alt.Chart(table).transform_filter(pick).encode(x=x, color=colour) for table in (rows, seeds))
    hover = panels.tooltips(f"name:N:{TITLES[axis]}", "scheme_label:N:setting", "seed:Q:seed:d", "value:Q:value:.5~g")
    mark = alt.when(alt.datum.missed).then(alt.value("circle")).otherwise(alt.value("stroke"))
    ticks = ticks.mark_point(filled=False, size=50, strokeWidth=1.5, clip=True)
    ticks = ticks.encode(y=y, shape=mark, opacity=alt.value(0.6), tooltip=[*hover, alt.Tooltip("status:N", title="it")])
    lines = base.mark_line(strokeWidth=1.5, clip=True)
    lines = lines.encode(y=y, opacity=seen, strokeDash=panels.dashes(), detail="scheme_label:N")
    whiskers = base.mark_rule(strokeWidth=1.5, clip=True).encode(y=alt.Y("low:Q"), y2="high:Q")
    spec: Any = colour.to_dict()
    fill = alt.when(alt.datum.missed).then(alt.value("transparent"))
    hover = panels.tooltips(
        *(f"name:N:{TITLES[axis]}", "scheme_label:N:setting", "value:Q:mean:.5~g", "low:Q:from:.5~g"),
        *("high:Q:to:.5~g", "num_missed:Q:seeds that missed:d", "num_seeds:Q:seeds:d"),
        *("ratio:Q:steps ÷ raw run's:.3f", "best_ratio:Q:steps ÷ best raw training's:.3f"),
    )
    dots = base.mark_point(size=45, strokeWidth=2, opacity=1, clip=True)
    dots = dots.encode(
        y=y, tooltip=hover, fill=fill.otherwise(alt.Color("scheme_label:N", legend=None, scale=spec["scale"]))
    )
    dots = dots.add_params(pick) if first else dots
    between = [lines] if rows["place"].notna().all() else []  # between names there is nothing to join
    return alt.layer(*rules, ticks, *between, whiskers, dots)


def _axis(mine: pd.DataFrame) -> alt.X:
    axis = str(mine["axis"].iloc[0])
    if mine["place"].isna().any():  # a place of its own for each name, in order
        names = list(dict.fromkeys(mine["name"]))
        label = f"split({json.dumps(names)}[datum.value], /_|, /)"
        ticks = alt.Axis(values=list(range(len(names))), labelExpr=label, grid=False, labelLimit=110, labelAngle=0)
        domain = [-0.5, len(names) - 0.5]
        return alt.X("at:Q", title=None, axis=ticks, scale=alt.Scale(domain=domain, nice=False, zero=False))
    places = sorted(set(mine["place"].astype(float)))
    share = axis == "length"
    domain = _ends(places, log=not share)
    ticks = alt.Axis(values=places, grid=False, format=".0%" if share else "~g", labelOverlap=False)
    kind = (
        alt.Scale(domain=domain, nice=False, zero=False) if share else alt.Scale(type="log", domain=domain, nice=False)
    )
    return alt.X("at:Q", title=TITLES[axis] + ("" if share else " (log)"), axis=ticks, scale=kind)


def _ends(places: list[float], log: bool) -> list[float]:
    if log:
        room = (places[-1] / places[0]) ** 0.12
        return [places[0] / room, places[-1] * room]
    room = 0.12 * (places[-1] - places[0])
    return [places[0] - room, places[-1] + room]


def _beside(table: pd.DataFrame, mine: pd.DataFrame, labels: list[str], axis: str) -> pd.DataFrame:
    """Adds at: the place of a row, moved aside a little, so that the settings of one place do not hide each other."""
    number = table["scheme_label"].map({label: i for i, label in enumerate(labels)}).astype(float)
    aside = SIDE * (number - (len(labels) - 1) / 2)
    if mine["place"].isna().any():
        names = list(dict.fromkeys(mine["name"]))
        at = table["name"].map({name: i for i, name in enumerate(names)}) + aside * min(4.0, 20 / len(labels))
        return table.assign(at=at.astype(float))
    places = sorted(set(mine["place"].astype(float)))
    low, high = _ends(places, log=axis != "length")
    if axis == "length":
        return table.assign(at=table["place"] + aside * (high - low) / 3)
    return table.assign(at=table["place"] * (high / low) ** (aside / 3))
