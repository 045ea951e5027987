"""The run folder on disk: what is in it, what is done, what a changed spec may add."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from analysis.run_folder.live_records import DONE, Finished, LiveRows, again, finished
from analysis.run_folder.records import CELLS, TRIALS, read_table, rows_to_table
from analysis.run_folder.run_files import broken, load_plan_if_any, read_bytes, read_json
from analysis.run_folder.schema import FORMAT
from sweeps import durable, origins, plan, trace
from sweeps.attempts import attempts_of
from sweeps.blocks import SpecError, fullest
from sweeps.cell_row import cell_to_row
from sweeps.durable import write_atomic
from sweeps.identity import Cell
from sweeps.scribe import CHECKPOINT
from sweeps.spec import Spec
from sweeps.storage import Place
from sweeps.studies import Resolved
from sweeps.trace import OWN, TRACES
from sweeps.yaml_file import dump_yaml

IMPORTED_STUDY = "study.yaml"  # beside the imported traces that it asks
PACKAGES = ("wa-sweeps", "torch", "ray", "wandb", "numpy", "pandas", "pyarrow")


def trajectory_folder(run: Path, name: str) -> Path:
    return run / "trajectories" / name


def started(run: Path) -> list[plan.Trajectory]:
    """Trajectories that were begun, done or not; what was only planned may still be planned anew. Raises: BadRun."""
    found = []
    for folder in sorted({path.parent for path in (run / "trajectories").glob("[!.]*/attempt-*.json")}):
        try:
            found.append(read_trajectory(folder / "trajectory.json"))
        except FileNotFoundError:
            raise broken(folder / "trajectory.json", "missing, though it was begun", again(folder)) from None
    return found


def read_trajectory(path: Path) -> plan.Trajectory:
    """A trajectory as `write_plan` wrote it; its name is that of its folder, so that it leads nowhere else.

    Raises: FileNotFoundError, analysis.run_folder.records.BadRun.
    """
    remedy = again(path.parent)
    told = read_json(path, remedy)
    try:
        one = plan.from_dict(told)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise broken(path, f"not a trajectory ({type(error).__name__}: {error})", remedy) from None
    if one.name != path.parent.name or not one.cells:
        raise broken(path, f"tells of {one.name!r} with {len(one.cells)} cells, not of its folder", remedy)
    return one


def may_become_a_run(run: Path) -> bool:
    """Whether a run may be planned there: nothing is, or what one leaves that was killed while it wrote its plan."""
    if not run.exists():
        return True
    return run.is_dir() and all(
        entry.name in {durable.LOCK, "trajectories", TRACES, IMPORTED_STUDY}
        or (entry.name.startswith(".") and entry.suffix == ".new")
        for entry in run.iterdir()
    )


def _only_planned(run: Path) -> set[str]:
    """Cells of trajectories that were never begun: nothing has been measured that a new plan could contradict."""
    waiting, begun = set[str](), set[str]()
    for entry in (load_plan_if_any(run) or {"trajectories": []})["trajectories"]:
        folder = trajectory_folder(run, entry["name"])
        is_begun = (folder / "done").exists() or any(folder.glob("attempt-*.json"))
        is_waiting = (folder / "trajectory.json").exists() and not is_begun
        (waiting if is_waiting else begun).update(entry["cells"])
    return waiting - begun


def is_done(run: Path, trajectory: plan.Trajectory) -> bool:
    """Whether its marker says so, whose promise `check_records` checks. Raises: BadRun."""
    return finished(trajectory_folder(run, trajectory.name)) is not None


def check_compatible(run: Path, cells: Sequence[Cell], spec: Spec) -> None:
    """A cell that is in the folder already must mean the same measurements, or, once it is done, more of them.

    What has a trace may be asked on other devices.

    Raises: SpecError naming the key that differs and what the folder holds.
    """
    if run.is_symlink() and not run.exists():
        raise SpecError("--out", "a link that leads nowhere; allowed: a folder, or a new one", str(run))
    if run.exists() and not run.is_dir():
        raise SpecError("--out", "not a folder; allowed: a run folder, or a new one", str(run))
    load_plan_if_any(run)  # which may be of another format
    there = _rows(run)
    if not there:
        if not may_become_a_run(run):
            raise SpecError("--out", "not empty and not a run folder; allowed: an empty or new folder", str(run))
        return
    planned, begun = _only_planned(run), started(run)
    grids, going_on, traced, with_trace = recorded(begun), set[str](), set[str](), trace.traced(run)
    for one in begun:
        ridden = {cell.cell_id for cell in one.cells}
        going_on |= ridden if not (is_over := is_done(run, one)) else set()
        traced |= ridden if (is_over or one.replays) and (one.replays or one.name) in with_trace else set()
    for cell in cells:
        if cell.cell_id not in there or cell.cell_id in planned:
            continue
        row, asked = there[cell.cell_id], plan.Grid.of(cell)
        held = grids.get(cell.cell_id) or plan.Grid(row["evaluate_every_steps"], bool(row["evaluate_test"]))
        how = row["evaluate_averages"] or "all"
        _refuse(run, "evaluate.averages", how, fullest(how, cell.averages), spec)
        if cell.cell_id in going_on or how != "all" or not asked.covers(held):
            refuse_other_grid(run, held, asked, spec)
        if cell.cell_id in traced:  # weights are data, whatever devices they were made on
            continue
        trial = spec.trial(cell.training.workload)
        devices, device = trial.devices
        _refuse(run, "resources", f"{row['num_devices']:g} {row['device']}", f"{devices:g} {device}", spec)
        _refuse(run, "resources.processes", str(row["processes"]), str(trial.num_processes), spec)


def recorded(trajectories: Iterable[plan.Trajectory]) -> dict[str, plan.Grid]:
    """cell -> where these evaluate it, all together."""
    found: dict[str, plan.Grid] = {}
    for cell in (cell for one in trajectories for cell in one.cells):
        grid = plan.Grid.of(cell)
        found[cell.cell_id] = grid | found.get(cell.cell_id, grid)
    return found


def refuse_other_grid(run: Path, held: plan.Grid, asked: plan.Grid, spec: Spec, why: str = "") -> None:
    """Where cells of the folder would have to be evaluated elsewhere, and cannot: why. Raises: SpecError."""
    _refuse(run, "evaluate.every", f"{held.every} steps", f"{asked.every} steps", spec, why)
    _refuse(run, "evaluate.test", str(held.test).lower(), str(asked.test).lower(), spec, why)


def _refuse(run: Path, key: str, held: str, asked: str, spec: Spec, why: str = "") -> None:
    if held != asked:
        said = f"{run} holds these cells with {held}, the spec says {asked}{why}"
        raise SpecError(key, f"{said}; allowed: the same value, or another --out folder", spec.source)


def write_plan(
    run: Path,
    studies: Sequence[Resolved],
    trajectories: Sequence[plan.Trajectory],
    sources: origins.Sources = MappingProxyType({}),
    storage: Place | None = None,
) -> None:
    """Specs, cells.parquet, plan.json and a folder with trajectory.json for each trajectory.

    What the folder holds of other studies stays. storage: of checkpoints and traces, where that is not the folder
    itself. Its first study is the one that spec.yaml and the head of plan.json tell of; with several,
    specs/<study>.yaml has each.
    """
    there, old = _rows(run), load_plan_if_any(run) or {}
    begun = started(run)
    staying = {
        cell.cell_id for one in (*(one for one in begun if is_done(run, one)), *trajectories) for cell in one.cells
    }
    before = old.get("studies", [])
    provenance = _provenance(before, studies)
    rows = _merged(there, studies, staying, provenance)
    _tell_of_replays(rows, there, begun, trajectories)
    how = {cell.cell_id: cell.averages for one in (*trajectories, *begun) for cell in one.cells}
    rows = [{**row, "evaluate_averages": how.get(row["cell_id"], row["evaluate_averages"])} for row in rows]
    entries, targets = _entries(before, rows, studies, provenance), dict[str, Any]()
    for entry in entries:  # of each workload the first that is known
        targets |= {name: target for name, target in entry["targets"].items() if targets.get(name) is None}
    for trajectory in trajectories:
        folder = trajectory_folder(run, trajectory.name)
        durable.make_folder(folder)
        files = {name: one["files"] for name, one in sources.items()}
        known = all(name in files for name in origins.names(trajectory))
        code = {"code": origins.digest(trajectory, files)} if known else {}
        write_atomic(folder / "trajectory.json", json.dumps(plan.to_dict(trajectory) | code).encode())
    durable.write_table(run / "cells.parquet", pa.Table.from_pylist(rows, schema=CELLS))
    _write_specs(run, studies, [entry["study"] for entry in entries])
    document = {
        "format": FORMAT,
        "id": old.get("id") or uuid.uuid4().hex,  # whose runs on W&B are whose, for as long as the folder lives
        **{key: entries[0][key] for key in ("study", "question", "fuse", "seeds")},
        "storage": old.get("storage") if storage is None else storage.uri,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "cells": [row["cell_id"] for row in rows],
        "targets": targets,
        "studies": entries,
        "trajectories": [
            {
                "name": one.name,
                "trajectory_id": one.trajectory_id,
                "cells": [cell.cell_id for cell in one.cells],
                "expected_seconds": plan.cost(one).seconds,
                "replays": one.replays,
                "rounded": one.rounded,
                **({} if one.branch is None else {"branch_of": one.branch.trunk}),
            }
            for one in {one.name: one for one in [*begun, *trajectories]}.values()
        ],
        "versions": {name: version(name) for name in PACKAGES},
        **origins.to_record(run, sources),
    }
    # Last: a study is in the folder once plan.json says so.
    write_atomic(run / "plan.json", json.dumps(document, indent=1).encode())


def _tell_of_replays(
    rows: Sequence[Row], there: Mapping[str, Row], begun: Sequence[plan.Trajectory], todo: Sequence[plan.Trajectory]
) -> None:
    """Into cells' rows: what their weights were rounded to, and the devices that the seconds of training are of."""
    by_cell = {row["cell_id"]: row for row in rows}
    trained = {one.name: there[one.cells[0].cell_id] for one in begun if one.cells[0].cell_id in there}
    for one in [*begun, *todo]:
        source = trained.get(one.replays or one.name, {})
        for row in (by_cell[cell.cell_id] for cell in one.cells if cell.cell_id in by_cell):
            row |= {key: source[key] for key in ("num_devices", "device", "processes") if key in source}
            row["trace_dtype"] = one.rounded or row["trace_dtype"]


