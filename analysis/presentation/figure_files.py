"""A chart -> the spec that the page embeds, and figures/*.{svg,png,pdf}. The same chart gives the same SVG and PNG."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from analysis.presentation.chart import HOVER, theme
from analysis.run_folder import output

ENDINGS = ("svg", "png", "pdf")
PNG_SCALE = 1.5
# A file is laid out here, for a font that its readers have too, or one of the same widths; where neither is there,
# labels may grow into the margin.
IN_FILES = {
    "font": "'Liberation Sans', Arial, Helvetica, sans-serif",
    "padding": {"left": 24, "right": 24, "top": 5, "bottom": 5},
}
_VEGALITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])


def spec(chart: alt.ConcatChart | None) -> dict[str, Any] | None:
    """A chart as Vega-Lite without its theme, with the columns that its marks use; None for no chart."""
    if chart is None:
        return None
    with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=True):
        found: dict[str, Any] = chart.to_dict()
    found = {key: part for key, part in found.items() if key not in ("config", "$schema")}
    for param in found.get("params", []):  # Altair gives those of a layer to all layers of it
        if "views" in param:
            param["views"] = [view for view in param["views"] if (f"_{HOVER}_near" in view) == _nearest(param)][:1]
    return _slim(found)


def write(chart: dict[str, Any], folder: Path, name: str) -> int:
    """Writes a spec as folder/name.{svg,png,pdf}; returns its height in pixels."""
    config = theme() | IN_FILES
    svg = _numbered(str(vl_convert.vegalite_to_svg(_still(chart), vl_version=_VEGALITE, config=config)))
    output.write(folder / f"{name}.svg", svg)
    output.write(folder / f"{name}.png", vl_convert.svg_to_png(_clipped_once(svg), scale=PNG_SCALE))
    output.write(folder / f"{name}.pdf", vl_convert.svg_to_pdf(svg))
    height = re.search(r'<svg[^>]*\sheight="([0-9.]+)"', svg)
    return round(float(height[1])) if height else 0


def on_page(chart: dict[str, Any]) -> dict[str, Any]:
    """A spec of `spec` as the page embeds it: buttons of the page stand for legends that pick, and for radios.

    Returns: chart · pick: the parameter that says which settings are shown, empty for none · settings: label, colour,
    whether it is shown at first · choices: parameters that take one of a few values · zoomable.
    """
    chart = deepcopy(chart)
    params = chart.get("params", [])
    choices = []
    for param in params:
        if isinstance(param.get("bind"), dict):
            bind = param.pop("bind")
            choices.append(param | {"title": bind.get("name", ""), "options": bind["options"]})
    pick: dict[str, Any] = next((param for param in params if param.get("bind") == "legend"), {"name": ""})
    colours: dict[str, str] = {}
    for part in _parts(chart) if pick["name"] else ():
        coded = part.get("color")
        if isinstance(coded, dict) and coded.get("field") == pick["select"]["fields"][0] and "scale" in coded:
            coded["legend"] = None
            colours |= dict(zip(coded["scale"]["domain"], coded["scale"]["range"], strict=True))
    first = {value for row in pick.get("value", []) for value in row.values()}
    settings = [(label, colour, label in first) for label, colour in colours.items()]
    zoomable = any(param.get("bind") == "scales" for param in params)
    return {"chart": chart, "pick": pick["name"], "settings": settings, "choices": choices, "zoomable": zoomable}


def _parts(part: Any) -> Iterator[dict[str, Any]]:
    """Every object of a spec, but for its data."""
    if isinstance(part, dict):
        yield part
        part = [one for key, one in part.items() if key != "datasets"]
    for one in part if isinstance(part, list) else ():
        yield from _parts(one)


def _still(chart: dict[str, Any]) -> dict[str, Any]:
    """A chart without the layers that follow a pointer."""
    chart = deepcopy(chart)
    chart["params"] = [param for param in chart.get("params", []) if not _nearest(param)]
    for part in list(_parts(chart)):
        if "layer" in part:
            part["layer"] = [layer for layer in part["layer"] if f"_{HOVER}_" not in layer.get("name", "")]
            if len(part["layer"]) == 1 and set(part) <= {"layer", "data"}:
                part |= part.pop("layer")[0]
    return chart


def _nearest(param: dict[str, Any]) -> bool:
    return "nearest" in param.get("select", {})


@lru_cache(maxsize=1)
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed, so that the page needs no network."""
    text = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGALITE))
    return text.replace("</script", "<\\/script")


def _slim(found: dict[str, Any]) -> dict[str, Any]:
    """Drops the columns that no mark uses, and digits that no eye sees."""
    used = json.dumps({key: value for key, value in found.items() if key != "datasets"})
    for name, rows in found.get("datasets", {}).items():
        columns = [column for column in rows[0] if re.search(rf"\b{re.escape(column)}\b", used)] if rows else []
        found["datasets"][name] = [{column: _short(row[column]) for column in columns} for row in rows]
    return found


def _short(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None  # JSON has no NaN; a tooltip shows nothing


def _clipped_once(svg: str) -> str:
    """One clip a group of lines instead of one a line: each costs the renderer a canvas of its own."""
    for group in sorted(set(re.findall(r'class="mark-group role-scope (\S+?)_pathgroup"', svg))):
        mark = rf'(<g class="mark-\w+ role-mark {group}_marks") clip-path="(url\(#\w+\))"'
        if clips := re.findall(mark, svg):
            whole = f'<g class="mark-group role-scope {group}_pathgroup"'
            svg = re.sub(mark, r"\1", svg).replace(whole, f'{whole} clip-path="{clips[0][1]}"')
    return svg


def _numbered(svg: str) -> str:
    """Vega numbers the ids in a drawing by a counter of the process; number them by place instead."""
    found = list(dict.fromkeys(re.findall(r'id="((?:clip|gradient_)\d+)"', svg)))
    places = {old: f"id{place}" for place, old in enumerate(found)}
    return re.sub(r"\b(?:clip|gradient_)\d+\b", lambda match: places.get(match[0], match[0]), svg)
