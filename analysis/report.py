"""A run folder -> tables/*.{csv,tex}, figures/*.{svg,png,pdf} and one self-contained report.html a study.

The same run folder gives the same bytes: nothing here reads a clock, and names and orders are fixed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Any

import altair as alt
import jinja2
import markupsafe
import pandas as pd

from analysis import baselines, device_hours, output, paper_rows, profiles, tightness
from analysis.algoperf_score import EVALUATIONS_FILE, read_evaluations
from analysis.figures import (
    average_figures,
    cost_figures,
    curve_figures,
    figure_files,
    palette,
    paper_figures,
    pooled_figures,
    prediction_figures,
    saving_figures,
    score_figures,
    snapshot_figures,
    tightness_figures,
    training_figures,
)
from analysis.figures.drawing import drawing
from analysis.findings import (
    answers,
    conclusions,
    curve_conclusions,
    predictions,
    score_findings,
    training_findings,
)
from analysis.pages import latex, methods, page_tables, report_index
from analysis.profiles import Profiles
from analysis.study import Study, read, read_each
from analysis.tables import Tables, compute, core, settings

Drawn = tuple[str, str, list[str], alt.ConcatChart | None]  # name, title, sentences, chart


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
        _write(studies[0], run, run, report_index.on_wandb(run, studies[0]))
        return run / "report.html"
    folders = [report_index.folder(run, study) for study in studies]  # all names before the first page
    answers = [
        _write(study, folder, run, [*report_index.links(studies, place), *report_index.on_wandb(run, study)])
        for place, (study, folder) in enumerate(zip(studies, folders, strict=True))
    ]
    _remove_those_of_one_study(run)
    return report_index.write(run, studies, answers)


def _write(study: Study, folder: Path, run: Path, links: Sequence[report_index.Link] = ()) -> str:
    """The tables, figures and report of one study; returns its answer."""
    tables = compute(study)
    scored = _profiles(study, tables, run)
    _write_tables(tables, scored, folder / "tables")
    predicted = predictions.of_study(study)
    predictions.write(predicted, folder / "tables")
    sections = make_sections(study, tables, scored, predicted)
    sections = [section for section in sections if section.chart or section.sentences]
    heights = _write_figures(sections, folder / "figures") or {}
    answer = _answer(study, tables, scored, predicted)
    page = render(study, tables, sections, answer, scored, heights, links)
    output.write(folder / "report.html", page)
    return answer


def _profiles(study: Study, tables: Tables, run: Path) -> Profiles | None:
    if study.plan.get("imported") == "AlgoPerf" or (run / EVALUATIONS_FILE).is_file():  # submissions
        return profiles.of_submissions(read_evaluations(run))
    return profiles.of_schemes(study, tables)


def _answer(study: Study, tables: Tables, scored: Profiles | None, predicted: Sequence[predictions.Prediction]) -> str:
    compares = scored is not None and scored.imported
    return score_findings.answer(scored) if scored and compares else answers.answer(study, tables, predicted)


def _write_tables(tables: Tables, scored: Profiles | None, folder: Path) -> None:
    """All rows as CSV, what the page shows as LaTeX; what an earlier report wrote and this one lacks goes."""
    for name in _table_names():
        (folder / name).unlink(missing_ok=True)
    tables.write(folder)
    if scored:
        scored.write(folder)
    for table in page_tables.shown_tables(tables, scored):
        text = latex.table(table.title, table.columns, table.rows, table.left_out, Path(table.file).name)
        output.write(folder / table.tex, text)


def _table_names() -> list[str]:
    names = [field.name for field in fields(Tables)] + [f"score_{name}" for name in profiles.FILES]
    names.append(predictions.FILE)
    return [f"{name}.{ending}" for name in names for ending in ("csv", "tex")]


def _figure_names() -> list[str]:
    return [f"{name}.{ending}" for name in methods.HOW_TO_READ for ending in figure_files.ENDINGS]


def _remove_those_of_one_study(run: Path) -> None:
    """Removes the tables and figures that a folder got while it held one study."""
    names = [f"tables/{name}" for name in _table_names()] + [f"figures/{name}" for name in _figure_names()]
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


def make_sections(
    study: Study,
    tables: Tables,
    scored: Profiles | None = None,
    predicted: Sequence[predictions.Prediction] = (),
) -> list[Section]:
    """The report's figures in order, each with what the tables say about it."""
    unit = device_hours.unit(study.cells)
    d = drawing(study, tables, baselines.reference_training(study.cells, tables.baselines))
    c = conclusions
    score = (score_findings.findings(scored), score_figures.profiles(scored))
    learning: Drawn = ("learning_curves", "Learning curves", [], curve_figures.learning_curves(d))
    paid: Drawn = ("sweep_hours", f"What the sweep paid, in {unit}", [], cost_figures.sweep_hours(d, unit))
    costs = c.hours_findings(study, tables, unit)
    said = {"user_hours": costs[:-1], "sweep_hours": [*costs[-1:], *report_index.shared_cost(study, unit)]}
    if scored is not None and scored.imported:  # submissions: no averages and no schedules to tell of
        hours = report_index.paid(study.trials)
        said = {"sweep_hours": [f"{len(study.cells):,} trials took {hours:,.0f} {unit}, evaluation included."]}
        return _sections([("score", "Score", *score), learning, paid], said, d.num_left_out)
    drawn = [
        (
            "predictions",
            "What the field predicts",
            predictions.findings(predicted),
            prediction_figures.prediction_panels(predictions.points(predicted)),
        ),
        (
            "trainings",
            training_findings.title(tables),
            training_findings.findings(tables),
            training_figures.training_panels(d),
        ),
        (
            "steps_to_target",
            "Steps to target",
            c.ratio_findings(study, tables),
            average_figures.ratio_dots(d),
        ),
        ("pooled", "Over all workloads", c.pooled_findings(tables), pooled_figures.forest(d)),
        ("profiles", "Performance profiles", *score),
        (
            "saving_curve",
            "The saving at every target",
            curve_conclusions.findings(tables),
            saving_figures.saving_curves(d),
        ),
        (
            "tightness",
            "Does the target's tightness explain the saving?",
            tightness.findings(tables.tightness),
            tightness_figures.tightness(tables.tightness_points, tables.tightness),
        ),
        (
            "paper_rows",
            "The paper's numbers beside ours",
            paper_rows.findings(tables.paper_rows),
            paper_figures.ratios_beside(tables.paper_rows),
        ),
        (
            "horizon",
            "The averaging horizon",
            c.horizon_findings(tables),
            average_figures.horizon_lines(d),
        ),
        (
            "snapshot_grid",
            "How often an average looks",
            training_findings.snapshot_findings(tables),
            snapshot_figures.snapshot_maps(d),
        ),
        learning,
        (
            "lr_decay",
            "Averaging and LR schedules",
            training_findings.schedule_findings(tables),
            curve_figures.schedule_curves(d),
        ),
        (
            "generalization",
            "Generalization",
            c.generalization_findings(tables),
            average_figures.final_metric(d),
        ),
        ("user_hours", f"What a user pays, in {unit}", [], cost_figures.user_hours(d, unit)),
        paid,
    ]
    return _sections(drawn, said, d.num_left_out)


