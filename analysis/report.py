"""A run folder -> tables/*.{csv,tex}, figures/*.{svg,png,pdf} and one self-contained report.html a study.

The same run folder gives the same bytes, but for PDFs: nothing here reads a clock, and names and orders are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from analysis import methods, recommend, report_index, sections
from analysis.core import Core, core
from analysis.presentation import figure_files, latex, page, table_format
from analysis.presentation.chart import look
from analysis.run_folder import output
from analysis.run_folder.run_files import BadRun
from analysis.run_folder.study import Study, read_each
from analysis.statistics.algoperf_score import read_evaluations


class Report:
    """One study, computed: its tables, figures and words, before anything is written."""

    def __init__(self, study: Study, run: Path | None = None) -> None:
        self.core: Core = core(study, run)
        self.sections = sections.of_study(self.core)

    @property
    def name(self) -> str:
        return str(self.core.study.plan.get("study", "study"))

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """Every table, by the name of its CSV file."""
        return sections.frames(self.core, self.sections)

    @cached_property
    def known(self) -> dict[str, Any]:
        """What a section's functions may name."""
        core = self.core
        shown = look(core.settings, core.chosen, core.horizons, core.reference)
        more = {"study": core.study, "look": shown, "unit": core.unit, "primary": core.primary}
        return self.frames | more

    def words(self, section: ModuleType) -> list[str]:
        """What a section says."""
        said: list[str] = sections.call(section.sentences, self.known) if hasattr(section, "sentences") else []
        return said

    @cached_property
    def charts(self) -> dict[str, dict[str, Any]]:
        """The figures there is data for, by section, as Vega-Lite."""
        found: dict[str, dict[str, Any]] = {}
        for section in self.sections:
            if hasattr(section, "chart"):
                spec = figure_files.spec(sections.call(section.chart, self.known))
                found |= {sections.name(section): spec} if spec else {}
        return found

    def tables(self, section: ModuleType) -> list[table_format.Table]:
        """The tables that a section shows, as text; empty ones are left out."""
        own = getattr(section, "COLUMNS", {})
        found = []
        for shown in getattr(section, "SHOWN", ()):
            frame = self.frames.get(shown.frame, pd.DataFrame())
            frame = frame if shown.rows is None or frame.empty else shown.rows(frame)
            found += [table_format.table(frame, shown, own)] if len(frame) else []
        return found

    @cached_property
    def answer(self) -> list[str]:
        """The first screen: what `wa recommend` says, in the same words."""
        return list(recommend.of_core(self.core, frames=self.frames).answer)

    def summary(self, most: int | None = None) -> table_format.Table:
        """The result table for a terminal: one row a setting; of more than `most` the reference schedules alone."""
        table = self.core.settings
        if most is not None and len(table) > most:
            table = table[table["reference"]]
        steps = sections.named("steps")
        shown = steps.SHOWN[0]._replace(columns=steps.SUMMARY)
        return table_format.table(steps.in_order(table), shown, {}, len(table))


def of_run(run: str | Path, baseline: str | None = None) -> list[Report]:
    """The studies of a run folder, finished or not.

    Args: baseline: of imported logs, the submission that others are measured against.
    Raises: analysis.run_folder.records.BadRun where the folder breaks the schema, or has no such submission.
    """
    made = [Report(study, Path(run)) for study in read_each(run)]
    for one in made if baseline is not None else []:
        known = sorted(set(read_evaluations(Path(run))["submission"])) if "imported" in one.core.study.plan else []
        if baseline not in known:
            allowed = ", ".join(known) or "none: only imported logs have submissions"
            raise BadRun(f"{run}: no submission {baseline!r} to be the baseline; allowed: {allowed}")
        one.core.study.plan["baseline"] = baseline
    return made


def write(run: str | Path, reports: Sequence[Report] | None = None) -> Path:
    """Writes tables, figures and the report of a run folder, finished or not; returns the report's path.

    A folder of several studies gets these for each study, in reports/<study>/, and a report.html that leads there.
    Args: reports: of `of_run`, if they are there already. Raises: analysis.run_folder.records.BadRun.
    """
    run = Path(run)
    reports = of_run(run) if reports is None else reports
    if len(reports) == 1:
        _write(reports[0], run, report_index.on_wandb(run, reports[0].core.study))
        return run / "report.html"
    studies = [report.core.study for report in reports]
    folders = [report_index.folder(run, study) for study in studies]  # all names before the first page
    for place, (report, folder) in enumerate(zip(reports, folders, strict=True)):
        links = [*report_index.links(studies, place), *report_index.on_wandb(run, report.core.study)]
        _write(report, folder, links)
    for folder in (run / "tables", run / "figures"):  # what it got while it held one study
        _empty(folder)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return report_index.write(run, studies, [report.answer for report in reports])


def _write(report: Report, folder: Path, links: Sequence[report_index.Link] = ()) -> None:
    """The tables, figures and page of one study."""
    tables, figures = folder / "tables", folder / "figures"
    texts = {table.name: latex.table(table) for section in report.sections for table in report.tables(section)}
    frames = {name: frame for name, frame in report.frames.items() if len(frame)}
    names = [f"{name}.csv" for name in frames] + [f"{name}.tex" for name in texts]
    drawn = [f"{name}.{ending}" for name in report.charts for ending in figure_files.ENDINGS]
    for made, listed in ((tables, names), (figures, drawn)):
        made.mkdir(parents=True, exist_ok=True)
        _empty(made)
        output.write(made / WRITTEN, "".join(f"{name}\n" for name in listed))
    for name, frame in frames.items():
        output.write_csv(tables / f"{name}.csv", frame)
    for name, text in texts.items():
        output.write(tables / f"{name}.tex", text)
    heights = {name: figure_files.write(chart, figures, name) for name, chart in report.charts.items()}
    output.write(folder / "report.html", render(report, heights, links))


WRITTEN = ".written"  # in tables/ and figures/: what the last report put there, which the next one takes away


def _empty(folder: Path) -> None:
    """Removes what an earlier report wrote there, and nothing else."""
    listed = folder / WRITTEN
    names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    for name in [*names, WRITTEN] if names else []:
        if name == Path(name).name:
            (folder / name).unlink(missing_ok=True)


def render(report: Report, heights: Mapping[str, int], links: Sequence[report_index.Link] = ()) -> str:
    """The page; every string from the run folder is escaped.

    Args: heights: pixels that a chart will take, by its section's name. links: to other reports of the folder.
    """
    shown = [_shown(report, section) for section in report.sections]
    shown = [one for one in shown if one["name"] in report.charts or one["sentences"] or one["tables"]]
    names = {section["name"] for section in shown}
    plan = report.core.study.plan
    return page.report(
        report.charts,
        study=report.name,
        question=plan.get("question"),
        answer=report.answer,
        notices=list(methods.notices(report.core)),
        facts=methods.facts(report.core.study),
        sections=shown,
        methods=methods.methods(
            report.core, [one for one in report.sections if sections.name(one) in names], report.frames
        ),
        heights=heights,
        links=links,
    )


def _shown(report: Report, section: ModuleType) -> dict[str, Any]:
    name = sections.name(section)
    caption = sections.call(section.caption, report.known) if hasattr(section, "caption") else section.CAPTION
    words, tables = report.words(section), report.tables(section)
    return {"name": name, "title": section.TITLE, "sentences": words, "caption": caption, "tables": tables}
