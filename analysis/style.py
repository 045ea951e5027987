"""One look for every chart: a colour a scheme everywhere, shades of it for horizons, and the theme.

Every colour has a contrast of 3:1 or more on the page's light and its dark background (WCAG 2.1, 1.4.11), so that one
drawing serves both; the hues are told apart with the common colour-vision deficiencies. The non-averaged baseline is
always grey.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

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
    spare = [shades[place] for place in (1, 0, 2) for shades in hues]
    return {name: spare[place % len(spare)] for place, name in enumerate(names)}


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
    unknown = sorted(set(schemes) - set(SHADES))
    extra = {name: MORE_SHADES[i % len(MORE_SHADES)] for i, name in enumerate(unknown)}
    return {name: shades for name, shades in {**SHADES, **extra}.items() if name in schemes}


def _mix(colour: str, other: str, share: float) -> str:
    pairs = [(int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round((1 - share) * a + share * b):02x}" for a, b in pairs)
