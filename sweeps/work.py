"""Studies against a run folder: what is done, what is to train or replay, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from analysis.run_folder.records import check_records
from sweeps import forks, memory, pace, plan, replay, replays, room, run_folder
from sweeps.blocks import SpecError
from sweeps.branches import branched
from sweeps.identity import Cell
from sweeps.resources import ResourcesBlock, of_trajectory
from sweeps.spec import Spec
from sweeps.studies import Resolved, resolve, union
from sweeps.targets import Target
from sweeps.trace import traced


@dataclass(frozen=True)
class Work:
    """Studies against a run folder: their cells, what is done already, what is to train."""

    studies: list[Resolved]
    trajectories: list[plan.Trajectory]  # to train, longest first
    done: tuple[str, ...]  # trajectories in the folder that are finished
    no_trace: dict[str, str] = field(default_factory=dict)  # trajectory -> why the trace there is cannot serve
    no_keep: tuple[str, ...] = ()  # of those done, what has no trace, though one is asked for now
    paces: plan.Paces = field(default_factory=dict)  # as measured in the folder

    @property
    def num_done(self) -> int:
        return len(self.done)

    @property
    def cells(self) -> list[Cell]:
        """The cells of all studies, each once."""
        return union(self.studies)

    @cached_property
    def resources(self) -> dict[str, ResourcesBlock]:
        """trajectory -> what its trial holds."""
        specs = [one.spec for one in self.studies]
        return {one.name: of_trajectory(one, specs) for one in self.trajectories}

    @property
    def targets(self) -> dict[str, Target | None]:
        """workload -> target, over all studies."""
        return {workload: target for one in self.studies for workload, target in one.targets.items()}


def work(specs: Sequence[Spec], run: Path | None) -> Work:
    """Resolve studies and compare them with a folder. Raises: SpecError or BadRun, before anything is written."""
    todo = against(run, resolve(specs))
    memory.refuse(specs, todo.trajectories)
    if run is None:
        return todo
    devices = {name: spec.trial(name).devices[1] for spec in specs for name in spec.workloads}
    return replace(todo, paces=pace.measured(run, devices))


def against(run: Path | None, studies: list[Resolved]) -> Work:
    """Compare studies with a folder; None: a new one. Raises: SpecError or BadRun."""
    specs = [one.spec for one in studies]
    started: list[plan.Trajectory] = []
    if run is not None:
        for one in studies:
            run_folder.check_compatible(run, one.cells, one.spec)
        check_records(run)
        started = run_folder.started(run)
    done = {one.name: one for one in started if run is not None and run_folder.is_done(run, one)}
    unfinished = [one for one in started if one.name not in done]
    recorded = run_folder.recorded(done.values())
    asked = union(studies)
    to_do = [cell for cell in asked if not _is_recorded(cell, recorded)]
    targets = {workload: target.value for one in studies for workload, target in one.targets.items() if target}
    todo = [
        replace(one, target=targets.get(one.cells[0].training.workload)) if one.asks_less else one
        for one in plan.trajectories(to_do, studies[0].spec.fuse, unfinished, done, recorded)
    ]
    shares = studies[0].spec.fuse and studies[0].spec.branch
    if run is None:
        if any(one.cells[0].training.weights is not None for one in todo):
            raise SpecError(
                "--out", "is required: the run folder that has the imported weights", studies[0].spec.source
            )
        todo = branched(todo) if shares else todo
        room.check(Path(), todo, specs)
        return Work(studies, todo, ())
    for trial in todo:
        if trial.replays is not None:  # begun as one
            replay.opened(trial, replay.traces_for(run, trial))
    begun, no_trace, there = {one.name for one in started}, dict[str, str](), traced(run)
    try:
        todo = [
            one if one.name in begun else replays.from_trace(run, one, done.values(), there, no_trace) for one in todo
        ]
    except SpecError as error:
        raise error.at(studies[0].spec.source) from None
    for trial in todo:
        if trial.recorded is not None:
            replays.refuse_unserved(run, trial, done.values(), asked, no_trace.get(trial.name), studies[0].spec)
    if shares:
        todo = branched(todo, [forks.offered(run, one, one.name in done) for one in started])
    room.check(run, todo, specs)
    return Work(studies, todo, tuple(done), no_trace, replays.without(there, done.values(), asked))


def _is_recorded(cell: Cell, recorded: Mapping[str, plan.Grid]) -> bool:
    held = recorded.get(cell.cell_id)
    return held is not None and held.covers(plan.Grid.of(cell))
