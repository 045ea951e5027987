"""`wa run`: plan what is not done, launch it, project it to W&B: the flow that the CLI and calibration share."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from sweeps import durable, forks, memory, mirror, origins, plan, run_folder, scribe, tracking
from sweeps.blocks import SpecError
from sweeps.border import begun
from sweeps.interrupts import Interrupts
from sweeps.interrupts import interrupts as take_interrupts
from sweeps.ray_log import RAY_LOG, noise_to
from sweeps.screen import RunScreen
from sweeps.spec import Spec
from sweeps.status import Status
from sweeps.storage import Place
from sweeps.studies import Resolved, resolve
from sweeps.trace import storage_of, traced
from sweeps.where import HERE, Cluster
from sweeps.wording import counted
from sweeps.work import Work, against
from workloads.data import VARIABLE, BadData
from workloads.protocol import UnknownWorkload, load, with_batch_size
from workloads.user_errors import one_line

if TYPE_CHECKING:
    from sweeps.engine import Engine


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
        todo = against(run, studies)
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
            mirror.try_out(place)
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
    if asked not in (None, there) and (traced(run) or scribe.has_pointers(run)):
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