Row = dict[str, Any]
Provenance = dict[tuple[str, str], Row | None]  # (workload, preset) -> target and where it is from


def _rows(run: Path) -> dict[str, Row]:
    try:
        table = read_table(run / "cells.parquet", CELLS)
    except FileNotFoundError:
        return {}
    return {row["cell_id"]: row for row in table.to_pylist()}


def _provenance(before: Sequence[Row], studies: Sequence[Resolved]) -> Provenance:
    """The targets of a folder: one a (workload, preset), whichever study it came with, the newest."""
    found: Provenance = {}
    for entry in before:
        for workload, target in entry["targets"].items():
            if target is not None:
                found[workload, target["preset"]] = target
    for one in studies:
        if len(one.spec.presets) == 1:  # several presets of a workload in one study have no target
            for workload, held in one.targets.items():
                found[workload, one.spec.presets[0]] = None if held is None else held.model_dump()
    return found


def _merged(
    there: Mapping[str, Row], studies: Sequence[Resolved], staying: Set[str], provenance: Provenance
) -> list[Row]:
    """The cells that are asked for now, then what stays of earlier ones, each with every study that has it."""
    rows: dict[str, Row] = {}
    asking: dict[str, list[str]] = {}
    for one in studies:
        for cell in one.cells:
            asking.setdefault(cell.cell_id, []).append(one.spec.study)
            if cell.cell_id not in rows:
                trial = one.spec.trial(cell.training.workload)
                rows[cell.cell_id] = cell_to_row(cell, one.spec.study, None, *trial.devices, trial.num_processes)
    now = {one.spec.study for one in studies}
    for cell_id, row in {**there, **rows}.items():
        earlier = there[cell_id]["studies"] if cell_id in there else []
        asked = asking.get(cell_id, [])
        # Done, a cell stays in a study that no longer asks for it; else only where it is still asked for.
        kept = [name for name in earlier if cell_id in staying or name not in now or name in asked]
        names = [*kept, *(name for name in asked if name not in kept)]
        if names:
            target = provenance.get((row["workload"], row["preset"]))
            value = None if target is None else target["value"]
            rows[cell_id] = {**row, "study": names[0], "studies": names, "target": value}
    return list(rows.values())


