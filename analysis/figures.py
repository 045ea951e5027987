"""Tables -> Altair charts. Draws what the tables say and computes nothing but scales and positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis import panels
from analysis.baselines import in_front
from analysis.palette import REFERENCE_LINE, scheme_colours, setting_colours
from analysis.study import SCHEME_NAMES, Study, percent
from analysis.tables import Tables

MAX_SETTINGS = 8  # a workload and scheme, in all figures but the horizon axis
MAX_POINTS = 120  # a curve; a chart is 400 pixels wide
SEED_CURVES = 2_000  # points of single seeds a panel may hold, else medians only


@dataclass(frozen=True)
class Drawing:
    """What all figures share: the tables, the settings they show and their colours."""

    study: Study
    tables: Tables
    shown: pd.DataFrame  # settings of the reference trainings, one row each
    chosen: list[str]  # labels of the horizons fixed beforehand, and raw
    colours: dict[str, str]  # scheme_label -> colour
    schemes: dict[str, str]  # scheme name -> colour
    num_left_out: int  # settings of the reference trainings that are in the tables only

    @property
    def workloads(self) -> list[str]:
        return sorted(set(self.shown["workload"]))

    def rows(self, table: pd.DataFrame, workload: str) -> alt.Y:
        """The axis of one row a setting, in the order of schemes and horizons."""
        mine = self.shown[self.shown["workload"] == workload]["scheme_label"]
        order = [label for label in mine if label in set(table["scheme_label"])]
        return alt.Y("scheme_label:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False))

    @property
    def averages(self) -> dict[str, str]:
        """Colours of the schemes but for raw weights."""
        return {name: colour for name, colour in self.schemes.items() if name != SCHEME_NAMES["none"]}


def drawing(study: Study, tables: Tables, reference: dict[str, int]) -> Drawing:
    """Picks the settings of the reference training of each workload and gives each its colour."""
    every = tables.settings
    shown = every[every["training"] == every["workload"].map(reference)]
    shown = shown.sort_values(["scheme", "horizon_fraction", "setting"], kind="stable")
    order = {"none": 0, "ema": 1, "lawa": 2, "tail": 3}
    shown = shown.assign(rank=shown["scheme"].map(order).fillna(9)).sort_values("rank", kind="stable")
    chosen = [SCHEME_NAMES["none"], *sorted(set(in_front(tables.chosen)["scheme_label"]))]
    schemes = {SCHEME_NAMES.get(n, n): c for n, c in scheme_colours(sorted(set(shown["scheme"]))).items()}
    some = _some_of(shown, tables)
    return Drawing(
        study, tables, some, chosen, setting_colours(some, chosen), schemes, len(shown) - len(some)
    )


def _some_of(shown: pd.DataFrame, tables: Tables) -> pd.DataFrame:
    """At most about MAX_SETTINGS a workload and scheme, spread over the horizons; chosen and best always."""
    horizons = tables.horizon_map
    keep = set(tables.chosen["setting"]) | set(horizons.loc[horizons["best"], "setting"])
    parts = []
    for _, part in shown.groupby(["rank", "scheme", "workload"], sort=True):
        if len(part) <= MAX_SETTINGS:
            parts.append(part)
            continue
        one_each = part.drop_duplicates("horizon_fraction")
        places = np.unique(np.linspace(0, len(one_each) - 1, MAX_SETTINGS - 1).round().astype(int))
        spread = set(one_each.iloc[places]["setting"]) | keep
        parts.append(part[part["setting"].isin(spread)])
    return pd.concat(parts)


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
        y = alt.Y(
            "median:Q",
            title=panels.metric_title(row["metric_name"], row["higher_is_better"]),
            scale=alt.Scale(domain=panels.zoomed(mine, "median", row["higher_is_better"]), nice=False),
        )
        x = alt.X("step:Q", title="step", axis=panels.step_axis())
        seen = alt.when(pick).then(alt.value(1)).otherwise(alt.value(0))
        faint = alt.when(pick).then(alt.value(0.3)).otherwise(alt.value(0))
        hover = panels.tooltips(
            "scheme_label:N:setting", "step:Q:step:,", "median:Q:median:.4g", "num_seeds:Q:seeds:d"
        )
        seeds = _seed_curves(d, workload)
        layers = [
            alt.Chart(seeds)
            .mark_line(clip=True, strokeWidth=0.8)
            .encode(x=x, y=y, color=colour, opacity=faint, detail="cell:N")
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


def saving_curves(d: Drawing) -> alt.ConcatChart | None:
    """The ratio at every target level, against the same schedule, with its band; the study's target marked."""
    table = d.tables.saving_curve
    table = table[(table["versus"] == "same schedule") & table["setting"].isin(d.shown["setting"])]
    table = table[table["ratio"].notna()]
    if table.empty:
        return None
    pick = panels.legend_pick(d.chosen, "saving_pick")
    colours = {label: colour for label, colour in d.colours.items() if label != SCHEME_NAMES["none"]}
    colour = panels.setting_colour(colours)
    low, high = panels.span(
        table[table["scheme_label"].isin(d.chosen)], ["low", "high", "ratio"], include=1.0
    )
    parts: list[Any] = []
    for number, workload in enumerate(d.workloads):
        mine = table[table["workload"] == workload]
        if mine.empty:
            continue
        mine = mine.assign(all_reach=mine["num_exact"] == mine["num_pairs"])
        x = alt.X(
            "share:Q",
            title="target level: where the baseline is after this share of its training (→ tighter)",
            axis=alt.Axis(format=".0%", grid=False, values=[0.1, 0.25, 0.5, 0.75, 1.0]),
            scale=alt.Scale(domain=[0.08, 1.0], nice=False),
        )
        y = alt.Y(
            "ratio:Q", title="steps ÷ baseline's", scale=alt.Scale(domain=[low, high], nice=False, zero=False)
        )
        shade = alt.when(pick).then(alt.value(0.16)).otherwise(alt.value(0))
        seen = alt.when(pick).then(alt.value(1)).otherwise(alt.value(0))
        band = alt.Chart(mine).mark_area(clip=True).encode(x=x, y=alt.Y("low:Q"), y2="high:Q")
        band = band.encode(color=colour, opacity=shade, detail="setting:N").transform_filter(pick)
        hover = panels.tooltips(
            *("scheme_label:N:setting", "share:Q:target at share:.1%", "level:Q:target level:.4g"),
            *("ratio:Q:ratio:.3f", "low:Q:from:.3f", "high:Q:to:.3f"),
            *("num_exact:Q:pairs that reach it:d", "num_pairs:Q:pairs:d"),
        )
        line = alt.Chart(mine).mark_line(clip=True, strokeWidth=2)
        line = line.encode(x=x, y=y, color=colour, opacity=seen, detail="setting:N")
        line = line.encode(strokeDash=panels.dashes()).transform_filter(pick)
        line = panels.zoomable(line, f"saving_zoom_{number}")
        line = line if parts else line.add_params(pick)
        dots = alt.Chart(mine).mark_point(clip=True, size=20, strokeWidth=1.2)
        full = alt.when(alt.datum.all_reach).then(alt.value(1)).otherwise(alt.value(0))
        dots = dots.encode(x=x, y=y, color=colour, opacity=seen, tooltip=hover, detail="setting:N")
        dots = dots.encode(
            fill=alt.Color("scheme_label:N", legend=None, scale=panels.scale(colours)), fillOpacity=full
        )
        dots = dots.transform_filter(pick)
        layers = [panels.level_rule(1.0), band, line, dots, *_target_share(d, workload)]
        parts.append(panels.titled(alt.layer(*layers), workload))
    return panels.grid(parts)


