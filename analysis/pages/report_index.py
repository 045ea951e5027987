"""report.html of a folder that holds several studies: each with its question and answer, and what all cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jinja2
import pandas as pd

from analysis import device_hours, output
from analysis.plan_file import NAME
from analysis.records import BadRun, load_trials
from analysis.run_files import wandb_links
from analysis.study import Study


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


def shared_cost(study: Study, unit: str) -> Iterator[str]:
    """What this study's cost has in common with other studies of the folder; nothing where it shares none."""
    if study.shared:
        hours = paid(study.trials[study.trials["name"].isin(study.shared)])
        yield (
            f"{len(study.shared):,} of its trajectories serve other studies of this folder too: {hours:.3g} of the "
            f"{paid(study.trials):.3g} {unit}. They were paid once, and each study counts them in full."
        )


def paid(trials: pd.DataFrame) -> float:
    """Device-hours of all attempts: Σ seconds × devices / 3600."""
    return float((trials["seconds"] * trials["num_devices"]).sum() / 3600)


def write(run: Path, studies: Sequence[Study], answers: Sequence[str]) -> Path:
    """Writes the page; every string from the run folder is escaped. The same folder gives the same bytes."""
    cells = pd.concat([study.cells for study in studies]).drop_duplicates("cell_id")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    text = files("analysis.pages").joinpath("index_template.html").read_text(encoding="utf-8")
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
            "hours": f"{paid(study.trials):.3g}",
        }
        for study, answer in zip(studies, answers, strict=True)
    ]
    total = {
        "cells": f"{len(cells):,}",
        "trajectories": f"{_trajectories(cells):,}",
        "hours": f"{paid(load_trials(run)):.3g}",
    }
    path = run / "report.html"
    page = environment.from_string(text).render(studies=rows, total=total, unit=unit)
    output.write(path, page)
    return path


def _trajectories(cells: pd.DataFrame) -> int:
    return int(cells["trajectory"].fillna(cells["trajectory_id"]).nunique())
