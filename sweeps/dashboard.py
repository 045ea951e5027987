"""W&B as code: the workspace and the report of a run folder, made from its plan and its cells.

A workspace is written as JSON with stable bytes: ids derive from names, and no clock or chance enters. A report asks
the server while it is made, so it exists online only. Every key a panel shows is one that `sweeps.tracking` logs.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from pydantic import ValidationError

from analysis import report, study, tables
from analysis.findings import answers
from analysis.records import load_cells, load_plan
from analysis.run_files import BadRun, broken, read_bytes, read_json
from sweeps import tracking
from sweeps.blocks import TrackingBlock
from sweeps.durable import write_atomic
from sweeps.yaml_file import BadYaml, parse_value

PATIENCE_SECONDS = 15.0
TABLE_ROWS = 40  # of a study's result table in the report
GRID = [  # axes of a cell, as they are read from left to right; those that vary are drawn
    *("workload", "seed", "optimizer", "lr", "weight_decay", "schedule", "length_fraction", "lr_decay"),
    *("scheme", "buffers", "every_steps", "k", "ema_decay", "horizon_fraction"),
]
LOGARITHMIC = {"lr", "weight_decay", "horizon_fraction"}
MINUTES = {"train": "training", "average": "averaging", "eval": "evaluation"}


class PushFailed(RuntimeError):
    """W&B did not take the workspace or the report; the message is one line and holds no key."""


@dataclass(frozen=True)
class Place:
    """Where the folder's runs are on W&B; no entity means that of the key's owner."""

    entity: str | None
    project: str


def place(run: Path) -> Place:
    """What the folder's spec says of it. Raises: analysis.records.BadRun."""
    path = run / "spec.yaml"
    try:
        told = TrackingBlock(**(parse_value(read_bytes(path).decode()).get("tracking") or {}))
    except (
        FileNotFoundError,
        UnicodeDecodeError,
        BadYaml,
        ValidationError,
        AttributeError,
        TypeError,
    ) as error:
        raise broken(path, f"does not say where its runs are ({str(error).splitlines()[0]})") from None
    return Place(told.entity, told.project)


def workspace(run: Path, where: Place | None = None) -> ws.Workspace:
    """The folder's runs of all its studies, grouped by workload and scheme. Raises: analysis.records.BadRun."""
    cells, plan, where = load_cells(run), load_plan(run), where or place(run)
    studies = [entry["study"] for entry in plan["studies"]]
    name = ", ".join(studies)
    made = ws.Workspace(
        entity=where.entity or "",
        project=where.project,
        name=name if len(name) <= 128 else f"{name[:125]}...",
        sections=[
            ws.Section(name=title, panels=_with_ids(title, panels), is_open=True)
            for title, panels in _sections(cells).items()
        ],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=max(10, _num_groups(cells))),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(ws.Tags().isin([tracking.tag(one) for one in studies])),
            groupby=[ws.Config("workload"), ws.Config("scheme")],
            order=[ws.Ordering(ws.Metric("Name"))],  # which begins with workload, scheme, horizon
            pinned_columns=[
                "run:displayName",
                *(f"config:{key}" for key in ("workload", "scheme", "horizon_fraction", "seed")),
                *(f"summary:{key}" for key in (tracking.BEST, tracking.STEPS, tracking.MET)),
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


def _num_groups(cells: pd.DataFrame) -> int:
    return len(cells[["workload", "scheme"]].drop_duplicates())


def _sections(cells: pd.DataFrame) -> dict[str, list[Any]]:
    return {
        "Metric against step": _curves(cells),
        "Steps to target": [_steps_by_horizon(), *_steps_by_scheme()],
        "Averaging horizon": [_best_by_horizon()],
        "Grid": [_grid(cells)],
        "Seconds": [
            *(wr.LinePlot(title=_seconds(name), x="step", y=[f"seconds/{name}"]) for name in MINUTES),
            *(_by_scheme(_seconds(name), f"seconds/{name}", "mean") for name in MINUTES),
        ],
    }


def _curves(cells: pd.DataFrame) -> list[Any]:
    metrics = dict.fromkeys(["loss", *sorted(set(cells["metric_name"]))])
    return [wr.LinePlot(title=f"validation {name}", x="step", y=[f"validation/{name}"]) for name in metrics]


def _steps_by_horizon() -> Any:
    title = "steps to target against averaging horizon (a miss counts the step budget)"
    x, y = wr.Config("horizon_fraction"), wr.SummaryMetric(tracking.STEPS)
    return wr.ScatterPlot(title=title, x=x, y=y, log_x=True)


def _steps_by_scheme() -> list[Any]:
    return [
        _by_scheme("median steps to target", tracking.STEPS, "median"),
        _by_scheme("share of runs that met the target", tracking.MET, "mean"),
    ]


def _best_by_horizon() -> Any:
    title = "best target metric against averaging horizon"
    x, y = wr.Config("horizon_fraction"), wr.SummaryMetric(tracking.BEST)
    return wr.ScatterPlot(title=title, x=x, y=y, log_x=True)


def _grid(cells: pd.DataFrame) -> Any:
    columns = [
        wr.ParallelCoordinatesPlotColumn(
            wr.Config(axis), log=True if axis in LOGARITHMIC and not (cells[axis] <= 0).any() else None
        )
        for axis in GRID
        if cells[axis].nunique() > 1
    ]
    ends = [wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(key)) for key in (tracking.STEPS, tracking.BEST)]
    return wr.ParallelCoordinatesPlot(title="every axis that varies", columns=[*columns, *ends])


