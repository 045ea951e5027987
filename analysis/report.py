"""A run folder -> tables/*.{csv,tex}, figures/*.{svg,png,pdf} and one self-contained report.html a study.

Of several studies report.html leads to each, with its question and answer, and says what all cost.

The same run folder gives the same bytes, but for PDFs: nothing here reads a clock, and names and orders are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd

from analysis import methods, recommend, sections
from analysis.core import Core, core
from analysis.presentation import figure_files, latex, page, table_format
from analysis.presentation.chart import look
from analysis.run_folder import output
from analysis.run_folder.records import load_trials
from analysis.run_folder.run_files import NAME, BadRun, wandb_links
from analysis.run_folder.study import Study, read_each
from analysis.statistics import device_hours
from analysis.statistics.algoperf_score import read_evaluations

Link = tuple[str, str]  # what it says, and where it leads: from a study's report to another page


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
        return self.frames | {"study": core.study, "look": shown, "unit": core.unit, "primary": core.primary}

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
        every = [(shown, self.frames.get(shown.frame, pd.DataFrame())) for shown in getattr(section, "SHOWN", ())]
        every = [(shown, shown.rows(frame) if shown.rows and len(frame) else frame) for shown, frame in every]
        own = getattr(section, "COLUMNS", {})
        return [table_format.table(frame, shown, own) for shown, frame in every if len(frame)]

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
    page_of_all = run / "report.html"
    if len(reports) == 1:
        _write(reports[0], run, on_wandb(run, reports[0].core.study))
        return page_of_all
    folders = [_folder(run, report.name) for report in reports]  # all names before the first page
    for place, (report, folder) in enumerate(zip(reports, folders, strict=True)):
        links = [(f"all {len(reports)} studies", "../../report.html")]
        links += [(f"← {one.name}", f"../{one.name}/report.html") for one in reports[max(0, place - 1) : place]]
        links += [(f"{one.name} →", f"../{one.name}/report.html") for one in reports[place + 1 : place + 2]]
        _write(report, folder, [*links, *on_wandb(run, report.core.study)])
    for folder in (run / "tables", run / "figures"):  # what it got while it held one study
        _empty(folder)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    output.write(page_of_all, _index(run, reports))
    return page_of_all


def _folder(run: Path, study: str) -> Path:
    """Where a study's own report, tables and figures lie. Raises: BadRun for a name that would lie elsewhere."""
    if not NAME.fullmatch(study):
        raise BadRun(f"{run}: a study called {study!r} cannot name a folder")
    made = run / "reports" / study
    made.mkdir(parents=True, exist_ok=True)
    return made


def on_wandb(run: Path, study: Study) -> list[Link]:
    """To the study's runs on W&B, where they were published there."""
    link = wandb_links(run).get(str(study.plan.get("study")))
    return [] if link is None else [("runs on W&B", link)]


def _index(run: Path, reports: Sequence[Report]) -> str:
    """The page that leads to each study's."""
    studies = [report.core.study for report in reports]
    cells = pd.concat([study.cells for study in studies]).drop_duplicates("cell_id")
    rows = [
        _counted(study.cells, study.trials)
        | {"study": report.name, "question": study.plan.get("question"), "answer": report.answer}
        | {"link": f"reports/{report.name}/report.html", "shared": f"{len(study.shared):,}"}
        | {"unfinished": int((study.cells["state"] == "unfinished").sum())}
        for report, study in zip(reports, studies, strict=True)
    ]
    total, unit = _counted(cells, load_trials(run)), device_hours.unit(cells)
    return page.render("index_template.html", studies=rows, total=total, unit=unit)


def _counted(cells: pd.DataFrame, trials: pd.DataFrame) -> dict[str, Any]:
    trainings = cells["trajectory"].fillna(cells["trajectory_id"]).nunique()
    hours = f"{device_hours.paid(trials):.3g}"
    return {"cells": f"{len(cells):,}", "trajectories": f"{trainings:,}", "hours": hours}


def _write(report: Report, folder: Path, links: Sequence[Link]) -> None:
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
    output.write(folder / "report.html", _page(report, heights, links))


WRITTEN = ".written"  # in tables/ and figures/: what the last report put there, which the next one takes away


def _empty(folder: Path) -> None:
    """Removes what an earlier report wrote there, and nothing else."""
    listed = folder / WRITTEN
    names = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    for name in [*names, WRITTEN] if names else []:
        if name == Path(name).name:
            (folder / name).unlink(missing_ok=True)


def _page(report: Report, heights: Mapping[str, int], links: Sequence[Link]) -> str:
    """The page; every string from the run folder is escaped. heights: pixels that a chart will take, by its section."""
    shown = [_shown(report, section) for section in report.sections]
    shown = [one for one in shown if one["name"] in report.charts or one["sentences"] or one["tables"]]
    names = {section["name"] for section in shown}
    of_shown = [one for one in report.sections if sections.name(one) in names]
    return page.report(
        report.charts,
        study=report.name,
        question=report.core.study.plan.get("question"),
        answer=report.answer,
        notices=list(methods.notices(report.core)),
        facts=methods.facts(report.core.study),
        sections=shown,
        methods=methods.methods(report.core, of_shown, report.frames),
        heights=heights,
        links=links,
    )


def _shown(report: Report, section: ModuleType) -> dict[str, Any]:
    name = sections.name(section)
    caption = sections.call(section.caption, report.known) if hasattr(section, "caption") else section.CAPTION
    words, tables = report.words(section), report.tables(section)
    return {"name": name, "title": section.TITLE, "sentences": words, "caption": caption, "tables": tables}