def _sections(drawn: list[Drawn], said: Mapping[str, list[str]], num_left_out: int) -> list[Section]:
    return [
        Section(
            name,
            title,
            methods.how_to_read(name, num_left_out),
            said.get(name, sentences),
            figure_files.spec(chart, name),
        )
        for name, title, sentences, chart in drawn
    ]


def render(
    study: Study,
    tables: Tables,
    sections: list[Section],
    answer: str,
    scored: Profiles | None = None,
    heights: Mapping[str, int] = MappingProxyType({}),
    links: Sequence[report_index.Link] = (),
) -> str:
    """The page; every string from the run folder is escaped.

    heights: pixels that a chart will take, by its section's name. links: to the other reports of the folder.
    """
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.finalize = _unbroken
    template = environment.from_string(
        files("analysis.pages").joinpath("report_template.html").read_text(encoding="utf-8")
    )
    charts = {section.name: _json(section.chart) for section in sections if section.chart}
    themes = {"light": palette.theme(palette.LIGHT), "dark": palette.theme(palette.DARK)}
    return template.render(
        study=str(study.plan.get("study", "study")),
        question=study.plan.get("question"),
        answer=answer,
        few_seeds=methods.few_seeds(study),
        notices=list(methods.notices(study)),
        facts=methods.facts(study),
        sections=sections,
        tables=list(page_tables.shown_tables(tables, scored)),
        methods=methods.methods(study),
        caveats=methods.caveats(study, tables),
        charts=charts,
        heights=heights,
        links=links,
        endings=figure_files.ENDINGS,
        themes=_json(themes),
        vega=markupsafe.Markup(figure_files.bundle()) if charts else "",
    )


def _unbroken(value: object) -> object:
    """A number and its percent sign stay on one line."""
    plain = isinstance(value, str) and not isinstance(value, markupsafe.Markup)
    return str(value).replace(" %", "\u00a0%") if plain else value


def _write_figures(sections: list[Section], folder: Path) -> dict[str, int]:
    """Writes every chart; returns the height of each in pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _figure_names():  # what an earlier report drew and this one leaves out
        (folder / name).unlink(missing_ok=True)
    drawn = [section for section in sections if section.chart]
    return {section.name: figure_files.write(section.chart or {}, folder, section.name) for section in drawn}


def _json(value: object) -> markupsafe.Markup:
    """JSON that cannot end the script element it lies in."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
    return markupsafe.Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))
