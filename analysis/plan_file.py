"""plan.json: what a run folder is to hold. Its names become paths, so they are checked before anything uses them."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from analysis.run_files import RESTORE, BadRun, broken, read_json
from analysis.schema import FORMAT

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,254}")  # of a trajectory, a cell or a study: never a path
_Name = Annotated[str, Field(pattern=f"^{NAME.pattern}$")]


class _Block(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Study(_Block):
    study: _Name
    question: str | None
    fuse: bool
    seeds: list[int]
    targets: dict[str, dict[str, Any] | None]


class _Trajectory(_Block):
    trajectory_id: _Name
    name: _Name
    cells: list[str]
    expected_seconds: float | None  # of imported logs: unknown


class _Records(_Block):
    rows: int
    last_step: int | None = None
    crc32: int | None = None
    sha256: str | None = None


class _Plan(_Study):
    id: _Name | None = None  # of imported logs: none
    baseline: str | None = None  # of imported logs: a submission
    studies: list[_Study]
    trajectories: list[_Trajectory]
    versions: dict[str, str]
    records: dict[_Name, _Records] = {}  # of imported logs
    sources: dict[str, Any] = {}  # of what was trained here


def load_plan(run: str | Path) -> dict[str, Any]:
    """plan.json: study, question, cells, trajectories, targets with their provenance, versions. Raises: BadRun.

    ``studies`` has study, question, report, primary, fuse, seeds, cells and targets of each study, in the order they
    came; at the head stand those of the first, but every cell and every workload's target.
    """
    path = Path(run) / "plan.json"
    try:
        plan = read_json(path)
    except FileNotFoundError:
        raise BadRun(f"{run}: no plan.json; {RESTORE}") from None
    if (version := plan.get("format")) != FORMAT:
        remedy = "use the wa-sweeps that wrote it, or another folder"
        raise broken(path, f"the folder has format {shorten(repr(version), 40)}; this reads {FORMAT}", remedy)
    try:
        _Plan.model_validate(plan)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where, said = ".".join(map(str, first["loc"])), first["msg"]
        if first["type"] == "string_pattern_mismatch":
            said = f"{first['input'][:80]!r} cannot name a folder"
        raise broken(path, f"{where}: {said}") from None
    return plan


def load_plan_if_any(run: Path) -> dict[str, Any] | None:
    """plan.json; None of a folder without one. Raises: BadRun."""
    there = (run / "plan.json").exists() or (run / "plan.json").is_symlink()
    return load_plan(run) if there else None