def _seconds(name: str) -> str:
    return f"seconds of {MINUTES[name]}"


def _by_scheme(title: str, key: str, how: str) -> Any:
    return wr.BarPlot(title=f"{title}, by scheme", metrics=[key], groupby=wr.Config("scheme"), groupby_aggfunc=how)


def _with_ids(section: str, panels: Sequence[Any]) -> list[Any]:
    for panel in panels:
        panel._id = _id(section, panel.title)
    return list(panels)


def _id(*names: str) -> str:
    return hashlib.sha256("\0".join(names).encode()).hexdigest()[:12]


# --- the report ------------------------------------------------------------------------------------------------


def make_report(run: Path, where: Place) -> wr.Report:
    """Each study's question, its computed answer, its result table, and a panel grid a workload."""
    blocks: list[Any] = [wr.TableOfContents()]
    results = report.summary_tables(run, most=TABLE_ROWS)
    read = study.read_each(run)
    for one in read:
        name = str(one.plan["study"])
        blocks += [wr.H1(name), wr.P(str(one.plan.get("question") or "")), wr.P(_answer(one))]
        blocks.append(wr.MarkdownBlock(_markdown(results[name])))
        for workload, cells in one.cells.groupby("workload", sort=True):
            blocks += [wr.H2(str(workload)), _panel_grid(name, cells, where)]
    title = ", ".join(str(one.plan["study"]) for one in read)
    return wr.Report(project=where.project, entity=where.entity or "", title=title[:128], blocks=blocks)


def _answer(one: study.Study) -> str:
    if not len(one.records):
        return "No records yet."
    return answers.answer(one, tables.compute(one))


def _panel_grid(name: str, cells: pd.DataFrame, where: Place) -> wr.PanelGrid:
    workload = load_name(cells)
    runs = wr.Runset(
        entity=where.entity or "",
        project=where.project,
        name=workload,
        filters=ws.And(ws.Tags().isin([tracking.tag(name)]), ws.Config("workload") == workload),
        groupby=["config.scheme"],
    )
    runs._id = _id("runs", name, workload)
    panels = _with_ids(
        f"{name} {workload}",
        [*_curves(cells), _steps_by_horizon(), *_steps_by_scheme(), _best_by_horizon(), _grid(cells)],
    )
    for i, panel in enumerate(panels):
        panel.layout = wr.Layout(x=12 * (i % 2), y=8 * (i // 2), w=12, h=8)
    return wr.PanelGrid(runsets=[runs], panels=panels)


def load_name(cells: pd.DataFrame) -> str:
    """The workload as W&B's config has it: `analysis.study` adds the preset where a study has several."""
    return str(cells["workload"].iloc[0]).partition(" (")[0]


def _markdown(frame: pd.DataFrame) -> str:
    def line(values: Iterable[object]) -> str:
        return "| " + " | ".join(_cell(value).replace("|", "\\|") for value in values) + " |"

    rows = (line(row) for row in frame.itertuples(index=False))
    return "\n".join([line(frame.columns), line(["---"] * len(frame.columns)), *rows])


def _cell(value: object) -> str:
    if value is None or value != value:
        return "—"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- pushing ---------------------------------------------------------------------------------------------------


def push(run: Path) -> tuple[str, str]:
    """Save workspace and report on W&B, those of an earlier push anew. Returns their links. Raises: PushFailed."""
    if not os.environ.get("WANDB_API_KEY"):
        raise PushFailed("--push needs WANDB_API_KEY in the environment; without --push nothing is sent")
    told = place(run)
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    _knock(url)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # wandb's own words; ours name both links
            where = Place(told.entity or tracking.default_entity(), told.project)
            if not tracking.has_project(where.entity, where.project):
                remedy = f"publish the runs first: `wandb sync {run}/wandb/offline-run-*`"
                raise PushFailed(f"{url} has no project {where.project!r} of {where.entity!r}; {remedy}")
            return _save(run, where)
    except PushFailed:
        raise
    except Exception as error:  # wandb's, its transport's, or an answer that nobody expected
        said = tracking.redacted(error).strip().splitlines() or [type(error).__name__]
        raise PushFailed(f"{url} did not take the dashboard ({said[0][:300]})") from None


def _save(run: Path, where: Place) -> tuple[str, str]:
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
