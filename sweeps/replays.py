"""What of a plan is replayed from the traces of a folder, and why the rest is not."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sweeps import plan, replay, run_folder
from sweeps.identity import Cell
from sweeps.spec import Spec
from sweeps.storage import Place
from sweeps.trace import Trace


def from_trace(
    run: Path,
    one: plan.Trajectory,
    done: Iterable[plan.Trajectory],
    there: Mapping[str, Place],
    no_trace: dict[str, str],
) -> plan.Trajectory:
    """A trajectory with the trace of a finished one in place of its training, where there is one that can serve.

    there: `trace.traced` of the run. Raises: SpecError where its weights were imported and cannot serve.
    """
    if one.cells[0].training.weights is not None:
        return replace(one, replays=replay.imported(run, one))
    for source in done:
        if source.trajectory_id == one.trajectory_id and source.name in there:
            trace = Trace.of(there[source.name])
            why = replay.why_not(one, trace)
            if why is None:
                no_trace.pop(one.name, None)
                return replace(one, replays=source.name, rounded=trace.rounded)
            no_trace[one.name] = why
    return one


def refuse_unserved(
    run: Path, one: plan.Trajectory, done: Iterable[plan.Trajectory], asked: Iterable[Cell], why: str | None, spec: Spec
) -> None:
    """Cells that are done are evaluated at more steps by a replay alone, and all of a training alike.

    Raises: SpecError where no trace serves, or where others of the training would stay as they are, apart from these.
    """
    assert one.recorded is not None
    grid = plan.Grid.of(one.cells[0])
    if one.replays is None:
        because = "no trace of their training was kept" if why is None else f"their trace does not serve, {why}"
        run_folder.refuse_other_grid(run, one.recorded, grid, spec, f", and {because}")
    here = {cell.cell_id for cell in asked}
    others = [cell for source in done if source.trajectory_id == one.trajectory_id for cell in source.cells]
    if one.recorded.every != grid.every and any(cell.cell_id not in here for cell in others):
        also = " of this training, as other studies have of it; name these too, with this value"
        run_folder.refuse_other_grid(run, one.recorded, grid, spec, also)


def without(there: Container[str], done: Iterable[plan.Trajectory], asked: Iterable[Cell]) -> tuple[str, ...]:
    """The finished trainings that have no trace, though one is asked for of their cells."""
    kept = {cell.trajectory_id for cell in asked if cell.keep_every_steps is not None}
    done = list(done)
    kept -= {one.trajectory_id for one in done if one.name in there}
    return tuple(one.name for one in done if one.replays is None and one.trajectory_id in kept)