def _target_share(d: Drawing, workload: str) -> list[alt.Chart]:
    raw = d.shown[(d.shown["workload"] == workload) & (d.shown["scheme"] == "none")]
    share = float((raw["steps_to_target"] / raw["step_budget"]).iloc[0]) if len(raw) else np.nan
    return panels.marked_at(share, "target") if 0.1 <= share < 1 else []


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
    parts: list[Any] = []
    for workload in d.workloads:
        mine = table[table["workload"] == workload]
        if mine.empty:
            continue
        flat = regions[(regions["workload"] == workload) & regions["training"].isin(mine["training"])]
        parts.append(panels.titled(_horizon_panel(d, mine, flat, colour, axis), workload, height=240))
    return panels.grid(parts)


def _horizon_panel(
    d: Drawing, mine: pd.DataFrame, flat: pd.DataFrame, colour: alt.Color, axis: list[float]
) -> Any:
    log = alt.Scale(type="log", domain=axis, nice=False)
    x = alt.X(
        "horizon_fraction:Q",
        title="averaging horizon, share of the step budget (log)",
        scale=log,
        axis=alt.Axis(values=panels.nice_horizons(axis), format="~p", grid=False, labelOverlap=False),
    )
    low, high = panels.span(mine, ["low", "high", "ratio"], include=1.0)
    y = alt.Y("ratio:Q", title="steps-to-target ÷ baseline's").scale(domain=[low, high], zero=False)
    strips = panels.flat_strips(flat, SCHEME_NAMES, list(d.averages), colour, log)
    base = alt.Chart(mine).encode(x=x, color=colour)
    line = base.mark_line(strokeWidth=1.5).encode(y=y, detail="every_steps:N")
    whisker = base.mark_rule(strokeWidth=1.5).encode(y=alt.Y("low:Q"), y2="high:Q")
    hover = panels.tooltips(
        *("scheme_label:N:setting", "ratio:Q:ratio:.3f", "low:Q:from:.3f", "high:Q:to:.3f"),
        *("bound:N:the ratio is", "num_pairs:Q:seeds:d", "flat:N:in flat region"),
    )
    dots = base.mark_point(filled=True, size=70, opacity=1).encode(y=y, tooltip=hover)
    dots = dots.encode(shape=panels.scheme_shape(d.averages))
    return alt.layer(*strips, panels.level_rule(1.0), *panels.marked_at(0.01, "1 %"), line, whisker, dots)