def _entries(
    before: Sequence[Row], rows: Sequence[Row], studies: Sequence[Resolved], provenance: Provenance
) -> list[Row]:
    """plan.json's studies, in the order in which they came."""
    entries = {entry["study"]: entry for entry in before}
    for one in studies:
        spec = one.spec
        entries[spec.study] = {
            **{key: getattr(spec, key) for key in ("study", "question", "report")},
            "primary": spec.primary.model_dump(),
            "fuse": spec.fuse,
            "seeds": list(spec.seeds),
        }
    for name, entry in entries.items():
        mine = [row for row in rows if name in row["studies"]]
        presets: dict[str, set[str]] = {}
        for row in mine:
            presets.setdefault(row["workload"], set()).add(row["preset"])
        entry["cells"] = [row["cell_id"] for row in mine]
        entry["targets"] = {
            workload: provenance.get((workload, min(of))) if len(of) == 1 else None for workload, of in presets.items()
        }
    return list(entries.values())


def _write_specs(run: Path, studies: Sequence[Resolved], names: Sequence[str]) -> None:
    first = run / "spec.yaml"
    resolved = {one.spec.study: dump_yaml(dict(one.spec.raw)).encode() for one in studies}
    if len(names) > 1:
        durable.make_folder(run / "specs")
        if names[0] not in resolved and first.exists():
            write_atomic(run / "specs" / f"{names[0]}.yaml", first.read_bytes())
        for name, text in resolved.items():
            write_atomic(run / "specs" / f"{name}.yaml", text)
    if names[0] in resolved:
        write_atomic(first, resolved[names[0]])


