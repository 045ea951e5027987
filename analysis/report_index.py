"""report.html of a folder that holds several studies: each with its question and answer, and what all cost."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from analysis.presentation import page
from analysis.run_folder import output
from analysis.run_folder.records import BadRun, load_trials
from analysis.run_folder.run_files import NAME, wandb_links
from analysis.run_folder.study import Study
from analysis.statistics import device_hours


def folder(run: Path, study: Study) -> Path:
    """Where a study's own report, tables and figures lie. Raises: BadRun for a name that would lie elsewhere."""
    name = str(study.plan["study"])
    if not NAME.fullmatch(name):
        raise BadRun(f"{run}: a study called {name!r} cannot name a folder")
    made = run / "reports" / name
    made.mkdir(parents=True, exist_ok=True)
    return made


class Link(NamedTuple):
    """From a study's report to another page of the folder."""

    text: str
    href: str


def on_wandb(run: Path, study: Study) -> list[Link]:
    """To the study's runs on W&B, where they were published there."""
    link = wandb_links(run).get(str(study.plan.get("study")))
    return [] if link is None else [Link("runs on W&B", link)]


def links(studies: Sequence[Study], place: int) -> list[Link]:
    """To the index, and to the studies before and after this one."""
    names = [str(study.plan["study"]) for study in studies]
    found = [Link(f"all {len(names)} studies", "../../report.html")]
    if place > 0:
        found.append(Link(f"← {names[place - 1]}", f"../{names[place - 1]}/report.html"))
    if place + 1 < len(names):
        found.append(Link(f"{names[place + 1]} →", f"../{names[place + 1]}/report.html"))
    return found


def write(run: Path, studies: Sequence[Study], answers: Sequence[list[str]]) -> Path:
    """Writes the page; every string from the run folder is escaped. The same folder gives the same bytes."""
    cells = pd.concat([study.cells for study in studies]).drop_duplicates("cell_id")
    unit = device_hours.unit(cells)
    rows = [
        {
            "study": study.plan["study"],
            "question": study.plan.get("question"),
            "answer": answer,
            "link": f"reports/{study.plan['study']}/report.html",
            "unfinished": int((study.cells["state"] == "unfinished").sum()),
            "cells": f"{len(study.cells):,}",
            "trajectories": f"{_trajectories(study.cells):,}",
            "shared": f"{len(study.shared):,}",
            "hours": f"{device_hours.paid(study.trials):.3g}",
        }
        for study, answer in zip(studies, answers, strict=True)
    ]
    total = {
        "cells": f"{len(cells):,}",
        "trajectories": f"{_trajectories(cells):,}",
        "hours": f"{device_hours.paid(load_trials(run)):.3g}",
    }
    path = run / "report.html"
    output.write(path, page.render("index_template.html", studies=rows, total=total, unit=unit))
    return path


def _trajectories(cells: pd.DataFrame) -> int:
    return int(cells["trajectory"].fillna(cells["trajectory_id"]).nunique())
