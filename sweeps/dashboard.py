"""W&B as code: the workspace and the report of a run folder, made from its plan and its cells.

A workspace is written as JSON with stable bytes: ids derive from names, and no clock or chance enters. A report asks
the server while it is made, so it exists online only. Every key a panel shows is one that `sweeps.publisher` logs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from analysis import report
from analysis.presentation import table_format
from analysis.run_folder.records import load_cells, load_plan
from analysis.run_folder.run_files import BadRun, read_json
from cluster.secrets import redacted
from sweeps import publisher, tracking
from sweeps.blocks import TrackingBlock
from sweeps.durable import write_atomic

PATIENCE_SECONDS = 15.0
TABLE_ROWS = 40  # of a study's result table in the report
GRID = [  # axes of a cell, as they are read from left to right; those that vary are drawn
    *("workload", "seed", "optimizer", "lr", "weight_decay", "schedule", "length_fraction", "lr_decay"),
    *("scheme", "buffers", "every_steps", "k", "ema_decay", "horizon_fraction"),
]
LOGARITHMIC = {"lr", "weight_decay", "horizon_fraction"}
LINE, SCATTER = "line", "scatter"  # of a step's values; of a run's summary against the averaging horizon
# Sections of the workspace: a panel's title, what it is (or how a bar aggregates the runs of a scheme), and its key.
PANELS: dict[str, list[tuple[str, str, str]]] = {
    "Metric against step": [("validation loss", LINE, "validation/loss")],
    "Steps to target": [
        ("steps to target against averaging horizon (a miss counts the step budget)", SCATTER, publisher.STEPS),
        ("median steps to target, by scheme", "median", publisher.STEPS),
        ("share of runs that met the target, by scheme", "mean", publisher.MET),
        ("ratio to the non-averaged baseline against averaging horizon", SCATTER, publisher.RATIO),
    ],
    "Averaging horizon": [("best target metric against averaging horizon", SCATTER, publisher.BEST)],
    "Grid": [],  # and `_grid`
    "Training": [
        ("mean training loss since the last evaluation", LINE, "train/loss"),
        ("learning rate", LINE, "train/lr"),
        ("training examples per second", LINE, "train/examples_per_second"),
    ],
    "Seconds": [
        (f"seconds of {what}{by}", how, f"seconds/{key}")
        for by, how in (("", LINE), (", by scheme", "mean"))
        for key, what in {"train": "training", "average": "averaging", "eval": "evaluation"}.items()
    ],
}


class PushFailed(RuntimeError):
    """W&B did not take the workspace or the report; the message is one line and holds no key."""


def workspace(run: Path, where: TrackingBlock | None = None) -> ws.Workspace:
    """The folder's runs of all its studies, grouped by workload and scheme. Raises: BadRun."""
    cells, plan, where = load_cells(run), load_plan(run), where or tracking.block(run)
    studies = [entry["study"] for entry in plan["studies"]]
    name = ", ".join(studies)
    shown = (publisher.BEST, publisher.STEPS, publisher.MET, publisher.RATIO, publisher.VERDICT)
    made = ws.Workspace(
        entity=where.entity or "",
        project=where.project,
        name=name if len(name) <= 128 else f"{name[:125]}...",
        sections=[ws.Section(name=title, panels=_panels(title, [title], cells), is_open=True) for title in PANELS],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=max(10, len(cells.groupby(["workload", "scheme"])))),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Tags().isin([publisher.tag(one) for one in studies])),
            groupby=[ws.Config("workload"), ws.Config("scheme")],
            order=[ws.Ordering(ws.Metric("Name"))],  # which begins with workload, scheme, horizon
            pinned_columns=[
                "run:displayName",
                *(f"config:{key}" for key in ("workload", "scheme", "horizon_fraction", "seed")),
                *(f"summary:{key}" for key in shown),
            ],
        ),
    )
    made._internal_runset_id = _id("runs", name)
    made._internal_name = f"nw-{_id('workspace', name)}-v"
    return made