def compact(run: Path, name: str) -> None:
    """Move a finished trajectory's live records into ``records/``; safe to repeat after a kill at any point.

    The Parquet file is on disk, and the marker knows its checksum, before the live records go.
    Raises: analysis.run_folder.records.BadRun where the live records are not those that the marker tells of; OSError.
    """
    folder = trajectory_folder(run, name)
    live = LiveRows(folder / "records.jsonl")
    try:
        live.feed(read_bytes(live.path, again(folder)))
    except FileNotFoundError:
        pass
    else:
        done, table = finished(folder), rows_to_table(live.rows)
        if done is not None:
            done.check(table, live.path, again(folder), live.crc)
        durable.make_folder(run / "records")
        sha256 = durable.write_table(run / "records" / f"{name}.parquet", table)
        last = max((row["step"] for row in live.rows), default=0)
        write_atomic(folder / DONE, Finished(len(live.rows), last, live.crc, sha256).as_bytes())
        durable.remove(live.path)
    durable.remove(folder / CHECKPOINT)
    for file in folder.glob("checkpoint-*"):
        durable.remove(file)
    shutil.rmtree(folder / OWN, ignore_errors=True)


def write_trials(run: Path) -> None:
    """trials.parquet from the attempts' own files; an attempt that did not say how it ended was interrupted.

    Raises: analysis.run_folder.records.BadRun where an attempt's file is damaged.
    """
    rows = [
        {**row, "status": "interrupted" if row["status"] == "running" else row["status"], "name": folder.name}
        for folder in sorted((run / "trajectories").glob("[!.]*/"))
        for row in attempts_of(folder)
    ]
    durable.write_table(run / "trials.parquet", pa.Table.from_pylist(rows, schema=TRIALS))
