"""`wa run`: plan what is not done, launch it, project it to W&B: the flow that the CLI and calibration share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from analysis.run_folder.records import check_records
from sweeps import durable, forks, memory, mirror, origins, pace, plan, replay, replays, room, run_folder, tracking
from sweeps.blocks import SpecError
from sweeps.border import begun
from sweeps.branches import branched
from sweeps.identity import Cell
from sweeps.interrupts import Interrupts
from sweeps.interrupts import interrupts as take_interrupts
from sweeps.ray_log import RAY_LOG, noise_to
from sweeps.resources import ResourcesBlock, of_trajectory
from sweeps.screen import RunScreen
from sweeps.spec import Spec
from sweeps.status import Status
from sweeps.storage import Place
from sweeps.studies import Resolved, resolve, union
from sweeps.targets import Target
from sweeps.trace import storage_of, traced
from sweeps.where import HERE, Cluster
from sweeps.wording import counted
from workloads.data import VARIABLE, BadData
from workloads.protocol import UnknownWorkload, load, with_batch_size
from workloads.user_errors import one_line

if TYPE_CHECKING:
    from sweeps.engine import Engine


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
    todo = _against(run, resolve(specs))
    memory.refuse(specs, todo.trajectories)
    if run is None:
        return todo
    devices = {name: spec.trial(name).devices[1] for spec in specs for name in spec.workloads}
    return replace(todo, paces=pace.measured(run, devices))


def _against(run: Path | None, studies: list[Resolved]) -> Work:
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


def run_studies(
    specs: Sequence[Spec],
    run: Path,
    console: Console,
    cluster: Cluster = HERE,
    checkpoint_seconds: float = 10.0,
    calibrating: bool = False,
    accept_changed_code: bool = False,
    conclude: Callable[[], None] = lambda: None,
    storage: Place | None = None,
) -> bool:
    """Bring the run folder to the state the specs describe, training once what they share; whether it is there.

    conclude: what to write once the records are (the report), before W&B is told that all is there.
    storage: where checkpoints and traces go and the folder is mirrored; None: where the folder says, or into itself,
    which each node then has to see.
    accept_changed_code: go on where a workload's source or data is not what the folder was begun with.
    Raises: SpecError or roll.NoRoom (too small, or no Ray answers) before anything is launched or written;
    border.Begun for a full disk or a damaged file after that.
    """
    place = _storage(run, storage)
    specs, left_out = usable(specs)
    address = cluster.address
    studies = resolve(specs, calibrating)
    for resolved in studies:
        _check_data(resolved)
    sources = origins.of_studies(specs)

    def compared() -> Work:
        todo = _against(run, studies)
        if not accept_changed_code:
            origins.refuse_changed(run, specs, sources, run_folder.started(run))
        return todo

    with ExitStack() as held:
        interrupts = held.enter_context(take_interrupts())
        is_new = not (run / durable.LOCK).exists()
        if not is_new:
            held.enter_context(durable.locked(run))
        todo = compared()
        if place is not None:
            mirror.refuse_foreign(run, place)
        memory.refuse(specs, todo.trajectories, address)
        # Whatever may be refused is refused by now, but by Ray: a new folder is made once Ray has room.
        with ExitStack() as hushed, _engine(todo, sources, place or storage_of(run), cluster, console) as engine:
            interrupts.count_from_here()
            if is_new:
                held.enter_context(durable.locked(run))
                todo = compared()  # another run may have been quicker
            if engine is not None:
                hushed.enter_context(noise_to(run / RAY_LOG, console))
            for one in run_folder.started(run):  # finished, but killed before compaction
                if run_folder.is_done(run, one):
                    run_folder.compact(run, one.name)
            with suppress(OSError):  # a storage that is away
                forks.free(run, storage_of(run), todo.trajectories)
            run_folder.write_plan(run, todo.studies, todo.trajectories, sources, place)
            run_folder.write_trials(run)
            _announce(todo, run, console, calibrating)
            for line in left_out:
                console.print(line, markup=False, soft_wrap=True)
            if place is not None:
                held.enter_context(mirror.mirroring(run, place, console))
            held.enter_context(tracking.publishing(run, specs[0].tracking, console))
            with begun() if engine else nullcontext():
                try:
                    complete = engine is None or _launch(engine, todo, run, console, interrupts, checkpoint_seconds)
                finally:
                    run_folder.write_trials(run)
        interrupts.raise_from_here()  # what follows is made again by the same command
        with begun():
            conclude()
        return complete and not left_out


def _storage(run: Path, asked: Place | None) -> Place | None:
    """Where checkpoints and traces go; None: into the folder itself. Raises: SpecError where they are elsewhere."""
    there = storage_of(run)
    if asked is not None and asked != there and (run / "plan.json").exists():
        said = f"{run} has its checkpoints and traces in {there}"
        raise SpecError("--storage", f"{said}; allowed: that, or another --out", "")
    place = asked or there
    return None if place == Place.of(run) else place


def usable(specs: Sequence[Spec]) -> tuple[list[Spec], list[str]]:
    """The studies without those of the user's workloads that cannot be had or built, and a line on each of these.

    Raises: SpecError where a study has no other workload.
    """
    left, lines = [], dict[str, None]()
    for spec in specs:
        broken = {name: line for name in spec.workloads if (line := _failure(spec, name)) is not None}
        if len(broken) == len(spec.workloads):
            name, line = next(iter(broken.items()))
            more = f" (nor can the {len(broken) - 1} other workloads be used)" if len(broken) > 1 else ""
            raise SpecError(f"workloads[{spec.workloads.index(name)}]", line + more, spec.source)
        good = tuple(name for name in spec.workloads if name not in broken)
        left.append(replace(spec, workloads=good) if broken else spec)
        lines |= dict.fromkeys(f"{line}; it is left out" for line in broken.values())
    return left, list(lines)


def _failure(spec: Spec, name: str) -> str | None:
    if ":" not in name:  # a shipped one; a name that is none is bad input, which `cells` tells
        return None
    try:
        for preset in spec.presets:
            plan.model_size(name, preset)
    except UnknownWorkload as error:
        return str(error)
    return None


def _engine(
    todo: Work, sources: origins.Sources, storage: Place, cluster: Cluster, console: Console
) -> AbstractContextManager[Engine | None]:
    """A Ray with room for a trial, where there is anything to train. Raises: roll.NoRoom."""
    if not todo.trajectories:
        return nullcontext()
    from sweeps.engine import engine  # ray, which takes a second
    from sweeps.look import Asked, lacking

    look = partial(lacking, Asked.of(todo, sources, storage))
    return engine(todo.resources, cluster, look, lambda line: console.print(line, markup=False, soft_wrap=True))


def _check_data(study: Resolved) -> None:
    """Ask the workloads that read a data folder whether all is there. Raises: SpecError."""
    spec = study.spec
    if spec.data_dir is not None:
        os.environ[VARIABLE] = str(Path(spec.data_dir).expanduser().resolve())  # for this study's trials too
    trainings = [cell.training for cell in study.cells]
    for name, preset, examples in dict.fromkeys((one.workload, one.preset, one.batch_size) for one in trainings):
        check = getattr(with_batch_size(load(name, preset), examples), "check_data", None)
        try:
            if check is not None:
                check()
        except BadData as error:
            raise SpecError("data_dir", str(error), spec.source) from None
        except (Exception, SystemExit) as error:  # a user's own
            raise SpecError("workloads", f"{name} fails in check_data(): {one_line(error)}", spec.source) from None


def _announce(todo: Work, run: Path, console: Console, calibrating: bool) -> None:
    for workload, target in todo.targets.items():
        if target is None and not calibrating:
            console.print(
                f"{workload} has no target yet, so steps-to-target is withheld: `wa calibrate {workload}` sets one."
            )
    done = f", {counted(todo.num_done, 'trajectory')} done already" if todo.num_done else ""
    console.print(f"{run}: {counted(len(todo.cells), 'cell')}, {to_do(todo)}{done}", soft_wrap=True)
    for line in [*why_trained(todo), *rounded(todo)]:
        console.print(line, markup=False, soft_wrap=True)


def to_do(todo: Work) -> str:
    """'3 trajectories to train, 2 to replay'."""
    replays = sum(one.replays is not None for one in todo.trajectories)
    trained = len(todo.trajectories) - replays
    told = [f"{counted(trained, 'trajectory')} to train"] if trained or not replays else []
    told += [f"{counted(replays, 'trajectory') if not trained else replays} to replay"] if replays else []
    return ", ".join(told)


def why_trained(todo: Work) -> list[str]:
    """A line on each trajectory that is trained though a trace of it is there, and one on what has none."""
    lines = [f"{name} is trained again: its trace does not serve, {why}" for name, why in todo.no_trace.items()]
    if todo.no_keep:
        such = f"{counted(len(todo.no_keep), 'trajectory')} done already, such as {todo.no_keep[0]}"
        lines.append(f"keep: no trace of {such}; what is trained from here on has one")
    return lines


def rounded(todo: Work) -> list[str]:
    """A line where weights are replayed that are not those of the training in every bit."""
    of = {one.rounded: one.name for one in todo.trajectories if one.rounded is not None}
    told = "a replay's weights were rounded to {}, so its records are not a training's bit for bit (such as {})"
    return [told.format(dtype, name) for dtype, name in of.items()]


def _launch(
    engine: Engine, todo: Work, run: Path, console: Console, interrupts: Interrupts, checkpoint_seconds: float
) -> bool:
    from sweeps.launch import launch

    with RunScreen(console, Status(run, only={one.name for one in todo.trajectories})) as screen:
        outcome = launch(engine, run, todo.trajectories, screen, interrupts, checkpoint_seconds)
    screen.look()
    console.print(screen.status.line(), soft_wrap=True)
    complete = len(outcome.done) == len(todo.trajectories)
    if outcome.ended is not None and not complete:
        console.print(f"{outcome.ended}; records up to here are kept", soft_wrap=True)
    return complete


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
    """What `wa plan --json` prints; hours are device-hours, memory is bytes a trial."""
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
