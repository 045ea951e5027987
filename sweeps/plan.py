"""Cells -> trajectories: what is trained once, in which order, and what it will cost."""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from sweeps import bracket, random_streams
from sweeps.identity import Cell, cell_from_dict, cell_to_dict
from sweeps.schedules import Schedule
from wa import Scheme
from workloads.protocol import UnknownWorkload, Workload, load
from workloads.user_errors import one_line

AVERAGE_SECONDS_PER_PARAMETER = 1.5e-9  # one EMA update on one core: read, scale and add, at the memory's speed
OWN_STEP_SECONDS, OWN_EVAL_SECONDS = 0.01, 0.1  # assumed of a user's workload that does not say


@dataclass(frozen=True)
class Grid:
    """Where a cell is evaluated: each `every` steps and at the end, there on the test split too if `test`."""

    every: int
    test: bool

    @classmethod
    def of(cls, cell: Cell) -> Grid:
        return cls(cell.evaluate_every_steps, cell.evaluate_test)

    def covers(self, other: Grid) -> bool:
        """Whether every evaluation of the other one is among its own."""
        return other.every % self.every == 0 and self.test >= other.test

    def __or__(self, other: Grid) -> Grid:
        """Both together, of which one has the other's steps."""
        return Grid(min(self.every, other.every), self.test or other.test)


@dataclass(frozen=True)
class Branch:
    """Where a trajectory starts: from the state of the trajectory `trunk` after `step` steps."""

    trunk: str
    step: int

    def __post_init__(self) -> None:
        if not self.trunk or Path(self.trunk).name != self.trunk:  # it becomes part of a path
            raise ValueError(f"{self.trunk!r} names no trajectory")


@dataclass(frozen=True)
class Trajectory:
    """One trial: a training run and the cells that ride along.

    forks: the steps after which it leaves its state to branches; branch_lengths: where these end. riders: what they
    ask for and its own cells do not, as cells of this training: it carries and evaluates them up to the last fork,
    and the rows are the branches'.
    """

    name: str  # its folder: the trajectory id, with a suffix when the id is trained more than once
    cells: tuple[Cell, ...]
    replays: str | None = None  # the trajectory whose trace stands in for its training
    recorded: Grid | None = None  # what earlier trials have of its cells: it records the rest alone
    branch: Branch | None = None  # None: trained from the first step
    forks: tuple[int, ...] = ()
    branch_lengths: tuple[int, ...] = ()
    riders: tuple[Cell, ...] = ()
    target: float | None = None  # where a bracket is to close around it
    rounded: str | None = None  # the dtype that the weights it replays were rounded to

    @property
    def trajectory_id(self) -> str:
        return self.cells[0].trajectory_id

    @property
    def keep_every_steps(self) -> int | None:
        """Steps between the weights that a trace keeps of it."""
        kept = [one.keep_every_steps for one in self.cells if one.keep_every_steps is not None]
        return min(kept) if kept and self.replays is None else None

    @property
    def schedule(self) -> Schedule:
        return self.cells[0].training.schedule

    @property
    def live(self) -> Cell | None:
        """Its cell of the live weights."""
        return next((one for one in self.cells if one.scheme is None), None)

    @property
    def schemes(self) -> list[Scheme]:
        """The averages that it carries, its riders' among them."""
        return [one.scheme for one in (*self.cells, *self.riders) if one.scheme is not None]

    @property
    def asks_less(self) -> bool:
        """Whether some average is not evaluated in full at every evaluation."""
        return any(one.averages != "all" for one in self.cells)

    @property
    def paired(self) -> list[Cell]:
        """Its averages of which a part of the examples may say enough, held against the live weights beside them."""
        is_alone = self.branch is None and not self.forks and self.live is not None
        return [one for one in self.cells if one.averages == "paired" and is_alone]

    @property
    def bracketed(self) -> list[Cell]:
        """Its averages that are evaluated at some steps only: those that a live curve beside them tells."""
        if self.branch is not None or self.forks or self.keep_dtype is not None:
            return []  # its trace is another's in part, its rows are others' too, or the weights are rounded
        if self.live is None or self.recorded is not None:
            return []
        return [one for one in self.cells if one.averages == "bracket"]

    @property
    def keep_dtype(self) -> str | None:
        """What the trace's weights are rounded to: nothing, where one of its cells asks for exact ones."""
        asked = {one.keep_dtype for one in self.cells if one.keep_every_steps is not None}
        return asked.pop() if len(asked) == 1 else None

    @property
    def length_steps(self) -> int:
        return self.schedule.length_steps

    @property
    def first_step(self) -> int:
        """How many steps are behind it when it starts."""
        return 0 if self.branch is None else self.branch.step

    @property
    def num_steps(self) -> int:
        """Steps that it takes itself."""
        return self.length_steps - self.first_step

    @property
    def evaluation_steps(self) -> list[int]:
        """On the grid, and at the end."""
        every = self.cells[0].evaluate_every_steps
        return [*range(every, self.length_steps, every), self.length_steps]

    @property
    def trace_steps(self) -> set[int]:
        """Where a trace is kept of its weights: for later questions, or for the rounds of a bracket alone."""
        kept, length = self.keep_every_steps, self.length_steps
        if self.replays is not None or (kept is None and not self.bracketed):
            return set()
        for_rounds = (step for cell in self.bracketed for step in cell.snapshots(length))
        return {*self.evaluation_steps, *for_rounds, *(range(kept, length + 1, kept) if kept else ())}

    @property
    def read_at(self) -> list[int]:
        """Where averages are read, by it or by its branches, which take over what it has of their windows."""
        every = self.cells[0].evaluate_every_steps
        ends = [self.length_steps, *self.branch_lengths]
        return sorted({*range(every, max(ends), every), *ends})

    @property
    def num_evaluations(self) -> int:
        """Of the validation split, by each cell."""
        every = self.cells[0].evaluate_every_steps
        before = self.first_step // every
        if self.recorded is not None:
            before = math.ceil(self.length_steps / self.recorded.every)
        return math.ceil(self.length_steps / every) - before

    def records(self, step: int, split: str) -> bool:
        """Whether an evaluation of its cells is its own to record."""
        if self.recorded is None:
            return True
        if split == "test":
            return not self.recorded.test
        return step % self.recorded.every != 0 and step != self.length_steps


