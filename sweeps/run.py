"""`wa run`: plan what is not done, launch it, project it to W&B: the flow that the CLI and calibration share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sweeps import origins, plan, run_folder, tracking, user_code
from sweeps.blocks import SpecError
from sweeps.identity import Cell
from sweeps.progress import Progress, duration
from sweeps.spec import Spec
from sweeps.studies import Resolved, resolve, union
from sweeps.targets import Target
from sweeps.wording import counted
from workloads.data import VARIABLE, BadData
from workloads.protocol import load, with_batch_size
from workloads.user_errors import one_line


@dataclass(frozen=True)
class Work:
    """Studies against a run folder: their cells, what is done already, what is to train."""

    studies: list[Resolved]
    trajectories: list[plan.Trajectory]  # to train, longest first
    num_done: int  # trajectories in the folder that are finished

    @property
    def cells(self) -> list[Cell]:
        """The cells of all studies, each once."""
        return union(self.studies)

    @property
    def targets(self) -> dict[str, Target | None]:
        """workload -> target, over all studies."""
        return {workload: target for one in self.studies for workload, target in one.targets.items()}


def work(specs: Sequence[Spec], run: Path | None) -> Work:
    """Resolve studies and compare them with a folder. Raises: SpecError, before anything is written."""
    return _against(run, resolve(specs))


def _against(run: Path | None, studies: list[Resolved]) -> Work:
    started: list[plan.Trajectory] = []
    if run is not None:
        for one in studies:
            run_folder.check_compatible(run, one.cells, one.spec)
        started = run_folder.started(run)
    done = {one.name: one for one in started if run is not None and run_folder.is_done(run, one)}
    unfinished = [one for one in started if one.name not in done]
    done_cells = {cell.cell_id for one in done.values() for cell in one.cells}
    to_do = [cell for cell in union(studies) if cell.cell_id not in done_cells]
    return Work(studies, plan.trajectories(to_do, studies[0].spec.fuse, unfinished, done), len(done))


def run_studies(
    specs: Sequence[Spec],
    run: Path,
    console: Console,
    address: str | None = None,
    checkpoint_seconds: float = 10.0,
    calibrating: bool = False,
    accept_changed_code: bool = False,
) -> bool:
    """Bring the run folder to the state the specs describe, training once what they share; whether it is there.

    accept_changed_code: go on where a workload's source or data is not what the folder was begun with.
    Raises: SpecError or launch.NoRoom (too small, or no Ray answers) before anything is launched.
    """
    specs, left_out = user_code.usable(specs)
    studies = resolve(specs, calibrating)
    for resolved in studies:
        _check_data(resolved, address)
    is_here = address is None or not address.startswith("ray://")
    sources = origins.of_studies(specs, with_data=is_here)
    first = specs[0]  # what all agree on: resources, tracking, fuse
    with run_folder.locked(run):
        todo = _against(run, studies)
        if not accept_changed_code:
            origins.refuse_changed(run, specs, sources, run_folder.started(run))
        for one in run_folder.started(run):  # finished, but killed before compaction
            if run_folder.is_done(run, one):
                run_folder.compact(run, one.name)
        run_folder.write_plan(run, todo.studies, todo.trajectories, sources)
        run_folder.write_trials(run)
        _announce(todo, run, console, calibrating)
        for line in left_out:
            console.print(line, markup=False, soft_wrap=True)
        publisher = tracking.start(run, first.tracking.wandb, first.tracking.project, first.tracking.entity)
        try:
            complete = _launch(first, todo, run, console, address, checkpoint_seconds)
        finally:
            run_folder.write_trials(run)
            if not tracking.finish(publisher):
                console.print(
                    f"W&B is not up to date yet; {run / 'wandb.log'} says why. Records are complete without it."
                )
    return complete and not left_out


def _check_data(study: Resolved, address: str | None) -> None:
    """Ask the workloads that read a data folder whether all is there. Raises: SpecError."""
    spec = study.spec
    if spec.data_dir is not None:
        os.environ[VARIABLE] = str(Path(spec.data_dir).expanduser().resolve())  # for this study's trials too
    if address is not None and address.startswith("ray://"):
        return  # the data lies there, not here
    trainings = [cell.training for cell in study.cells]
    for name, preset, examples in dict.fromkeys(
        (one.workload, one.preset, one.batch_size) for one in trainings
    ):
        check = getattr(with_batch_size(load(name, preset), examples), "check_data", None)
        try:
            if check is not None:
                check()
        except BadData as error:
            raise SpecError("data_dir", str(error), spec.source) from None
        except (Exception, SystemExit) as error:  # a user's own
            raise SpecError(
                "workloads", f"{name} fails in check_data(): {one_line(error)}", spec.source
            ) from None


def _announce(todo: Work, run: Path, console: Console, calibrating: bool) -> None:
    for workload, target in todo.targets.items():
        if target is None and not calibrating:
            console.print(
                f"{workload} has no target yet, so steps-to-target is withheld: `wa calibrate {workload}` sets one."
            )
    done, new = (counted(n, "trajectory", "trajectories") for n in (todo.num_done, len(todo.trajectories)))
    already = f", {done} done already" if todo.num_done else ""
    console.print(f"{run}: {counted(len(todo.cells), 'cell')}, {new} to train{already}")


def _launch(
    spec: Spec, todo: Work, run: Path, console: Console, address: str | None, checkpoint_seconds: float
) -> bool:
    if not todo.trajectories:
        return True
    from sweeps import launch  # ray, which takes a second

    need = spec.resources
    with launch.engine(need.cpu, need.gpu, need.num_processes, address) as engine:
        with Progress(console, todo.trajectories, todo.num_done) as progress:
            outcome = launch.launch(engine, run, todo.trajectories, progress, checkpoint_seconds)
        console.print(progress.line())
    _explain(outcome.failed, run, console)
    return len(outcome.done) == len(todo.trajectories)


def _explain(failed: Sequence[str], run: Path, console: Console) -> None:
    for name in failed:
        log = run_folder.trajectory_folder(run, name) / "log"
        lines = log.read_text(encoding="utf-8").strip().splitlines() if log.exists() else []
        last = lines[-1] if lines else "its process died before it could say why"
        console.print(f"trajectory {name} failed: {last} ({log})", markup=False, soft_wrap=True)


def expected(spec: Spec, trajectories: Sequence[plan.Trajectory]) -> dict[str, dict[str, float]]:
    """workload -> expected cost of what is to train, fused and one trial per cell."""
    devices = plan.num_devices(spec)[0] / spec.resources.num_processes
    rows: dict[str, dict[str, float]] = {}
    for one in trajectories:
        workload = one.cells[0].training.workload
        row = rows.setdefault(
            workload,
            {
                "cells": 0,
                "trajectories": 0,
                "steps": 0,
                "device_hours": 0,
                "unfused_device_hours": 0,
                "memory": 0,
            },
        )
        cost = plan.cost(one)  # on one device
        alone = (len(one.cells) - 1) * cost.train_seconds + cost.seconds
        row["cells"] += len(one.cells)
        row["trajectories"] += 1
        row["steps"] += one.length_steps
        row["device_hours"] += cost.seconds * devices / 3600
        row["unfused_device_hours"] += alone * devices / 3600
        row["memory"] = max(row["memory"], cost.memory_bytes)
    return rows


def wall(todo: Work, slots: int, processes: int = 1) -> str:
    """Expected wall time on so many slots, in words."""
    return duration(
        plan.makespan_seconds([plan.cost(one).seconds / processes for one in todo.trajectories], slots)
    )
