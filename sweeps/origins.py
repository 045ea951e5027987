"""The code and data that a folder's records are of: written with its plan, compared before it is continued."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from analysis.run_folder.run_files import load_plan_if_any
from sweeps.blocks import SpecError
from sweeps.identity import scheme_name
from sweeps.plan import Trajectory
from sweeps.spec import Spec
from workloads.sources import Files, data_folders, source_files

Sources = Mapping[str, Mapping[str, Files]]  # workload -> "files" and "data": name -> hash
KINDS = {"files": "", "data": "data folder "}


class ChangedCode(ValueError):
    """The code here is not what the trajectory was planned with."""


def of_studies(specs: Iterable[Spec]) -> dict[str, dict[str, Files]]:
    """What the studies' workloads are made of and read. Raises: UnknownWorkload; BadData."""
    found: dict[str, dict[str, Files]] = {}
    for spec in specs:
        for name in spec.workloads:
            one = found.setdefault(name, {"files": dict(source_files(name)), "data": {}})
            for preset in spec.presets:
                one["data"] |= data_folders(name, preset)
            for scheme in spec.own_schemes(name):
                found[scheme] = {"files": dict(source_files(scheme)), "data": {}}
    return found


def names(trajectory: Trajectory) -> list[str]:
    """Its workload, and the schemes of its cells that are a user's: whose code it runs."""
    schemes = {scheme_name(type(cell.scheme)) for cell in trajectory.cells if cell.scheme is not None}
    return [trajectory.cells[0].training.workload, *sorted(name for name in schemes if ":" in name)]


def digest(trajectory: Trajectory, files: Mapping[str, Files] | None = None) -> str:
    """One hash of the source files that it runs: of `files`, by name, else as this process has them."""
    found: Files = {}
    for name in names(trajectory):
        found |= source_files(name) if files is None else files[name]
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()


def check_here(trajectory: Trajectory, planned: str | None) -> None:
    """Raises: ChangedCode, where a trial's process has other code than the plan."""
    if planned is not None and digest(trajectory) != planned:
        name = " and ".join(names(trajectory))
        raise ChangedCode(
            f"{name}: its source here is not what the study was planned with; give every node the same files, "
            "and leave them as they are while the study runs"
        )


def refuse_changed(run: Path, specs: Sequence[Spec], now: Sources, started: Iterable[Trajectory]) -> None:
    """Records of two codes under one name would be compared as one. Raises: SpecError, naming what changed."""
    before: Sources = (load_plan_if_any(run) or {}).get("sources", {})
    begun = {name for one in started for name in names(one)}
    for spec in specs:
        where = {name: f"workloads[{i}]" for i, name in enumerate(spec.workloads)}
        where |= {scheme: "averaging" for name in spec.workloads for scheme in spec.own_schemes(name)}
        for name, key in where.items():
            told = changes(before.get(name, {}), now[name]) if name in begun else []
            if told:
                raise SpecError(
                    key,
                    f"{name}: {', '.join(told)} since {run} was begun; put it back as it was, use another --out "
                    "folder, or add --accept-changed-code to go on with what is there",
                    spec.source,
                )


def changes(before: Mapping[str, Files], now: Mapping[str, Files]) -> list[str]:
    """In words, what differs; what was not recorded does not."""
    told = []
    for kind, word in KINDS.items():
        old, new = before.get(kind, {}), now.get(kind, {})
        for name in sorted({*old, *new}) if old and new else ():
            if old.get(name) != new.get(name):
                change = "has changed" if name in old else "is new"
                told.append(f"{word}{name} {change if name in new else 'is no longer used'}")
    return told


def to_record(run: Path, now: Sources) -> dict[str, Any]:
    """What plan.json says of code and data: of the latest run, and when which changes were accepted."""
    before = load_plan_if_any(run) or {}
    sources, accepted = before.get("sources", {}), list(before.get("accepted_changes", []))
    when = datetime.now(UTC).isoformat(timespec="seconds")
    for name, one in now.items():
        if told := changes(sources.get(name, {}), one):
            accepted.append({"workload": name, "changes": told, "when": when})
    return {"sources": {**sources, **now}, "accepted_changes": accepted}
