"""What charts are made of: panels, scales, tooltips, rules, colours and the theme, for HTML, SVG and PNG alike.

A scheme has one colour everywhere, shades of it for horizons, the baseline grey; each has a contrast of 3:1 or more on
the light and the dark page (WCAG 2.1, 1.4.11), and the hues are told apart with colour-vision deficiencies.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from analysis.run_folder.study import SCHEME_NAMES
from analysis.statistics.pairs import in_front

# The colour of the shortest horizon, of the pre-specified one and of the longest.
SHADES = {
    "none": ("#808080", "#808080", "#808080"),
    "ema": ("#1fa0ad", "#2f86d1", "#6a5fd6"),
    "lawa": ("#b8853a", "#d9661f", "#c8344a"),
    "tail": ("#6f9f1c", "#1a9e77", "#0f7a8a"),
    "wsm": ("#cb78b0", "#b565c4", "#8a4fd0"),
}
MORE_SHADES = [  # for schemes this version does not know, in order
    ("#8a9348", "#b08a00", "#8f6a2e"),
    ("#e0657f", "#d1477a", "#a8328f"),
    ("#6f97c4", "#5f7fe0", "#3f6fa0"),
]
SCHEME_COLOURS = {name: pure for name, (_, pure, _) in SHADES.items()}
REFERENCE_LINE = "#8a8a8a"
TEXT, MUTED, GRID = "#1f2328", "#59636e", "#e6e8eb"  # the page's style sheet puts its own in their place
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"
WIDTH, HEIGHT, COLUMNS = 420, 280, 2
ALONE = 640  # the width of a single panel
ZOOM = "wheel![event.ctrlKey || event.metaKey || event.altKey]"
PAN = "[pointerdown[event.pointerType !== 'touch'], window:pointerup] > window:pointermove!"
HOVER = "hover"  # in the names of layers that files leave out
NAME: dict[str, Any] = {"align": "left", "dx": 4, "color": REFERENCE_LINE, "fontSize": 11}  # of a line
MAX_SETTINGS = 8  # a workload and scheme, in all figures but the horizon axis


@dataclass(frozen=True)
class Look:
    """Which settings figures show, and their colours."""

    shown: pd.DataFrame  # settings of the reference trainings, one row each
    chosen: list[str]  # labels of the pre-specified horizons, and of the non-averaged baseline
    colours: dict[str, str]  # scheme_label -> colour
    schemes: dict[str, str]  # scheme name -> colour
    num_left_out: int  # settings of the reference trainings that are in the tables only

    @property
    def workloads(self) -> list[str]:
        return sorted(set(self.shown["workload"]))

    @property
    def averages(self) -> dict[str, str]:
        """Colours of the schemes but for the non-averaged baseline."""
        return {name: colour for name, colour in self.schemes.items() if name != SCHEME_NAMES["none"]}

    def rows(self, table: pd.DataFrame, workload: str) -> alt.Y:
        """The axis of one row a setting, in the order of schemes and horizons."""
        mine = self.shown[self.shown["workload"] == workload]["scheme_label"]
        order = [label for label in mine if label in set(table["scheme_label"])]
        return alt.Y("scheme_label:N", title=None, sort=order, axis=alt.Axis(ticks=False, domain=False))


def look(settings: pd.DataFrame, chosen: pd.DataFrame, horizons: pd.DataFrame, reference: dict[str, int]) -> Look:
    """Picks the settings of the reference training of each workload and gives each its colour.

    Args: settings, chosen, horizons: the tables settings, chosen and horizon_map. reference: workload -> training.
    """
    shown = settings[settings["training"] == settings["workload"].map(reference)]
    shown = shown.assign(rank=shown["scheme"].map({name: rank for rank, name in enumerate(SHADES)}).fillna(len(SHADES)))
    shown = shown.sort_values(["rank", "scheme", "horizon_fraction", "setting"], kind="stable")
    front = [SCHEME_NAMES["none"], *sorted(set(in_front(chosen)["scheme_label"]))]
    schemes = {SCHEME_NAMES[n]: c for n, c in scheme_colours(sorted(set(shown["scheme"]))).items()}
    some = _some_of(shown, set(chosen["setting"]) | set(horizons.loc[horizons["best"], "setting"]))
    return Look(some, front, setting_colours(some, front), schemes, len(shown) - len(some))


def _some_of(shown: pd.DataFrame, keep: set[int]) -> pd.DataFrame:
    """At most about MAX_SETTINGS a workload and scheme, spread over the horizons; those of `keep` always."""
    parts = []
    for _, part in shown.groupby(["rank", "scheme", "workload"], sort=True):
        one_each = part.drop_duplicates("horizon_fraction")
        places = np.unique(np.linspace(0, len(one_each) - 1, MAX_SETTINGS - 1).round().astype(int))
        spread = set(one_each.iloc[places]["setting"]) | keep
        parts.append(part if len(part) <= MAX_SETTINGS else part[part["setting"].isin(spread)])
    return pd.concat(parts)


def grid(parts: list[Any]) -> alt.ConcatChart | None:
    """Small multiples, COLUMNS in a row, each with its own scales but colours shared; None for no panel."""
    if not parts:
        return None
    parts = [parts[0].properties(width=ALONE)] if len(parts) == 1 else parts
    scales: dict[str, Any] = {"x": "independent", "y": "independent", "color": "shared", "shape": "shared"}
    chart: alt.ConcatChart = alt.concat(*parts, columns=COLUMNS).resolve_scale(**scales)
    return chart


def titled(chart: Any, title: str, subtitle: str = "", height: int = HEIGHT, width: int = WIDTH) -> Any:
    """A panel of the common size."""
    # A longer name would run into the next panel.
    text = alt.TitleParams(title, subtitle=subtitle or alt.Undefined, limit=width + 60)
    return chart.properties(title=text, width=width, height=height)


def zoomable(line: alt.Chart, name: str) -> Any:
    """Zoom and pan by one mark of a panel, which has both axes; the panel's other marks follow.

    The wheel zooms with a modifier only, and a finger does not pan: both scroll the page. Where the mark has tooltips,
    layers follow the pointer, which files leave out: the tooltip of the nearest point, a rule there, and the points of
    all curves. Args: name: one in a figure.
    """
    line = line.add_params(alt.selection_interval(name=name, bind="scales", zoom=ZOOM, translate=PAN))
    shown: Any = line.encoding
    if shown.tooltip is alt.Undefined:
        return line
    moves: dict[str, Any] = {"on": "pointermove", "clear": "pointerout"}
    near = alt.selection_point(name=f"{name}_near", nearest=True, encodings=["x"], empty=False, **moves)
    bare = alt.Chart(line.data).encode(x=shown.x)
    bare.transform = line.transform
    dots = bare.encode(y=shown.y, color=shown.color)
    layers = {
        "rule": bare.mark_rule(color=REFERENCE_LINE, clip=True).transform_filter(near),
        "seen": dots.mark_point(filled=True, size=55, opacity=1, clip=True).transform_filter(near),
        "near": dots.mark_point(opacity=0, size=1, clip=True).encode(tooltip=shown.tooltip).add_params(near),
    }
    return alt.layer(line, *(layer.properties(name=f"{name}_{HOVER}_{part}") for part, layer in layers.items()))


def row_size(table: pd.DataFrame) -> dict[str, Any]:
    """A panel with one row a setting: its height, and the width that is left beside the longest label."""
    longest = int(table["scheme_label"].str.len().max())
    return {"height": 24 * int(table["scheme_label"].nunique()) + 14, "width": max(220, 500 - 6 * max(12, longest))}


def legend_pick(shown: list[str], name: str) -> alt.Parameter:
    """Settings shown at first; on the page a button each adds one or takes it away."""
    start = [{"scheme_label": label} for label in shown]
    return alt.selection_point(fields=["scheme_label"], bind="legend", name=name, value=start, empty=False)


def switch(name: str, title: str, options: list[str]) -> alt.Parameter:
    """One of a few values, the first at first; on the page a button each, where there are several."""
    radio = alt.binding_radio(options=options, name=title)
    return alt.param(name=name, value=options[0], bind=radio if len(options) > 1 else alt.Undefined)


def scale(colours: dict[str, str]) -> alt.Scale:
    return alt.Scale(domain=list(colours), range=list(colours.values()))


def setting_colour(colours: dict[str, str]) -> alt.Color:
    """Colour by setting; on the page the buttons of `legend_pick` stand for the legend."""
    legend = alt.Legend(title=None, symbolType="stroke", symbolOpacity=1)
    return alt.Color("scheme_label:N", scale=scale(colours), sort=list(colours), legend=legend)


def scheme_colour(schemes: dict[str, str]) -> alt.Color:
    return alt.Color("scheme_name:N", title=None, scale=scale(schemes), legend=_marks(schemes))


def scheme_shape(schemes: dict[str, str]) -> alt.Shape:
    """Schemes differ in shape as well as in colour."""
    shapes = cycle(["circle", "square", "diamond", "triangle-up", "cross", "triangle-down"])
    shape = scale(dict(zip(schemes, shapes, strict=False)))
    return alt.Shape("scheme_name:N", title=None, scale=shape, legend=_marks(schemes))


def _marks(schemes: dict[str, str]) -> alt.Legend:
    return alt.Legend(title=None, values=list(schemes), symbolOpacity=1)


def dashes() -> Any:
    """LAWA's lines are dashed, so that they show where an EMA's lie beneath."""
    dashed = (alt.datum.scheme == "lawa") | (alt.datum.scheme == "tail")
    return alt.when(dashed).then(alt.value([7, 3])).otherwise(alt.value([1, 0]))


def tooltips(*fields: str) -> list[alt.Tooltip]:
    """``"field:Q:title:format"`` -> tooltip lines; the format may be left out."""
    lines = []
    for field in fields:
        name, kind, title, *form = field.split(":", 3)
        line = alt.Tooltip(f"{name}:{kind}", title=title)
        lines.append(line.format(form[0]) if form else line)
    return lines


def metric_title(name: str, higher_is_better: bool) -> str:
    return f"validation {name} ({'higher' if higher_is_better else 'lower'} is better)"


def step_axis() -> alt.Axis:
    return alt.Axis(format=",d", tickCount=5, grid=False)


def level_rule(at: float) -> Any:
    """A horizontal line at a ratio that means no change."""
    return _rule(at, strokeWidth=1.2).encode(y="at:Q")


def vertical_rule(at: float, title: str | None = None, width: float = 1.5) -> Any:
    """A vertical line at a value that means no change."""
    return _rule(at, strokeWidth=width).encode(x=alt.X("at:Q") if title is None else alt.X("at:Q", title=title))


def _rule(at: float, **look: Any) -> alt.Chart:
    made: alt.Chart = alt.Chart(pd.DataFrame({"at": [at]})).mark_rule(color=REFERENCE_LINE, **look)
    return made


def horizon_scale(ends: list[float]) -> alt.Scale:
    return alt.Scale(type="log", domain=ends, nice=False)


def horizon_x(field: str, ends: list[float]) -> alt.X:
    """The common axis of all schemes, logarithmic, with 1-2-5 ticks."""
    return alt.X(
        f"{field}:Q",
        title="averaging horizon, share of the step budget (log)",
        scale=horizon_scale(ends),
        axis=alt.Axis(values=nice_horizons(ends), format="~p", grid=False, labelOverlap=False),
    )


def target_line(target: Any) -> list[alt.Chart]:
    """A dashed horizontal line with its value; nothing of NaN."""
    if pd.isna(target):
        return []
    rule, text = _named_rule(target, f"target {target:.4g}", strokeDash=[6, 4], strokeWidth=1.5, clip=True)
    return [rule.encode(y="at:Q"), text.encode(y="at:Q", x=alt.value(0))]


def marked_at(x: float, label: str) -> list[alt.Chart]:
    """A dashed vertical line with a word at the top."""
    rule, text = _named_rule(x, label, strokeDash=[4, 4])
    return [rule.encode(x="at:Q"), text.mark_text(dy=8, **NAME).encode(x="at:Q", y=alt.value(0))]


def _named_rule(at: float, label: str, **look: Any) -> tuple[alt.Chart, alt.Chart]:
    base = alt.Chart(pd.DataFrame({"at": [at], "label": [label]}))
    return base.mark_rule(color=REFERENCE_LINE, **look), base.mark_text(dy=-7, **NAME).encode(text="label:N")


def dots_and_whiskers(
    table: pd.DataFrame, value: str, y: alt.Y, title: str, colour: alt.Color, at: float,
    seeds: pd.DataFrame | None = None,
) -> Any:  # fmt: skip
    """A dot a setting, its interval, and a line at the value that means no change.

    Args: seeds: for a tick each, column value; then a dot is hollow where it is a bound (a seed missed the target).
    """
    table = table.rename(columns={f"{value}_low": "low", f"{value}_high": "high", value: "value"})
    names = ["low", "high", "value"]
    low, high = span(table if seeds is None else pd.concat([table[names], seeds[["value"]]]), names, include=at)
    axis = alt.Axis(grid=True, tickCount=6, format="~g" if seeds is None else ".2f")
    x = alt.X("value:Q", title=title, axis=axis).scale(domain=[low, high], nice=False, zero=False)
    base = alt.Chart(table).encode(y=y, color=colour)
    whiskers = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    lines = ["scheme_label:N:setting", "value:Q:mean:.4g", "low:Q:from:.4g", "high:Q:to:.4g"]
    lines += ["effect:N:effect", "pairs:Q:seeds:d"] if seeds is None else ["bound:N:it is", "num_pairs:Q:seeds:d"]
    dots = base.encode(x=x, tooltip=tooltips(*lines))
    if seeds is None:
        return alt.layer(vertical_rule(at, title), whiskers, dots.mark_point(size=70, filled=True, opacity=1))
    hover = tooltips("scheme_label:N:setting", "seed:Q:seed:d", "value:Q:ratio:.3f", "bound:N:it is")
    ticks = alt.Chart(seeds).mark_tick(thickness=1.5, size=9)
    ticks = ticks.encode(x=x, y=y, color=colour, opacity=alt.value(0.55), tooltip=hover)
    spec: Any = colour.to_dict()
    fill: Any = alt.Color("scheme_name:N", legend=None, scale=spec["scale"])
    dots = dots.encode(fill=fill, fillOpacity=opaque_where(alt.datum.bound == "exact")).mark_point(
        size=70, strokeWidth=2, opacity=1
    )
    return alt.layer(vertical_rule(at, title), ticks, whiskers, dots)


def opaque_where(true: Any) -> Any:
    """1 where it is true, else 0: of an opacity, or of the fill of a mark that is hollow elsewhere."""
    return alt.when(true).then(alt.value(1)).otherwise(alt.value(0))


def span(table: pd.DataFrame, columns: list[str], include: float = np.nan, spare: float = 0.05) -> tuple[float, float]:
    """An axis that holds every finite value of the columns and `include`, with a share of it to spare."""
    values = np.append(table[columns].to_numpy(dtype=float).ravel(), include)
    values = values[np.isfinite(values)]
    low, high = float(values.min()), float(values.max())
    room = spare * (high - low) or 0.05
    return low - room, high + room


def zoomed(table: pd.DataFrame, column: str) -> list[float]:
    """An axis for the part of learning curves that is worth seeing: what is reached after a sixth of the steps."""
    late = table[table["step"] >= table["step"].max() / 6]
    return [0.0, 1.0] if not np.isfinite(late[column].astype(float)).any() else list(span(late, [column], spare=0.08))


def nice_horizons(axis: list[float]) -> list[float]:
    """1-2-5 ticks within the axis."""
    ticks = [m * 10.0**e for e in range(-7, 1) for m in (1, 2, 5)]
    return [tick for tick in ticks if axis[0] <= tick <= axis[1]]


def thin(table: pd.DataFrame, key: str, most: int) -> pd.DataFrame:
    """At most about `most` rows a curve, evenly spread, the last always kept."""
    size = table.groupby(key)[key].transform("size")
    from_last = table.groupby(key).cumcount(ascending=False)
    kept: pd.DataFrame = table[from_last % np.ceil(size / most).astype(int) == 0]
    return kept


def theme() -> dict[str, Any]:
    """The Vega-Lite config of every chart."""
    return {
        "background": "#ffffff",
        "font": FONT,
        "view": {"stroke": None, "continuousWidth": 400, "continuousHeight": 260},
        "title": {"color": TEXT, "fontSize": 14, "anchor": "start", "fontWeight": 600, "offset": 10}
        | {"subtitleColor": MUTED, "subtitleFontSize": 12},
        "axis": {"labelColor": MUTED, "titleColor": TEXT, "gridColor": GRID, "domainColor": MUTED}
        | {"tickColor": MUTED, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500}
        | {"labelLimit": 240, "titlePadding": 8},
        "legend": {"labelColor": TEXT, "titleColor": MUTED, "labelFontSize": 12, "titleFontSize": 12}
        | {"titleFontWeight": 500, "orient": "bottom", "columns": 6, "symbolStrokeWidth": 3}
        | {"labelLimit": 240, "columnPadding": 18, "rowPadding": 5},
        "concat": {"spacing": 34},
    }


def scheme_colours(schemes: list[str]) -> dict[str, str]:
    """scheme -> colour, the same in every figure and run for the schemes that SHADES names."""
    return {name: pure for name, (_, pure, _) in _shades(schemes).items()}


def submission_colours(names: list[str]) -> dict[str, str]:
    """submission -> colour, in the order given; they repeat after 21."""
    hues = [*(shades for name, shades in SHADES.items() if name != "none"), *MORE_SHADES]
    return dict(zip(names, cycle([shades[place] for place in (1, 0, 2) for shades in hues]), strict=False))


def setting_colours(settings: pd.DataFrame, chosen: list[str]) -> dict[str, str]:
    """scheme_label -> colour: its scheme's, towards one end for horizons shorter than the chosen, the other for longer.

    Args: settings: columns scheme, scheme_label, horizon_fraction. chosen: labels that get the pure colour.
    """
    rows = settings.drop_duplicates("scheme_label")
    shades = _shades(sorted(set(rows["scheme"])))
    colours: dict[str, str] = {}
    for scheme, part in rows.groupby("scheme", sort=False):
        short, pure, long = shades[str(scheme)]
        labels = list(part.sort_values(["horizon_fraction", "scheme_label"])["scheme_label"])
        middle = next((i for i, label in enumerate(labels) if label in chosen), len(labels) // 2)
        for place, label in enumerate(labels):
            end, most = (short, middle) if place < middle else (long, len(labels) - 1 - middle)
            colours[label] = _mix(pure, end, abs(place - middle) / max(1, most))
    return colours


def _shades(schemes: list[str]) -> dict[str, tuple[str, str, str]]:
    extra = zip(sorted(set(schemes) - set(SHADES)), cycle(MORE_SHADES), strict=False)
    return {name: shades for name, shades in (*SHADES.items(), *extra) if name in schemes}


def _mix(colour: str, other: str, share: float) -> str:
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(other[1:]), strict=True)
    return "#" + "".join(f"{round((1 - share) * a + share * b):02x}" for a, b in pairs)
