"""A run folder -> tables/*.csv, figures/*.{svg,png} and one self-contained report.html a study.

The same run folder gives the same bytes: nothing here reads a clock, and names and orders are fixed.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import markupsafe
import pandas as pd
import vl_convert

from analysis import (
    baselines,
    conclusions,
    cost_figures,
    curve_figures,
    device_hours,
    figures,
    methods,
    page_tables,
    palette,
    pooled_figures,
    report_index,
    tightness,
    tightness_figures,
)
from analysis.drawing import drawing
from analysis.study import Study, read, read_each
from analysis.tables import Tables, compute, core, settings

_VEGALITE = ".".join(alt.SCHEMA_VERSION.split(".")[:2])
_PNG_SCALE = 1.5


@dataclass(frozen=True)
class Section:
    """A heading, computed sentences, and a figure if there is data for it."""

    name: str
    title: str
    how_to_read: str
    sentences: list[str]
    chart: dict[str, Any] | None


def write(run: str | Path) -> Path:
    """Writes tables, figures and the report of a run folder, finished or not; returns the report's path.

    A folder of several studies gets these for each study, in reports/<study>/, and a report.html that leads there.
    Raises: analysis.records.BadRun where the folder or one of its tables breaks the schema.
    """
    run = Path(run)
    studies = read_each(run)
    if len(studies) == 1:
        _write(studies[0], run)
        return run / "report.html"
    answers = [_write(study, report_index.folder(run, study)) for study in studies]
    _remove_those_of_one_study(run)
    return report_index.write(run, studies, answers)


def _write(study: Study, folder: Path) -> str:
    """The tables, figures and report of one study; returns its answer."""
    tables = compute(study)
    tables.write(folder / "tables")
    sections = [section for section in make_sections(study, tables) if section.chart or section.sentences]
    _write_figures(sections, folder / "figures")
    (folder / "report.html").write_text(render(study, tables, sections), encoding="utf-8")
    return conclusions.answer(study, tables)


def _remove_those_of_one_study(run: Path) -> None:
    """Removes the tables and figures that a folder got while it held one study."""
    names = [f"tables/{field.name}.csv" for field in fields(Tables)]
    names += [f"figures/{name}.{ending}" for name in methods.HOW_TO_READ for ending in ("svg", "png")]
    for name in names:
        (run / name).unlink(missing_ok=True)
    for folder in (run / "tables", run / "figures"):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def summary_tables(run: str | Path, most: int | None = None) -> dict[str, pd.DataFrame]:
    """`summary_table` of each study of a run folder, by its name."""
    return {str(study.plan.get("study", "study")): _summary(study, most) for study in read_each(run)}


def summary_table(run: str | Path, most: int | None = None) -> pd.DataFrame:
    """One row a setting, for a terminal: workload, schedule, scheme, horizon in % of the step budget,
    median steps to target, ratio with interval against the same schedule, best metric, seeds that missed.

    most: with more rows than this, only the reference schedule of each workload is shown.
    """
    return _summary(read(run), most)


def _summary(study: Study, most: int | None) -> pd.DataFrame:
    found = core(study)
    table = settings(study.cells, found.steps, found.ratios, found.general)
    if most is not None and len(table) > most:
        reference = baselines.reference_training(study.cells, found.scores)
        table = table[table["training"].isin(list(reference.values()))].reset_index(drop=True)
    return page_tables.summary(table)


def make_sections(study: Study, tables: Tables) -> list[Section]:
    """The report's figures in order, each with what the tables say about it."""
    unit = device_hours.unit(study.cells)
    d = drawing(study, tables, baselines.reference_training(study.cells, tables.baselines))
    c = conclusions
    drawn = [
        ("steps_to_target", "Steps to target", c.ratio_findings(study, tables), figures.ratio_dots(d)),
        ("pooled", "Over all workloads", c.pooled_findings(tables), pooled_figures.forest(d)),
        ("saving_curve", "The saving at every target", c.curve_findings(tables), figures.saving_curves(d)),
        (
            "tightness",
            "Does the target's tightness explain the saving?",
            tightness.findings(tables.tightness),
            tightness_figures.tightness(tables.tightness_points, tables.tightness),
        ),
        (
            "horizon",
            "The averaging horizon",
            c.horizon_findings(tables),
            figures.horizon_lines(d),
        ),
        ("learning_curves", "Learning curves", [], curve_figures.learning_curves(d)),
        (
            "lr_decay",
            "Averaging and LR schedules",
            c.schedule_findings(tables),
            curve_figures.schedule_curves(d),
        ),
        ("generalization", "Generalization", c.generalization_findings(tables), figures.final_metric(d)),
        ("user_hours", f"What a user pays, in {unit}", [], cost_figures.user_hours(d, unit)),
        ("sweep_hours", f"What the sweep paid, in {unit}", [], cost_figures.sweep_hours(d, unit)),
    ]
    costs = c.hours_findings(study, tables, unit)
    said = {"user_hours": costs[:-1], "sweep_hours": [*costs[-1:], *report_index.shared_cost(study, unit)]}
    return [
        Section(
            name,
            title,
            methods.how_to_read(name, d.num_left_out),
            said.get(name, sentences),
            _spec(chart, name),
        )
        for name, title, sentences, chart in drawn
    ]