def schedule_curves(d: Drawing) -> alt.ConcatChart | None:
    """Raw runs of every schedule, their envelope, and the averages on the reference schedule."""
    bound, medians = d.tables.envelope, d.tables.median_curves
    if bound.empty:
        return None
    parts: list[Any] = []
    for number, workload in enumerate(d.workloads):
        mine = medians[medians["workload"] == workload]
        raw = mine[mine["scheme"] == "none"]
        averaged = mine[mine["setting"].isin(in_front(d.tables.chosen)["setting"])]
        edge = bound[bound["workload"] == workload]
        if edge.empty:
            continue
        rows = [
            raw.assign(series="raw, " + raw["training_label"], group="raw run"),
            averaged.assign(
                series=averaged["scheme_label"],
                group=averaged["scheme"].map(SCHEME_NAMES).fillna(averaged["scheme"]),
            ),
        ]
        table = panels.thin(pd.concat(rows), "setting", MAX_POINTS)
        table = table.merge(_schedule_names(d, workload), on="training")
        info = d.shown[d.shown["workload"] == workload].iloc[0]
        parts.append(
            panels.titled(_schedule_panel(d, table, edge, info, f"schedule_zoom_{number}"), workload)
        )
    return panels.grid(parts)


def _schedule_names(d: Drawing, workload: str) -> pd.DataFrame:
    """training -> what sets its schedule apart, in a few words."""
    cells = d.study.cells[d.study.cells["workload"] == workload].drop_duplicates("training")
    lengths = cells["length_fraction"].nunique() > 1
    decays = cells["lr_decay"].nunique(dropna=False) > 1
    names = [
        ", ".join(
            [percent(float(row["length_fraction"]))] * lengths
            + [f"LR decay {percent(float(row['lr_decay']))}"] * (decays and not pd.isna(row["lr_decay"]))
        )
        or str(row["training_label"])
        for row in cells.to_dict("records")
    ]
    return pd.DataFrame({"training": cells["training"].to_numpy(), "name": names})


def _schedule_panel(d: Drawing, table: pd.DataFrame, edge: pd.DataFrame, info: Any, zoom: str) -> Any:
    higher = bool(info["higher_is_better"])
    scale = alt.Scale(domain=panels.zoomed(table, "median", higher), nice=False)
    y = alt.Y("median:Q", title=panels.metric_title(info["metric_name"], higher), scale=scale)
    colours = {"raw run": d.schemes.get(SCHEME_NAMES["none"], REFERENCE_LINE), **d.averages}
    colour = alt.Color("group:N", title=None, scale=panels.scale(colours))
    base = alt.Chart(table).encode(x=alt.X("step:Q", title="step", axis=panels.step_axis()), y=y)
    hover = panels.tooltips("series:N:run", "step:Q:step:,", "median:Q:median:.4g", "num_seeds:Q:seeds:d")
    lines = base.mark_line(clip=True, strokeWidth=1.8).encode(color=colour, detail="setting:N", tooltip=hover)
    lines = lines.encode(strokeDash=panels.dashes())
    ends = table.sort_values("step").groupby("setting", as_index=False).last()
    ends = ends[ends["group"] == "raw run"]
    dots = (
        alt.Chart(ends)
        .mark_point(filled=True, size=60, opacity=1, clip=True)
        .encode(x="step:Q", y=y, color=colour)
    )
    names = alt.Chart(ends).mark_text(
        align="right", dx=-2, dy=-13 if higher else 13, fontSize=11, color=REFERENCE_LINE
    )
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
            text.encode(text=alt.Text("hours_ratio:Q", format=".2f")),
        )
        parts.append(panels.titled(layered, workload, **panels.row_size(mine)))
    return panels.grid(parts)


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
            y=alt.Y(
                "way:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False, labelLimit=300)
            ),
            x=alt.X("device_hours:Q", title=f"{unit}, whole sweep", axis=alt.Axis(format="~g")),
            color=alt.Color("part:N", title=None, sort=parts, scale=panels.scale(colours)),
            order="rank:Q",
            tooltip=panels.tooltips("way:N:way", "part:N:part", f"device_hours:Q:{unit}:.4g"),
        )
    )
    return panels.grid([panels.titled(chart, "", height=36 * len(order) + 10, width=640)])
