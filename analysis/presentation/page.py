"""A page from its template: every string is escaped, charts become JSON and the controls beside them HTML."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
import markupsafe

from analysis.presentation import chart, figure_files


def render(template: str, **values: Any) -> str:
    """The text of a page. Args: template: a file beside this file; it may extend or include others."""
    loader = jinja2.FunctionLoader(
        lambda name: files("analysis.presentation").joinpath(name).read_text(encoding="utf-8")
    )
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.finalize = _unbroken
    environment.filters["json"] = _json
    return environment.get_template(template).render(**values)


def report(charts: Mapping[str, dict[str, Any]], **values: Any) -> str:
    """The page of a study. Args: charts: by section, as `figure_files.spec` makes them; values: what the template
    names beside them.
    """
    shown = {name: figure_files.on_page(chart) for name, chart in charts.items()}
    vega = markupsafe.Markup(figure_files.bundle()) if charts else ""
    theme = chart.theme() | {"background": None, "aria": False}  # the page's own colour, and its own description
    return render("report_template.html", charts=shown, theme=theme, vega=vega, endings=figure_files.ENDINGS, **values)


def _unbroken(value: object) -> object:
    """A number and its percent sign stay on one line."""
    plain = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return str(value).replace(" %", "\u00a0%") if plain else value


def _json(value: object) -> markupsafe.Markup:
    """JSON that cannot end the script element it lies in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return markupsafe.Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
