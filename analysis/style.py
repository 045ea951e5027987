"""One look for every chart: a colour a scheme everywhere, and a light and a dark theme.

The hues are told apart with the common colour-vision deficiencies and have a contrast of 3:1 or more on both
backgrounds. Raw weights (no averaging) are always grey.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

SCHEME_COLOURS = {"none": "#808080", "ema": "#2f86d1", "lawa": "#d9661f", "tail": "#1a9e77", "wsm": "#b565c4"}
MORE_COLOURS = ["#b08a00", "#d1477a", "#5f7fe0"]  # schemes this version does not know, in order
REFERENCE_LINE = "#8a8a8a"
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Liberation Sans', sans-serif"

LIGHT = {"background": "#ffffff", "text": "#1f2328", "muted": "#59636e", "grid": "#e6e8eb"}
DARK = {"background": "#14171a", "text": "#e6e8ea", "muted": "#a3acb6", "grid": "#2b3036"}


def theme(colours: dict[str, str]) -> dict[str, Any]:
    """The Vega-Lite config of a theme, LIGHT or DARK."""
    text, muted, grid = colours["text"], colours["muted"], colours["grid"]
    return {
        "background": colours["background"],
        "font": FONT,
        "view": {"stroke": None, "continuousWidth": 400, "continuousHeight": 260},
        "title": {"color": text, "fontSize": 14, "anchor": "start", "fontWeight": 600, "offset": 10}
        | {"subtitleColor": muted, "subtitleFontSize": 12},
        "axis": {"labelColor": muted, "titleColor": text, "gridColor": grid, "domainColor": muted}
        | {"tickColor": muted, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500}
        | {"labelLimit": 240, "titlePadding": 8},
        "legend": {"labelColor": text, "titleColor": muted, "labelFontSize": 12, "titleFontSize": 12}
        | {"titleFontWeight": 500, "orient": "bottom", "columns": 6, "symbolStrokeWidth": 3}
        | {"labelLimit": 240, "columnPadding": 18, "rowPadding": 5},
        "concat": {"spacing": 34},
    }


def scheme_colours(schemes: list[str]) -> dict[str, str]:
    """scheme -> colour, the same in every figure and run for the schemes that SCHEME_COLOURS names."""
    unknown = sorted(set(schemes) - set(SCHEME_COLOURS))
    extra = {name: MORE_COLOURS[i % len(MORE_COLOURS)] for i, name in enumerate(unknown)}
    return {name: colour for name, colour in {**SCHEME_COLOURS, **extra}.items() if name in schemes}


def submission_colours(names: list[str]) -> dict[str, str]:
    """submission -> colour, in the order given; they repeat after seven."""
    spare = [*(colour for name, colour in SCHEME_COLOURS.items() if name != "none"), *MORE_COLOURS]
    return {name: spare[place % len(spare)] for place, name in enumerate(names)}


def setting_colours(settings: pd.DataFrame, chosen: list[str]) -> dict[str, str]:
    """scheme_label -> colour: its scheme's, lighter for shorter horizons than the chosen one's, darker for longer.

    Args: settings: columns scheme, scheme_label, horizon_fraction. chosen: labels that get the pure colour.
    """
    rows = settings.drop_duplicates("scheme_label")
    base = scheme_colours(sorted(set(rows["scheme"])))
    colours: dict[str, str] = {}
    for scheme, part in rows.groupby("scheme", sort=False):
        labels = list(part.sort_values(["horizon_fraction", "scheme_label"])["scheme_label"])
        middle = next((i for i, label in enumerate(labels) if label in chosen), len(labels) // 2)
        for place, label in enumerate(labels):
            steps = (place - middle) / max(1, middle if place < middle else len(labels) - 1 - middle)
            colours[label] = _mix(base[str(scheme)], 0.45 * abs(steps), 255 if steps < 0 else 0)
    return colours


def _mix(colour: str, share: float, towards: int) -> str:
    channels = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round((1 - share) * channel + share * towards):02x}" for channel in channels)