def as_json(made: ws.Workspace) -> bytes:
    """The view as W&B stores it."""
    view = made._to_model().model_dump(by_alias=True, exclude_none=True, mode="json")
    return (json.dumps(view, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _panels(page: str, sections: Iterable[str], cells: pd.DataFrame) -> list[Any]:
    drawn = []
    for section in sections:
        drawn += [_panel(*panel) for panel in PANELS[section]]
        if section == "Metric against step":
            metrics = (name for name in sorted(set(cells["metric_name"])) if name != "loss")
            drawn += [_panel(f"validation {name}", LINE, f"validation/{name}") for name in metrics]
        if section == "Grid":
            drawn.append(_grid(cells))
    for panel in drawn:
        panel._id = _id(page, panel.title)
    return drawn


def _panel(title: str, kind: str, key: str) -> Any:
    if kind == LINE:
        return wr.LinePlot(title=title, x="step", y=[key])
    if kind == SCATTER:
        return wr.ScatterPlot(title=title, x=wr.Config("horizon_fraction"), y=wr.SummaryMetric(key), log_x=True)
    return wr.BarPlot(title=title, metrics=[key], groupby=wr.Config("scheme"), groupby_aggfunc=kind)


def _grid(cells: pd.DataFrame) -> Any:
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            wr.Config(axis), log=True if axis in LOGARITHMIC and not (cells[axis] <= 0).any() else None
        )
        for axis in GRID
        if cells[axis].nunique() > 1
    ]
    ends = [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key)) for key in (publisher.STEPS, publisher.BEST)]
    return wr.ParallelCoordinatesPlot(title="every axis that varies", columns=[*columns, *ends])


def _id(*names: str) -> str:
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:12]


# --- the report ------------------------------------------------------------------------------------------------


def make_report(run: Path, where: TrackingBlock) -> wr.Report:
    """Each study's question, its computed answer, its result table, and a panel grid a workload."""
    blocks: list[Any] = [wr.TableOfContents()]
    made = report.of_run(run)
    for one in made:
        study = one.core.study
        blocks += [wr.H1(one.name), wr.P(str(study.plan.get("question") or "")), wr.P(" ".join(one.answer))]
        table = one.summary(most=TABLE_ROWS)
        blocks.append(wr.MarkdownBlock("\n".join(table_format.markdown(table.columns, table.rows))))
        for workload, cells in study.cells.groupby("workload", sort=True):
            blocks += [wr.H2(str(workload)), _panel_grid(one.name, cells, where)]
    title = ", ".join(one.name for one in made)
    return wr.Report(project=where.project, entity=where.entity or "", title=title[:128], blocks=blocks)


def _panel_grid(name: str, cells: pd.DataFrame, where: TrackingBlock) -> wr.PanelGrid:
    workload = str(cells["workload"].iloc[0]).partition(" (")[0]  # without the preset that `study` adds
    runs = wr.Runset(
        entity=where.entity or "",
        project=where.project,
        name=workload,
        filters=ws.And(ws.Tags().isin([publisher.tag(name)]), ws.Config("workload") == workload),
        groupby=["config.scheme"],
    )
    runs._id = _id("runs", name, workload)
    panels = _panels(f"{name} {workload}", list(PANELS)[:4], cells)
    for i, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8)
    return wr.PanelGrid(runsets=[runs], panels=panels)


# --- pushing ---------------------------------------------------------------------------------------------------


def push(run: Path) -> tuple[str, str]:
    """Save workspace and report on W&B, those of an earlier push anew. Returns their links. Raises: PushFailed."""
    if not os.environ.get("WANDB_API_KEY"):
        raise PushFailed("--push needs WANDB_API_KEY in the environment; without --push nothing is sent")
    told = tracking.block(run)
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    _knock(url)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # wandb's own words; ours name both links
            entity, is_there = publisher.home(told.entity, told.project)
            where = told.model_copy(update={"entity": entity})
            if not is_there:
                remedy = f"publish the runs first: `wandb sync {run}/wandb/offline-run-*`"
                raise PushFailed(f"{url} has no project {where.project!r} of {where.entity!r}; {remedy}")
            return _save(run, where)
    except PushFailed:
        raise
    except Exception as error:  # wandb's, its transport's, or an answer that nobody expected
        said = redacted(str(error)).strip().splitlines() or [type(error).__name__]
        raise PushFailed(f"{url} did not take the dashboard ({said[0][:300]})") from None


def _save(run: Path, where: TrackingBlock) -> tuple[str, str]:
    pushed = run / "wandb" / "dashboard.json"  # where a later push finds both again
    try:
        known = read_json(pushed)
    except (FileNotFoundError, BadRun):  # never pushed, or it is not known: both are saved as new ones
        known = {}
    if (known.get("entity"), known.get("project")) != (where.entity, where.project):
        known = {}
    space, text = workspace(run, where), make_report(run, where)
    space._internal_id = known.get("workspace", "")
    space.save()
    known = {"entity": where.entity, "project": where.project, **known, "workspace": space._internal_id}
    write_atomic(pushed, json.dumps(known).encode())
    text.id = known.get("report", "")
    text.save()
    write_atomic(pushed, json.dumps({**known, "report": text.id}).encode())
    return str(space.url), str(text.url)


def _knock(url: str) -> None:
    """Fail within seconds where no one answers; wandb would try for minutes."""
    try:
        urllib.request.urlopen(url, timeout=PATIENCE_SECONDS).close()
    except urllib.error.HTTPError as answer:  # an answer all the same
        answer.close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PushFailed(f"W&B is out of reach at {url} ({reason}); push again later") from None