@dataclass(frozen=True)
class Pace:
    """Device-seconds of a training step at the workload's own batch size, and of one evaluation of one model."""

    step_seconds: float
    eval_seconds: float
    source: str  # stated (by the workload) | assumed | measured in …


Paces = Mapping[tuple[str, str], Pace]  # (workload, preset) -> what was measured


@dataclass(frozen=True)
class Cost:
    """What a plan is expected to take; seconds are device-seconds on one CPU core unless the devices are faster."""

    train_seconds: float
    average_seconds: float
    eval_seconds: float

    @property
    def seconds(self) -> float:
        return self.train_seconds + self.average_seconds + self.eval_seconds


def trajectories(
    cells: Sequence[Cell],
    fuse: bool,
    started: Iterable[Trajectory] = (),
    taken_names: Iterable[str] = (),
    recorded: Mapping[str, Grid] = MappingProxyType({}),
) -> list[Trajectory]:
    """Group cells into trajectories, longest first.

    fuse: cells that differ only in averaging are one trajectory; False gives each cell its own, the reference.
    (Studies that evaluate the same training at different steps do not share it.)
    started: unfinished trajectories on disk; each goes on with the cells it has, the rest are grouped anew.
    taken_names: folders of finished trajectories; the same training for new cells gets a name of its own.
    recorded: what finished trajectories have of a cell, by its id.
    """
    wanted = {cell.cell_id for cell in cells}
    started = list(started)
    going_on = [one for one in started if any(cell.cell_id in wanted for cell in one.cells)]
    taken = {cell.cell_id for one in going_on for cell in one.cells}
    groups: dict[tuple[str, int, Grid | None], list[Cell]] = {}
    for cell in cells:
        if cell.cell_id not in taken:
            together = cell.trajectory_id if fuse else cell.cell_id
            groups.setdefault((together, cell.evaluate_every_steps, recorded.get(cell.cell_id)), []).append(cell)
    found, names = going_on, {*taken_names, *(one.name for one in started)}
    for (_, _, before), group in groups.items():
        name = group[0].trajectory_id
        if not fuse or name in names:
            told = [cell.cell_id for cell in group] + ([] if before is None else [repr(before)])
            name += "-" + hashlib.sha256("".join(told).encode()).hexdigest()[:6]
        names.add(name)
        found.append(Trajectory(name, tuple(group), recorded=before))
    return sorted(found, key=lambda one: (-cost(one).seconds, one.name))


