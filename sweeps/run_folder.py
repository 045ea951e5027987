"""The run folder on disk: what is in it, what is done, what a changed spec may add."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from analysis.records import CELLS, TRIALS, read_live, read_table, rows_to_table
from sweeps import plan
from sweeps.blocks import SpecError
from sweeps.cells import Cell, cell_to_row
from sweeps.recorder import write_atomic
from sweeps.spec import Spec
from sweeps.targets import Target
from sweeps.yaml_file import dump_yaml

PACKAGES = ("wa-sweeps", "torch", "ray", "wandb", "numpy", "pandas", "pyarrow")


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Hold the run folder; a second driver on it is bad input. Raises: SpecError."""
    run.mkdir(parents=True, exist_ok=True)
    with open(run / ".lock", "w", encoding="utf-8") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpecError(
                "--out", "another `wa run` is at work in this folder; wait for it or end it", str(run)
            ) from None
        yield


def trajectory_folder(run: Path, name: str) -> Path:
    return run / "trajectories" / name


def started(run: Path) -> list[plan.Trajectory]:
    """Trajectories with a folder, done or not."""
    found = sorted((run / "trajectories").glob("*/trajectory.json"))
    return [plan.from_dict(json.loads(path.read_text(encoding="utf-8"))) for path in found]


def is_done(run: Path, trajectory: plan.Trajectory) -> bool:
    return (trajectory_folder(run, trajectory.name) / "done").exists()


def check_compatible(run: Path, cells: Sequence[Cell], spec: Spec) -> None:
    """A cell that is in the folder already must mean the same measurements.

    Raises: SpecError naming the key that differs and what the folder holds.
    """
    path = run / "cells.parquet"
    if not path.exists():
        if run.exists() and any(entry.name != ".lock" for entry in run.iterdir()):
            raise SpecError(
                "--out", "not empty and not a run folder; allowed: an empty or new folder", str(run)
            )
        return
    there = {row["cell_id"]: row for row in read_table(path, CELLS).to_pylist()}
    devices, device = plan.num_devices(spec)
    for study in {row["study"] for row in there.values()} - {spec.study}:
        _conflict(run, spec, "study", study, spec.study)
    for cell in cells:
        row = there.get(cell.cell_id)
        if row is None:
            continue
        if row["evaluate_every_steps"] != cell.evaluate_every_steps:
            held, asked = row["evaluate_every_steps"], cell.evaluate_every_steps
            _conflict(run, spec, "evaluate.every", f"{held} steps", f"{asked} steps")
        if (row["num_devices"], row["device"]) != (devices, device):
            held = f"{row['num_devices']:g} {row['device']}"
            _conflict(run, spec, "resources", held, f"{devices:g} {device}")
        if row["processes"] != (processes := spec.resources.num_processes):
            _conflict(run, spec, "resources.processes", str(row["processes"]), str(processes))


def _conflict(run: Path, spec: Spec, key: str, there: str, asked: str) -> None:
    remedy = "allowed: the same value, or another --out folder"
    raise SpecError(
        key, f"{run} holds these cells with {there}, the spec says {asked}; {remedy}", spec.source
    )


def write_plan(
    run: Path,
    spec: Spec,
    cells: Sequence[Cell],
    trajectories: Sequence[plan.Trajectory],
    targets: Mapping[str, Target | None],
) -> None:
    """spec.yaml, cells.parquet, plan.json and a folder with trajectory.json for each trajectory."""
    devices, device = plan.num_devices(spec)
    processes = spec.resources.num_processes
    here = {cell.cell_id for cell in cells}
    known = started(run)
    earlier = [cell for one in known if is_done(run, one) for cell in one.cells if cell.cell_id not in here]
    rows = [
        cell_to_row(cell, spec.study, _value(targets.get(cell.training.workload)), devices, device, processes)
        for cell in [*cells, *{cell.cell_id: cell for cell in earlier}.values()]
    ]
    for trajectory in trajectories:
        folder = trajectory_folder(run, trajectory.name)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "trajectory.json", json.dumps(plan.to_dict(trajectory)).encode())
    _write_table(run / "cells.parquet", pa.Table.from_pylist(rows, schema=CELLS))
    write_atomic(run / "spec.yaml", dump_yaml(dict(spec.raw)).encode())
    every = {one.name: one for one in [*known, *trajectories]}
    document = {
        "study": spec.study,
        "question": spec.question,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "fuse": spec.fuse,
        "seeds": list(spec.seeds),
        "cells": [row["cell_id"] for row in rows],
        "targets": {
            name: None if target is None else target.model_dump() for name, target in targets.items()
        },
        "trajectories": [
            {
                "name": one.name,
                "trajectory_id": one.trajectory_id,
                "cells": [cell.cell_id for cell in one.cells],
                "expected_seconds": plan.cost(one).seconds,
            }
            for one in every.values()
        ],
        "versions": {name: version(name) for name in PACKAGES},
    }
    write_atomic(run / "plan.json", json.dumps(document, indent=1).encode())


def _value(target: Target | None) -> float | None:
    return None if target is None else target.value


def compact(run: Path, name: str) -> None:
    """Move a finished trajectory's live records into ``records/``; safe to repeat after a kill at any point."""
    folder = trajectory_folder(run, name)
    live = folder / "records.jsonl"
    if live.exists():
        records = run / "records"
        records.mkdir(exist_ok=True)
        _write_table(records / f"{name}.parquet", rows_to_table(read_live(live)))
        live.unlink()
    (folder / "checkpoint").unlink(missing_ok=True)


def write_trials(run: Path) -> None:
    """trials.parquet from the attempts' own files; an attempt that did not say how it ended was interrupted."""
    rows = []
    for path in sorted((run / "trajectories").glob("*/attempt-*.json")):
        row = json.loads(path.read_text(encoding="utf-8"))
        status = "interrupted" if row["status"] == "running" else row["status"]
        rows.append({**row, "status": status})
    _write_table(run / "trials.parquet", pa.Table.from_pylist(rows, schema=TRIALS))


def _write_table(path: Path, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer)
    write_atomic(path, buffer.getvalue().to_pybytes())
