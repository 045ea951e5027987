"""What `wa plan` says: cells, trajectories, device-hours and memory, workload by workload, and what is assumed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps import forks, plan, terminal
from sweeps.axes import points
from sweeps.blocks import EvaluateBlock
from sweeps.expected import assumptions, expected
from sweeps.resources import ResourcesBlock
from sweeps.room import trace_bytes
from sweeps.run import rounded, to_do, why_trained
from sweeps.spec import Spec
from sweeps.wording import counted, duration
from sweeps.work import Work, work

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

HEADERS = ("workload", "cells", "trajectories", "steps", "hours", "one trial per cell", "peak memory a process")
CHOICES = (range(7), range(5), (0, 1, 2, 4))  # of columns, as the width allows; what is left out is said below too


def show(specs: Sequence[Spec], todo: Work, out: Path | None, left_out: Sequence[str], console: Console) -> None:
    """Print the plan of one or several studies against a run folder, if there is one.

    left_out: a line for each workload that cannot be used.
    """
    held = [todo.resources[one.name] for one in todo.trajectories]
    hours = "GPU-hours" if held and all(one.gpu for one in held) else "device-hours"
    if len(specs) > 1:
        console.print(_studies(specs, todo, out, hours))
    rows = expected(todo)
    name = specs[0].study if len(specs) == 1 else "together"
    title = f"{name}: {counted(len(todo.cells), 'cell')}, {to_do(todo)}"
    headers = tuple(hours if one == "hours" else one for one in HEADERS)
    costs = [_cost(workload, row) for workload, row in rows.items()]
    console.print(terminal.table(*terminal.fitting(headers, costs, console.width, CHOICES), title=title))
    fused, alone = (sum(row[key] for row in rows.values()) for key in ("device_hours", "unfused_device_hours"))
    peak = max((row["memory"] for row in rows.values()), default=0.0)
    memory = f"{peak / 2**20:,.0f} MiB a process"
    console.print(f"expected: {fused:.3g} {hours} ({alone:.3g} at one trial per cell), {memory}")
    about, slots = wall(todo)
    console.print(f"wall: about {about}{slots and f' on {slots}'}, Ray's start apart")
    if traces := sum(row["trace_bytes"] for row in rows.values()):
        largest = max(trace_bytes(one, todo.resources[one.name].num_processes) for one in todo.trajectories)
        console.print(f"traces: {traces / 2**20:,.4g} MiB on disk, the largest {largest / 2**20:,.4g} MiB")
    for line in [
        *_held(todo),
        *_branches(todo),
        *why_trained(todo),
        *rounded(todo),
        *_evaluated_in_full(todo),
        *assumptions(todo),
    ]:
        console.print(line, soft_wrap=True)
    if todo.num_done:
        stay = "is done and stays" if todo.num_done == 1 else "are done and stay"
        console.print(f"{out}: {counted(todo.num_done, 'trajectory')} {stay}")
    for workload, target in todo.targets.items():
        value = "" if target is None else f"target {target.metric} {target.value:.6g}"
        console.print(f"{workload}: {value or 'no target yet (`wa calibrate` sets it)'}")
    for line in left_out:
        console.print(line, soft_wrap=True)


def wall(todo: Work) -> tuple[str, str]:
    """Expected wall time on this machine, in words, and the slots that it counts with: one for trials on GPUs."""
    kinds: dict[tuple[float, str], int] = {}
    trials: dict[str, list[tuple[float, float]]] = {"gpu": [], "cpu": []}
    for one in todo.trajectories:
        held = todo.resources[one.name]
        devices, device = held.devices
        kinds[devices, device] = max(1, int((os.cpu_count() or 1) / held.cpu)) if device == "cpu" else 1
        trials[device].append((plan.cost(one, todo.paces).seconds / held.num_processes, held.cpu))
    seconds = [0.0]
    for device, pool in trials.items():
        narrow = min((cpu for _, cpu in pool), default=1.0)
        slots = max(1, int((os.cpu_count() or 1) / narrow)) if device == "cpu" else 1
        widths = [round(cpu / narrow) for _, cpu in pool]
        seconds.append(plan.makespan_seconds([time for time, _ in pool], slots, widths))
    told = [f"{counted(n, 'slot')} of {d:g} {kind}{' each' if n > 1 else ''}" for (d, kind), n in kinds.items()]
    return duration(max(seconds)), " and ".join(told)


def _held(todo: Work) -> list[str]:
    """Where trials differ in what they hold, a line on each workload and stage."""
    by_stage: dict[tuple[str, str], ResourcesBlock] = {}
    for one in todo.trajectories:
        stage = "training" if one.replays is None else "replay"
        by_stage[one.cells[0].training.workload, stage] = todo.resources[one.name]
    lines = [f"{name}: a {stage} holds {one.words}" for (name, stage), one in by_stage.items()]
    return lines if len({one.devices for one in by_stage.values()}) > 1 else []


def _evaluated_in_full(todo: Work) -> list[str]:
    """A line on each workload whose study asks for brackets that there cannot be."""
    lines = []
    for one in todo.studies:
        for name, grid in one.spec.grids.items():
            asked = any(EvaluateBlock(**at.values).averages != "all" for at in points(grid.evaluate))
            mine = [cell for cell in one.cells if cell.training.workload == name]
            if asked and mine and all(cell.averages == "all" for cell in mine):
                needs = "the baseline (`scheme: none`) in the same trial, of one process"
                lines.append(f"{name}: averages are evaluated at every evaluation; paired and bracket need {needs}")
    return lines


def _cost(workload: str, row: dict[str, float]) -> tuple[str, ...]:
    return (
        workload,
        f"{row['cells']:,.0f}",
        f"{row['trajectories']:,.0f}",
        f"{row['steps']:,.0f}",
        f"{row['device_hours']:.3g}",
        f"{row['unfused_device_hours']:.3g}",
        f"{row['memory'] / 2**20:,.0f} MiB",
    )


def _studies(specs: Sequence[Spec], todo: Work, out: Path | None, hours: str) -> Table:
    """Each study as if it ran alone, then all of them with what they share trained once."""

    def row(name: str, work: Work) -> tuple[str, ...]:
        cost = sum(one["device_hours"] for one in expected(work).values())
        return name, f"{len(work.cells):,}", f"{len(work.trajectories):,}", f"{cost:.3g}"

    rows = [row(spec.study, work([spec], out)) for spec in specs]
    headers = ("study", "cells", "trajectories to train", hours)
    return terminal.table(headers, [*rows, row("all, what they share once", todo)], title="each study alone")


def _branches(todo: Work) -> list[str]:
    """A line on the trunks of a workload whose branches start at the same steps, and what these need not train."""
    starts: dict[str, list[int]] = {}
    for one in todo.trajectories:
        if one.branch is not None:
            starts.setdefault(one.branch.trunk, []).append(one.branch.step)
    alike: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for one in todo.trajectories:
        if one.name in starts:
            steps = tuple(sorted(starts[one.name]))
            alike.setdefault((one.cells[0].training.workload, steps), []).append(one.name)
    lines = []
    for (workload, steps), trunks in alike.items():
        each = "" if len(trunks) == 1 else " each"
        of = f"{counted(len(steps), 'branch')}{each} of {', '.join(trunks)}"
        at = ", ".join(f"{step:,}" for step in dict.fromkeys(steps))
        disk = max(forks.most_bytes(one) for one in todo.trajectories if one.name in trunks) / 2**20
        saved = f"{len(trunks) * sum(steps):,} training steps saved"
        lines.append(f"{workload}: {of}, from step {at}: {saved}, states of up to {disk:,.3g} MiB a trunk on disk")
    return lines
