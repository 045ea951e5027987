"""The state in which a trunk is when its branches part: written by the trunk, read by them, freed when all are done.

`trajectories/<trunk>/fork-<step>` is a checkpoint with the rows that are on record up to there, by which a branch has
all rows of its cells under their own names.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sweeps import durable, training_state
from sweeps.data_parallel import Team
from sweeps.identity import cell_id
from sweeps.memory import bank_bytes
from sweeps.plan import Branch, Trajectory, model_size
from sweeps.reporter import Reporter
from sweeps.scribe import fork_pointer, pointed
from sweeps.storage import Place
from sweeps.trace import PARTS
from sweeps.training_state import OfRanks, State


def place(trajectories: Place, branch: Branch) -> Place:
    """Where the state lies from which a branch starts."""
    return trajectories / branch.trunk / f"fork-{branch.step}"


def is_left(run: Path, branch: Branch) -> bool:
    """Whether the trunk has left it."""
    return fork_pointer(run / "trajectories" / branch.trunk, branch.step).exists()


def most_bytes(trunk: Trajectory) -> int:
    """What its forks take on disk if none is freed before the last: weights, two moments, buffers and averages each."""
    training = trunk.cells[0].training
    size = model_size(training.workload, training.preset)
    return len(trunk.forks) * (3 * size.num_parameters * size.itemsize + size.num_buffer_bytes + bank_bytes(trunk))


def offered(run: Path, trunk: Trajectory, is_done: bool) -> Trajectory:
    """A trajectory that has begun, with the forks that a branch can start from: left already, or still to be."""
    there = (step for step in trunk.forks if not is_done or is_left(run, Branch(trunk.name, step)))
    return replace(trunk, forks=tuple(there))


def leave(trunk: Trajectory, home: Place, state: State, gathered: OfRanks, reporter: Reporter) -> Place:
    """Write the state that branches start from; what an earlier attempt left is the same."""
    fork = home / f"fork-{state.step}"
    if fork.exists():
        return fork
    own = [row for row in reporter.written.values() if row["split"] == "validation"]
    rows = [row for row in [*own, *state.riders] if row["step"] <= state.step]
    training_state.save(state, fork, gathered, rows=rows, trajectory_id=trunk.trajectory_id)
    return fork


def start(
    trajectory: Trajectory, path: str | None, state: State, team: Team, reporter: Reporter | None, log: logging.Logger
) -> None:
    """Go on from the trunk's state, with its rows on record; from the first step where there is no such state."""
    assert trajectory.branch is not None
    saved = training_state.read(path, team, log)
    if saved is None:
        log.info("%s has left no state at step %d; training from the start", *vars(trajectory.branch).values())
        return
    own = {cell_id(saved["trajectory_id"], cell.scheme): cell for cell in trajectory.cells}
    if reporter is not None:
        names = {name: {"cell_id": cell.cell_id, "trajectory_id": cell.trajectory_id} for name, cell in own.items()}
        reporter.append([row | names[row["cell_id"]] for row in saved["rows"] if row["cell_id"] in own])
    for clock in ("eval_seconds", "average_offset"):
        saved[clock] = {own[name].cell_id: seconds for name, seconds in saved[clock].items() if name in own}
    training_state.put(state, {**saved, "riders": []}, team, whole_bank=False)
    log.info("on from step %d of %s", state.step, trajectory.branch.trunk)


def take_trace(trajectory: Trajectory, traces: Place) -> None:
    """Have what the trunk's trace has up to where they part: the same files, so that a branch's trace is whole too."""
    assert trajectory.branch is not None
    mine = traces / trajectory.name
    there = {part.name for part in mine.files(PARTS)}
    for part in (traces / trajectory.branch.trunk).files(PARTS):
        if part.name not in there and int(part.name.split(".")[0].partition("-")[2]) <= trajectory.branch.step:
            (mine / part.name).copy_of(part)


def free(run: Path, storage: Place, unfinished: Iterable[Trajectory], trunk: str = "[!.]*") -> None:
    """Remove the states that no unfinished branch starts from, then the pointers to them. Raises: OSError.

    trunk: those of this trajectory; of all without one.
    """
    folder = run / "trajectories"
    needed = {fork_pointer(folder / one.branch.trunk, one.branch.step) for one in unfinished if one.branch is not None}
    for pointer in folder.glob(f"{trunk}/fork-[0-9]*.json"):
        if pointer not in needed:
            if (state := pointed(pointer)) is not None:
                (storage / "trajectories" / pointer.parent.name / state).remove()
            durable.remove(pointer)