def render(study: Study, tables: Tables, sections: list[Section]) -> str:
    """The page; every string from the run folder is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.finalize = _unbroken
    template = environment.from_string(
        files("analysis").joinpath("report_template.html").read_text(encoding="utf-8")
    )
    charts = {section.name: section.chart for section in sections if section.chart}
    themes = {"light": palette.theme(palette.LIGHT), "dark": palette.theme(palette.DARK)}
    return template.render(
        study=str(study.plan.get("study", "study")),
        question=study.plan.get("question"),
        answer=conclusions.answer(study, tables),
        few_seeds=methods.few_seeds(study),
        notices=list(methods.notices(study)),
        facts=methods.facts(study),
        sections=sections,
        tables=list(page_tables.shown_tables(tables)),
        methods=methods.methods(study),
        caveats=methods.caveats(study, tables),
        charts=_json(charts),
        themes=_json(themes),
        vega=markupsafe.Markup(_bundle()) if charts else "",
    )


def _unbroken(value: object) -> object:
    """A number and its percent sign stay on one line."""
    plain = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return str(value).replace(" %", "\u00a0%") if plain else value


def _spec(chart: alt.ConcatChart | None, name: str) -> dict[str, Any] | None:
    if chart is None:
        return None
    with alt.data_transformers.enable("default", max_rows=None, consolidate_datasets=True):
        spec: dict[str, Any] = chart.to_dict()
    for key in ("config", "$schema"):
        spec.pop(key, None)
    return _renamed(_slim(spec), name)


def _slim(spec: dict[str, Any]) -> dict[str, Any]:
    """Drops the columns that no mark uses, and digits that no eye sees."""
    used = json.dumps({key: value for key, value in spec.items() if key != "datasets"})
    for name, rows in spec.get("datasets", {}).items():
        columns = (
            [column for column in rows[0] if re.search(rf"\b{re.escape(column)}\b", used)] if rows else []
        )
        spec["datasets"][name] = [{column: _short(row[column]) for column in columns} for row in rows]
    return spec


def _short(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _renamed(spec: dict[str, Any], name: str) -> dict[str, Any]:
    """Altair numbers views and parameters by a counter of the process; number them by place instead."""
    text = json.dumps(spec)
    found = list(dict.fromkeys(re.findall(r'"((?:view|param)_\d+)(?:_[a-z_]*)?"', text)))
    for place, old in enumerate(sorted(found, key=lambda one: text.index(f'"{one}'))):
        text = re.sub(rf'"{old}(?=["_])', f'"{name}_v{place}', text)
    renamed: dict[str, Any] = json.loads(text)
    return renamed


def _write_figures(sections: list[Section], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    config = palette.theme(palette.LIGHT)
    for name in methods.HOW_TO_READ:  # what an earlier report drew and this one leaves out
        for ending in ("svg", "png"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    for section in sections:
        if section.chart is None:
            continue
        svg = _numbered(vl_convert.vegalite_to_svg(section.chart, vl_version=_VEGALITE, config=config))
        (folder / f"{section.name}.svg").write_text(svg, encoding="utf-8")
        png = vl_convert.svg_to_png(svg, scale=_PNG_SCALE)
        (folder / f"{section.name}.png").write_bytes(png)


def _numbered(svg: str) -> str:
    """Vega numbers the ids in a drawing by a counter of the process; number them by place instead."""
    found = list(dict.fromkeys(re.findall(r'id="((?:clip|gradient_)\d+)"', svg)))
    places = {old: f"id{place}" for place, old in enumerate(found)}
    return re.sub(r"\b(?:clip|gradient_)\d+\b", lambda match: places.get(match[0], match[0]), svg)


def _json(value: object) -> markupsafe.Markup:
    """JSON that cannot end the script element it lies in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return markupsafe.Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


@lru_cache(maxsize=1)
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed, so that the page needs no network."""
    text = str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version=_VEGALITE))
    return text.replace("</script", "<\\/script")
