"""What a plan is expected to cost, and its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sweeps import memory, plan, room
from sweeps.resources import ResourcesBlock
from sweeps.spec import Spec
from sweeps.work import Work


def expected(todo: Work) -> dict[str, dict[str, float]]:
    """workload -> expected cost of what is to train, fused and one trial per cell."""
    rows: dict[str, dict[str, float]] = {}
    for one in todo.trajectories:
        workload = one.cells[0].training.workload
        names = ("cells", "trajectories", "steps", "steps_saved", "device_hours", "unfused_device_hours")
        row = rows.setdefault(workload, dict.fromkeys((*names, "memory", "trace_bytes"), 0))
        cost = plan.cost(one, todo.paces)  # on one device
        by_itself = plan.cost(replace(one, branch=None, forks=(), riders=()), todo.paces)
        alone = (len(one.cells) - 1) * by_itself.train_seconds + by_itself.seconds
        held = todo.resources[one.name]
        devices = held.devices[0] / held.num_processes
        row["cells"] += len(one.cells)
        row["trajectories"] += 1
        row["steps"] += one.num_steps
        row["steps_saved"] += one.first_step
        row["device_hours"] += cost.seconds * devices / 3600
        row["unfused_device_hours"] += alone * devices / 3600
        row["trace_bytes"] += room.trace_bytes(one, held.num_processes)
        row["memory"] = max(row["memory"], sum(memory.parts(one, held.num_processes).values()))
    return rows


def as_json(specs: Sequence[Spec], todo: Work) -> dict[str, Any]:
    """What `wa plan --json` prints; hours are device-hours, memory is bytes a process of a trial."""
    return {
        "studies": [spec.study for spec in specs],
        "cells": len(todo.cells),
        "trajectories_done": todo.num_done,
        "nothing_to_do": list(todo.done),
        "workloads": expected(todo),
        "targets": {name: None if target is None else target.model_dump() for name, target in todo.targets.items()},
        "trajectories": [
            {
                "name": one.name,
                "workload": one.cells[0].training.workload,
                "seed": one.cells[0].training.seed,
                "cells": [cell.cell_id for cell in one.cells],
                "steps": one.length_steps,
                "does": "train" if one.replays is None else "replay",
                "branch_of": None if one.branch is None else one.branch.trunk,
                "first_step": one.first_step,
                "replays": one.replays,
                "rounded": one.rounded,
                "resources": dict(zip(("cpu", "gpu", "processes"), _held(todo.resources[one.name]), strict=True)),
                "trace_bytes": room.trace_bytes(one, todo.resources[one.name].num_processes),
                "why_not_replayed": todo.no_trace.get(one.name),
                "expected_seconds": plan.cost(one, todo.paces).seconds,
            }
            for one in todo.trajectories
        ],
    }


def _held(trial: ResourcesBlock) -> tuple[float, float, int]:
    return trial.cpu, trial.gpu, trial.num_processes


def assumptions(todo: Work) -> list[str]:
    """A line for every workload whose seconds are not its own: assumed, or measured in the folder."""
    lines = []
    trainings = (one.cells[0].training for one in todo.trajectories)
    for name, preset, trained in dict.fromkeys((one.workload, one.preset, one.weights is None) for one in trainings):
        found = plan.pace(name, preset, todo.paces)
        seconds = f"{found.step_seconds:.2g} s a step and {found.eval_seconds:.2g} s an evaluation"
        if found.source == "assumed":
            measure = f"; `wa check-workload {name}` measures them" if trained else ""
            lines.append(f"{name}: {seconds} are assumed{measure}")
        elif found.source != "stated":
            lines.append(f"{name}: {seconds}, {found.source}")
    return lines