def to_dict(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as plain values; `from_dict` gives it back, equal."""
    named = {key: getattr(trajectory, key) for key in ("replays", "rounded", "target")}
    more: dict[str, Any] = {key: value for key, value in named.items() if value is not None}
    more |= {} if trajectory.recorded is None else {"recorded": asdict(trajectory.recorded)}
    if trajectory.branch is not None:
        more["branch"] = asdict(trajectory.branch)
    if trajectory.forks:
        more |= {"forks": list(trajectory.forks), "branch_lengths": list(trajectory.branch_lengths)}
        more["riders"] = [cell_to_dict(cell) for cell in trajectory.riders]
    return {"name": trajectory.name, "cells": [cell_to_dict(cell) for cell in trajectory.cells], **more}


def from_dict(value: Mapping[str, Any]) -> Trajectory:
    """The trajectory that `to_dict` wrote."""
    return Trajectory(
        value["name"],
        cells=tuple(map(cell_from_dict, value["cells"])),
        replays=value.get("replays"),
        rounded=value.get("rounded"),
        target=value.get("target"),
        recorded=Grid(**value["recorded"]) if "recorded" in value else None,
        branch=Branch(**value["branch"]) if "branch" in value else None,
        forks=tuple(value.get("forks", ())),
        branch_lengths=tuple(value.get("branch_lengths", ())),
        riders=tuple(map(cell_from_dict, value.get("riders", ()))),
    )


# --- cost ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """What a plan knows of a model and its steps."""

    num_parameters: int
    num_buffer_bytes: int
    itemsize: int
    batch_size: int
    pace: Pace


@cache
def model_size(workload: str, preset: str) -> Size:
    """What a plan asks of a workload. Raises: UnknownWorkload, also where its model() fails."""
    made = load(workload, preset)
    try:
        model = _built(made)
        parameters, buffers = list(model.parameters()), list(model.buffers())
    except (Exception, SystemExit) as error:
        raise UnknownWorkload(f"workload {workload!r} fails in model(): {one_line(error)}") from error
    own = {"step_seconds": OWN_STEP_SECONDS, "eval_seconds": OWN_EVAL_SECONDS}
    stated = {key: value for key in own if (value := getattr(made, key, None)) is not None}
    return Size(
        num_parameters=sum(p.numel() for p in parameters),
        num_buffer_bytes=sum(b.numel() * b.element_size() for b in buffers),
        itemsize=max((p.element_size() for p in parameters), default=4),
        batch_size=made.batch_size,
        pace=Pace(**(own | stated), source="stated" if len(stated) == 2 else "assumed"),
    )


def _built(workload: Workload) -> torch.nn.Module:
    with random_streams.kept():
        try:
            with torch.device("meta"):
                return workload.model()
        except (Exception, SystemExit):  # a user's model may need real tensors to be built
            return workload.model()


def pace(workload: str, preset: str, measured: Paces = MappingProxyType({})) -> Pace:
    """What was measured, else what the workload states, else what is assumed."""
    return measured.get((workload, preset)) or model_size(workload, preset).pace


def cost(trajectory: Trajectory, measured: Paces = MappingProxyType({})) -> Cost:
    """Expected cost: seconds a step and an evaluation by `pace`, averages at memory speed.

    A step is taken to cost as much an example at any batch size.
    """
    training = trajectory.cells[0].training
    size = model_size(training.workload, training.preset)
    seconds = pace(training.workload, training.preset, measured)
    snapshots = sum(trajectory.num_steps / scheme.every for scheme in trajectory.schemes)
    rides = len(trajectory.riders) * (max(trajectory.forks, default=0) // trajectory.cells[0].evaluate_every_steps)
    batches = 1.0 if training.batch_size is None else training.batch_size / size.batch_size
    end = trajectory.records(trajectory.length_steps, "test")
    tests = sum(cell.evaluate_test for cell in trajectory.cells if end)  # taken to cost what a validation does
    num_all, few = trajectory.num_evaluations, len(trajectory.bracketed)  # paired: at most as many as all
    evaluations = num_all * (len(trajectory.cells) - few) + few * bracket.num_evaluations(num_all)
    return Cost(
        train_seconds=0.0 if trajectory.replays else trajectory.num_steps * seconds.step_seconds * batches,
        average_seconds=snapshots * size.num_parameters * AVERAGE_SECONDS_PER_PARAMETER,
        eval_seconds=(evaluations + rides + tests) * seconds.eval_seconds,
    )


def makespan_seconds(trials: Sequence[float], slots: int, widths: Sequence[int] | None = None) -> float:
    """Wall seconds of trials run longest first on `slots` equal slots. widths: how many each takes; None: one."""
    busy = [0.0] * max(1, slots)
    for seconds, wide in sorted(zip(trials, widths or [1] * len(trials), strict=True), reverse=True):
        taken = [heapq.heappop(busy) for _ in range(min(wide, len(busy)))]
        for _ in taken:
            heapq.heappush(busy, max(taken) + seconds)
    return max(busy)
